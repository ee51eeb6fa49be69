"""A run's files in a dataset repository on the Hugging Face Hub, for jobs on machines that vanish.

huggingface_hub's `CommitScheduler` says when; every upload runs in a thread of its own that nobody waits for longer than
was said. A Hub that is down, slow, silent or unwilling costs one warning, never the run, and is asked again at the next
turn. Nothing here reads the network on the training's thread, imports huggingface_hub before a dataset is asked for, or
deletes anything on the Hub.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ._files import read_object
from ._hub_manners import CARD, advice, check_dataset_id, short, status_code
from ._hub_uploads import Upload, scheduler_for
from ._outbox import Outbox
from .environment import redact
from .event import timestamp
from .exceptions import ConfigurationError
from .runfiles import RunFiles
from .text import clean

if TYPE_CHECKING:
    from huggingface_hub import CommitScheduler, HfApi

__all__ = ["CLOSE_SECONDS", "EVERY_MINUTES", "HURRY_SECONDS", "STUCK_SECONDS", "HubDataset", "check_dataset_id"]

logger = logging.getLogger("rldk")

EVERY_MINUTES = 5.0
# At an ordinary end: a healthy Hub takes a commit in one to three seconds, its client's own retries take half a minute.
CLOSE_SECONDS = 30.0
# After a signal or an exception, where a job's grace period may be running.
HURRY_SECONDS = 5.0
# The client waits without limit for an answer. An upload that took so long is given up, and another one begins.
STUCK_SECONDS = 600.0

_MINUTES = "RLDK_HUB_MINUTES"
# Somebody else committed at the same moment; several runs may go to one repository, and all begin at once.
_CONFLICTS = (409, 412)
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)

class HubDataset:
    """Sends a run's files to a dataset repository, at intervals and at the end.

    They go into a folder that is named after the run, so that several runs share a repository, each commit all of them as
    they are at that moment. `rldk.ingest_runs("hf://datasets/user/name")` reads them back. No method raises, once this is
    constructed, and none but `close` waits.

    Args:
        dataset_id: `user/name`, or `name` for an own one. Made if it does not exist.
        files: Where the run's files are.
        run_id: The run.
        every_minutes: Between two uploads; by default what the environment variable RLDK_HUB_MINUTES says, else 5.
        private: Whether a repository that is made is private. None is the account's own default: public, unless an
            organisation's settings say otherwise. One that exists stays as it is.
        token: By default the one that this machine has, from `hf auth login` or HF_TOKEN.
        resumed: Whether the run goes on from an earlier part. Its events are kept if they are there and not here.

    Raises:
        ConfigurationError: For a bad id or interval.

    Example:
        ```python
        hub = HubDataset("user/my-runs", session.files, session.run_id)
        hub.start()
        ...
        hub.close()
        ```
    """

    def __init__(
        self,
        dataset_id: str,
        files: RunFiles,
        run_id: str,
        *,
        every_minutes: float | None = None,
        private: bool | None = None,
        token: str | None = None,
        resumed: bool = False,
    ) -> None:
        self.dataset_id = check_dataset_id(dataset_id)
        self.run_id = run_id
        self.every_minutes = _minutes(every_minutes)
        self.error: str | None = None
        self.commits = 0
        self._private, self._resumed = private, resumed
        self._token = (token or "").strip() or None  # as of a file's line
        self.outbox = Outbox(files, run_id)
        self._repo = self._folder = ""
        self._oid: str | None = None
        self._last_commit: str | None = None
        self._endpoint = ""
        self._card = False  # whether it has been thought of
        self._parent: str | None = None  # what the first commit was prepared for
        self._process = os.getpid()
        self._keep: tempfile.TemporaryDirectory[str] | None = None  # for the earlier part of the stream
        self._scheduler: CommitScheduler | None = None
        self._lock = threading.RLock()  # a signal may end the run while its thread holds it
        self._current: Upload | None = None
        self._asked = threading.Event()
        self._last: Upload | None = None
        self._begun = self._closed = False
        self._told = 0  # warnings
        self._worked_since = False  # since the last of them

    # From the run's threads

    def start(self) -> None:
        """Begins: one upload now, then one at each interval. Returns at once."""
        if self._begun:
            return
        self._begun = True
        try:
            # Started now: from Python 3.12 on, no thread can be started as the interpreter exits.
            self._last = Upload(self, None, self._asked)
            self._last.start()
            self._scheduler = scheduler_for(self, self._token)
        except Exception as error:  # noqa: BLE001  # a library that rldk does not know, or no thread left: not worth a run
            self._failed(error)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Sends what has changed, and ends; may be called again after further changes.

        Args:
            seconds: How long to wait at most. What is not done by then goes on in the background as long as the process
                lives.
        """
        if not self._begun or os.getpid() != self._process:
            return  # in a forked process the threads are gone, and a lock of theirs may be held for good
        if self._closed and self.error:
            seconds = min(seconds, HURRY_SECONDS)  # each evaluation after training would wait again
        deadline = time.monotonic() + seconds
        with self._lock:
            self._closed = True
            under_way = self._current
        if self._scheduler is not None:
            self._scheduler.stop()
        if under_way is not None:
            # Half of the time: the Hub may be back, and this one still hang.
            under_way.join(seconds / 2)
            if under_way.is_alive():
                under_way.abandon()
        try:
            last, self._last = self._last, None
            if last is None:
                last = Upload(self, self._scheduler)
                last.start()
            self._current = last
            self._asked.set()
            last.join(max(0.0, deadline - time.monotonic()))
            if last.is_alive():
                self._failed(f"not done within {seconds:g} s")
        except RuntimeError as error:  # no thread could be started
            self._failed(error)

    def status(self) -> dict[str, Any]:
        """What became of it, for the report.

        Returns:
            `repo`; `url` of the run's folder, None before the first commit; `commits`, and the time of the `last_commit`;
            `error`, why the latest upload failed, None if it did not; and after the end `unsent`, the files that are not
            there as they are here.
        """
        url = f"{self._endpoint}/datasets/{self._repo}/tree/main/{quote(self._folder)}" if self.commits else None
        return {
            "repo": self._repo or self.dataset_id, "url": url, "commits": self.commits, "last_commit": self._last_commit,
            "error": self.error, "unsent": list(self.outbox.unsent()) if self._closed else [],
        }

    # From the scheduler's thread

    def tick(self, scheduler: CommitScheduler) -> Upload | None:
        """Begins an upload, unless one is under way that may still come to an end."""
        with self._lock:
            under_way, now = self._current, time.monotonic()
            if under_way is not None and not under_way.is_alive():
                under_way = None
            if self._closed or (under_way is not None and now - under_way.began < STUCK_SECONDS):
                return None
            self._current = begun = Upload(self, scheduler)
            begun.start()
        if under_way is not None:
            under_way.abandon()
            self._failed(f"no answer for {now - under_way.began:.0f} s")
        return begun

    # From an upload's thread

    def upload(self, upload: Upload) -> None:
        """Sends what has changed."""
        scheduler = upload.scheduler or self._scheduler
        if scheduler is None:
            return  # it could not be made, which was said
        try:
            scheduler.push_to_hub()
        except BaseException as error:  # noqa: BLE001  # whatever a library raises, SystemExit too, ends only this upload
            if not upload.abandoned:
                self._failed(error)
            return
        if upload.abandoned:
            self.outbox.forget()  # it came late, perhaps over what is newer
        else:
            self._worked()

    def push(self, upload: Upload, api: HfApi) -> None:
        """Makes the repository, if that is still to be done, and a commit of what has changed."""
        for pause in (*_PAUSES_S, None):
            try:
                self._push(upload, api)
                return
            except Exception as error:  # their classes differ by version; all but a conflict go on
                if pause is None or status_code(error) not in _CONFLICTS:
                    raise
                self._card = self.commits > 0  # nothing was wrong with it
                time.sleep(pause * (0.5 + os.urandom(1)[0] / 256))  # not in step with the others, and of nobody's random state

    def _push(self, upload: Upload, api: HfApi) -> None:
        if not self._repo:
            url = api.create_repo(self.dataset_id, repo_type="dataset", private=self._private, exist_ok=True)
            self._repo = self.dataset_id if "/" in self.dataset_id else url.repo_id
            self._endpoint = api.endpoint
        stamps = self.outbox.unsent()
        if not stamps:
            return
        if not self.commits:
            self._look(api)
        with tempfile.TemporaryDirectory(prefix="rldk-hub-", ignore_cleanup_errors=True) as folder:
            upload.folder = folder
            staged = self.outbox.stage(stamps, Path(folder))
            found = {f"{self._folder}/{path.name}": str(path) for path in staged}
            if not self._card:
                self._card = True  # once: what is wrong with it must not keep the files back
                card = Path(folder) / "README.md"
                card.write_text(CARD.replace("{repo}", self._repo), encoding="utf-8")
                found["README.md"] = str(card)
            oid = self._commit(api, found) if found else None
        if upload.abandoned:
            return
        self.outbox.sent(stamps)
        if oid != self._oid:
            self._oid, self.commits, self._last_commit = oid, self.commits + 1, timestamp(time.time())

    def _commit(self, api: HfApi, found: dict[str, str]) -> str | None:
        from huggingface_hub import CommitOperationAdd  # see `_hub_uploads`

        # The first goes only onto what was looked at: two runs of one name may begin at the same moment.
        return api.create_commit(
            self._repo, [CommitOperationAdd(name, path) for name, path in found.items()], repo_type="dataset",
            commit_message=f"rldk: {self.run_id}", parent_commit=None if self.commits else self._parent,
        ).oid

    def _look(self, api: HfApi) -> None:
        """Finds out what the repository has of the run: an earlier part, another run of that name, or nothing."""
        box = self.outbox
        names = {name: f"{self.run_id}/{name}" for name in (box.stream_name, box.manifest_name)}
        self._parent = api.repo_info(self._repo, repo_type="dataset").sha
        there = {item.path for item in api.get_paths_info(self._repo, ["README.md", *names.values()], repo_type="dataset")}
        self._card = self._card or "README.md" in there
        folder = self._folder or self.run_id
        if folder == self.run_id and there & set(names.values()):
            self._keep = self._keep or tempfile.TemporaryDirectory(prefix="rldk-hub-", ignore_cleanup_errors=True)
            local = {
                name: Path(api.hf_hub_download(self._repo, path, repo_type="dataset", local_dir=self._keep.name))
                for name, path in names.items() if path in there
            }
            begun = read_object(local[box.manifest_name]).get("created") if box.manifest_name in local else None
            if self._resumed or begun == read_object(box.manifest).get("created"):
                box.earlier = local.get(box.stream_name)
            else:
                folder = f"{self.run_id}-{os.urandom(2).hex()}"
                logger.warning(
                    "rldk: the dataset %s has another run %s already: this one goes into the folder %s",
                    self._repo, self.run_id, folder,
                )
        self._folder = folder

    # What is said

    def _worked(self) -> None:
        if self.error is not None:
            logger.info("rldk: run %s reaches the dataset %s on the Hub again", self.run_id, self._repo)
        elif self.commits == 1 and not self._worked_since:
            logger.info("rldk: run %s is in %s", self.run_id, self.status()["url"])
        self.error = None
        self._worked_since = True

    def _failed(self, error: BaseException | str) -> None:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        cause = getattr(error, "__cause__", None)
        text += f" ({cause})" if cause is not None and type(error) is RuntimeError else ""  # so the library says which file
        for secret in (self._token, repr(self._token)[1:-1]) if self._token else ():
            text = text.replace(secret, "<redacted>")  # an HTTP client shows what it cannot send
        with self._lock:
            self.error = clean(redact(short(text)))[:500]
            # Once; and at the end once more, if it had worked meanwhile: that is what is missing for good.
            if self._told and not (self._closed and self._worked_since):
                return
            self._told += 1
            self._worked_since = False
        there = f"; the Hub has it as of {self._last_commit}" if self._last_commit else ""
        logger.warning(
            "rldk: run %s does not reach the dataset %s on the Hub (%s)%s. Training is not affected. Not sent: %s%s. All of "
            "it is in %s.%s",
            self.run_id, self._repo or self.dataset_id, self.error, advice(error), ", ".join(self.outbox.unsent()) or "nothing yet",
            there, self.outbox.folder, "" if self._closed else f" Tried again every {self.every_minutes:g} minutes.",
        )


def _minutes(given: float | None) -> float:
    text: object = given
    if given is None:
        text = os.environ.get(_MINUTES) or EVERY_MINUTES
    try:
        minutes = float(text)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError):
        minutes = math.nan
    if not 0 < minutes < math.inf:
        name = _MINUTES if given is None else "every_minutes"
        raise ConfigurationError(f"{name} must be a number of minutes above 0; got {text!r}")
    return minutes
