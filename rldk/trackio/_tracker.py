"""The real trackio, held at arm's length: begun, logged to and finished without waiting for it longer than was said.

Where its Space or server cannot be used, the run's rows are kept by trackio itself, in its folder on this machine. What
fails after that is switched off with one warning. Never imports trackio before somebody has asked for a run in it.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import orjson

from .._bounded import bounded
from ..text import clean
from ..vocabulary import plain_number

__all__ = ["BEGIN_SECONDS", "FINISH_SECONDS", "Tracker", "begin", "limit"]

logger = logging.getLogger("rldk")

# Locally trackio begins in 0.03 s; with a server that answers in well under a second, and one that hangs it gives up
# on after 15 s by itself. A Space that never answers it waits for without end.
BEGIN_SECONDS = 20.0
# trackio waits up to 30 s for rows that are on their way. It has them in its own database by then.
FINISH_SECONDS = 35.0
# The grace that a job gets after SIGTERM is often 30 s, and rldk's own files come first.
HURRIED_SECONDS = 5.0
# Of those, for trackio to put what it could not send into its own database, as it does by itself after 30 s.
_KEEPING_SECONDS = 2.0
# Older versions hold a lock while they send, and each log call waits for it: as long as a Space that hangs.
LOG_SECONDS = 20.0
_REMOTE = ("space_id", "server_url", "dataset_id", "bucket_id")
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")
_LONGEST = 300


def limit(default: float) -> float:
    """Seconds to wait for trackio: those of `RLDK_TRACKIO_TIMEOUT`, or else `default`."""
    try:
        given = float(os.environ.get("RLDK_TRACKIO_TIMEOUT", ""))
    except ValueError:
        return default
    return given if 0 < given < 3600 else default


def begin(library: Any, **asked: Any) -> tuple[Any, str]:
    """Begins a run in trackio; on this machine, if it cannot be begun where it was asked for.

    Args:
        library: The module.
        asked: What its `init` takes; what the installed one does not know is left out.

    Returns:
        The run, and what went wrong, empty if nothing did.

    Raises:
        BaseException: What trackio raises when it cannot begin on this machine either.
    """
    known = _known(library.init, asked)
    seconds = limit(BEGIN_SECONDS)
    too_late: list[bool] = []
    try:
        return bounded(seconds, _init, library, known, too_late), ""
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever trackio, gradio or the Hub raise
        too_late.append(True)
        problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except KeyboardInterrupt:
        too_late.append(True)
        raise
    local = {name: value for name, value in known.items() if name not in _REMOTE}
    with _at_home():
        return bounded(seconds, _init, library, local, []), problem


def _init(library: Any, asked: Mapping[str, Any], too_late: list[bool]) -> Any:
    run = library.init(**asked)
    if too_late:
        run.finish()  # nobody waits for it any more, and left alone it would go on to log the machine's load
    return run


def _known(function: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as far as this version takes it."""
    parameters = inspect.signature(function).parameters
    takes_all = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    return {name: value for name, value in asked.items() if value is not None and (takes_all or name in parameters)}


@contextmanager
def _at_home() -> Iterator[None]:
    """Without the environment's wish to log elsewhere, and without the Hub.

    With a token on the machine, trackio asks the Hub for the user's name even for a run that stays here, and waits.
    """
    wished = {name: os.environ.pop(name) for name in _ELSEWHERE if name in os.environ}
    hub = sys.modules.get("huggingface_hub.constants")
    offline = getattr(hub, "HF_HUB_OFFLINE", None)
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # no other switch is read after import
    try:
        yield
    finally:
        os.environ.update(wished)
        if hub is not None:
            hub.HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]


@contextmanager
def _beside_others(library: Any) -> Iterator[None]:
    """Leaves a run that somebody else has going in trackio alone, such as a trainer's of `report_to="trackio"`.

    trackio's `init` would end it; and when the one that took its place has ended too, the trainer's next `trackio.log`
    raises, which ends the training.
    """
    if library.context_vars.current_run.get() is None:
        yield
        return
    variables = [item for item in vars(library.context_vars).values() if isinstance(item, ContextVar)]
    theirs = [(variable, variable.get(None)) for variable in variables]
    config = library.config
    library.context_vars.current_run.set(None)
    try:
        yield
    finally:
        for variable, value in theirs:
            variable.set(value)
        library.config = config


def _allowed(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A configuration as trackio takes it: for one name with an underscore in front, as `vars(args)` has, it refuses the run."""
    if not config:
        return None
    return {str(name): value for name, value in config.items() if not str(name).startswith("_")}


class Tracker:
    """One run in trackio. No method raises.

    Args:
        library: The module.
        kept_in: Where everything is in any case, for the warnings.
        asked: As of `begin`.

    Attributes:
        run: trackio's run; None if it could not be begun.
        error: What switched it off; empty if nothing did.
    """

    def __init__(self, library: Any, kept_in: str, asked: Mapping[str, Any]) -> None:
        self._library = library
        self._kept_in = kept_in
        self.run: Any = None
        self.error = ""
        self.logged = 0
        self.problem = ""
        try:
            with _beside_others(library):
                self.run, self.problem = begin(library, **{**asked, "config": _allowed(asked.get("config"))})
        except (Exception, SystemExit) as error:  # noqa: BLE001  # no tracker is worth a run
            self._fail(error)
            return
        if self.problem:
            logger.warning(
                "rldk: trackio cannot log where it was asked to (%s). It logs on this machine, into %s; rldk's own record is "
                "in %s. Training is not affected.", self._short(self.problem), self.folder(), kept_in,
            )

    def folder(self) -> str:
        """Where trackio keeps its databases."""
        folder = getattr(sys.modules.get("trackio.utils"), "TRACKIO_DIR", None)
        return str(folder or os.environ.get("TRACKIO_DIR") or "trackio's folder")

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Hands one log call over; trackio queues it."""
        if self.run is None or self.error:
            return
        try:
            told = {str(name): _plain(value) for name, value in metrics.items()}
            if hasattr(self.run, "_queue_lock"):
                self.run.log(told, step=step)
            else:
                bounded(limit(LOG_SECONDS), self.run.log, _digestible(told), step=step)
            self.logged += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            self._fail(error)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        if self.run is None or self.error:
            return
        try:
            self.run.config.update(_allowed(config) or {})
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            self._fail(error)

    def url(self) -> str | None:
        """Where the run is seen; None if it is on this machine only."""
        if self.run is None or self.problem:
            return None
        space = getattr(self.run, "_space_id", None)
        if space:
            return f"https://huggingface.co/spaces/{space}"
        server = getattr(self.run, "_server_base_url", None) or getattr(self.run, "server_base_url", None)
        return str(server) if server else None

    def finish(self, hurried: bool = False) -> None:
        """Ends the run, waiting no longer than was said.

        Args:
            hurried: Whether the process is about to be killed.
        """
        if self.run is None:
            return
        # Not the module's finish: that ends whichever run is current, and in another thread there is none.
        run, self.run = self.run, None
        seconds = HURRIED_SECONDS if hurried else limit(FINISH_SECONDS)
        keeping = min(_KEEPING_SECONDS, seconds / 3)
        try:
            bounded(seconds - keeping, self._finish, run)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            if not self.error:
                self._fail(error)
            if isinstance(error, TimeoutError):
                self._abandon(run, keeping)

    def _finish(self, run: Any) -> None:
        current = self._library.context_vars.current_run
        if current.get() is run:
            self._library.finish()
        else:
            run.finish()

    def _abandon(self, run: Any, seconds: float) -> None:
        """Of a run that does not end: keeps what is on its way, and sees that trackio does not wait for it at exit again."""
        try:
            if self._library.context_vars.current_run.get() is run:
                self._library.context_vars.current_run.set(None)
            keep = getattr(run, "_flush_queues_inline", None)
            if keep is not None:
                bounded(seconds, keep)
        except (Exception, SystemExit) as error:  # as above; the one warning is out already
            logger.debug("rldk: what trackio had on its way may be lost to it", exc_info=error)

    def _fail(self, error: BaseException) -> None:
        self.error = f"{type(error).__name__}: {error}"
        logger.warning(
            "rldk: trackio failed and gets nothing more of this run (%s). Training is not affected; everything is in %s.",
            self._short(self.error), self._kept_in,
        )

    @staticmethod
    def _short(text: str) -> str:
        return clean(" ".join(text.split()))[:_LONGEST]


def _digestible(metrics: dict[str, Any]) -> dict[str, Any]:
    """What older versions can write. One value that they cannot, such as an array, ends their thread and costs all rows."""
    kept = {}
    for name, value in metrics.items():
        if not type(value).__module__.startswith("trackio"):  # their own tables and images
            try:
                orjson.dumps(value)
            except TypeError:
                continue
        kept[name] = value
    return kept


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as a number: trackio leaves tensors out. Anything else as it is."""
    if type(value) in (float, int, str, bool):
        return value
    try:
        return plain_number(value) if callable(getattr(value, "item", None)) else value
    except Exception:  # noqa: BLE001  # no number, or an object that answers to nothing
        return value
