"""When a dataset's uploads happen, and in which threads: huggingface_hub's `CommitScheduler`, held so that nothing waits for it.

As it comes, its constructor makes the repository on the caller's thread, its uploads run in a pool that the interpreter joins
at its exit, and it uploads once more at that exit: each without limit, if the Hub does not answer.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ._hub_manners import quietly
from .environment import versions

if TYPE_CHECKING:
    from huggingface_hub import CommitScheduler

    from .hub import HubDataset

__all__ = ["Upload", "scheduler_for"]


class Upload(threading.Thread):
    """One upload; the last one of a run waits until it is asked for."""

    def __init__(self, hub: HubDataset, scheduler: CommitScheduler | None, wait: threading.Event | None = None) -> None:
        super().__init__(name="rldk-hub", daemon=True)
        self.hub = hub
        self.scheduler = scheduler
        self.wait = wait
        self.began = time.monotonic()
        self.abandoned = False
        self.folder = ""

    def run(self) -> None:
        if self.wait is not None:
            self.wait.wait()
            self.began = time.monotonic()
        self.hub.upload(self)

    def abandon(self) -> None:
        """Lets go of an upload that hangs. Without its copies it cannot bring what is old by then."""
        self.abandoned = True
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def scheduler_for(hub: HubDataset, token: str | None) -> CommitScheduler:
    """The schedule of a dataset's uploads; it begins at once, and no call of it waits for the network.

    Args:
        hub: The dataset.
        token: As of `HubDataset`.
    """
    # Here and not above: it brings an HTTP client, and whoever asks for no dataset needs none.
    from huggingface_hub import CommitScheduler, HfApi

    api = HfApi(token=token, library_name="rldk", library_version=versions().get("rldk"))

    class Later(HfApi):
        """Makes no repository: the scheduler's constructor would wait for it, without limit, on the training's thread."""

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

    class Scheduler(CommitScheduler):
        """Uploads in threads that the interpreter does not wait for at its exit, as it does for the library's own pool."""

        def trigger(self) -> Future[Any]:
            done: Future[Any] = Future()
            try:
                done.set_result(hub.tick(self))
            except RuntimeError as error:  # no thread can be started any more
                done.set_exception(error)
            return done

        def push_to_hub(self) -> None:
            """Sends what has changed; nothing if called as the interpreter exits, by which time `close` has seen to it."""
            upload = threading.current_thread()
            if isinstance(upload, Upload):
                with quietly(upload.name):
                    hub.push(upload, api)

    # The folder is asked for and not used: the files may stand in several, beside those of other runs.
    return Scheduler(
        repo_id=hub.dataset_id, repo_type="dataset", folder_path=hub.outbox.folder, every=hub.every_minutes, hf_api=Later()
    )
