"""The guarded tracker: transformers' trackio callback, which can neither end nor hold up a training.

The callback itself is transformers' own, and so is every row. What it holds in place of the module trackio is a `Line`:
calls go through it, each in its own `try`, bounded in time. Nothing is sent that transformers would not send; what cannot
be sent is kept by trackio on this machine.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from transformers.integrations.integration_utils import TrackioCallback

from ..._bounded import bounded
from ...text import clean
from ...trackio._health import ensure_trackio
from ...trackio._stand_in import Run, silence
from ...trackio._tracker import FINISH_SECONDS, begin, limit

__all__ = ["GuardedTrackioCallback", "guard", "guard_trainer"]

logger = logging.getLogger("rldk")

# Beside those of `_tracker`, which has the limits for the beginning and the end.
LOG_SECONDS = 10.0  # older ones wait while a Space is being spoken to; and a stray module does what it likes
PUSH_SECONDS = 120.0  # a whole project goes to the Hub
_EVENTS = ("on_train_begin", "on_train_end", "on_log", "on_predict", "on_push_begin")
_LONGEST = 300


class Line:
    """Stands between transformers' callback and the module trackio. Nothing that is called on it raises.

    Args:
        library: The module.
        owner: The callback that speaks through it.
    """

    def __init__(self, library: Any, owner: Any) -> None:
        self._library = library
        self._owner = weakref.ref(owner)
        self._off = ""  # why nothing more is sent in this training
        self._run: Any = None
        self._asked: dict[str, Any] = {}
        self._told: dict[str, Any] = {}  # of the configuration
        self._step: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def begins(self) -> None:
        """A training begins: what failed in the last is tried again, and its run is not gone on with."""
        self._off = ""
        if not getattr(self._owner(), "_initialized", False):
            self._asked, self._run = {}, None

    def adopt(self) -> None:
        """Takes over a run that has begun without it."""
        self._run = self._library.context_vars.current_run.get()
        self._asked = {"project": getattr(self._run, "project", None), "resume": "allow"}

    def init(self, **asked: Any) -> Any:
        """Begins a run: on this machine, if its Space or server cannot be used. After training, goes on with that run."""
        if self._off:
            return Run(**asked)
        if self._run is not None:
            asked = {**asked, "name": getattr(self._run, "name", asked.get("name"))}
        try:
            self._run, problem = begin(self._library, **asked)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever trackio, gradio or the Hub raise
            self.failed("cannot begin a run", error)
            return Run(**asked)
        if problem:
            self._kept_here(asked, problem)
        self._asked = asked
        return self._run

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs a row at the trainer's step, which transformers leaves to trackio's own count."""
        if self._off:
            return
        if step is None:
            step = metrics.get("train/global_step", self._step)
        self._step = step
        try:
            if getattr(self._run, "_is_local", False):
                self._library.log(metrics, step=step)  # trackio only queues it, for a thread that writes it to a file
            else:
                bounded(limit(LOG_SECONDS), self._library.log, metrics, step=step)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            self.failed("cannot log", error)

    def finish(self) -> None:
        """Ends the run. What still comes, from an evaluation after training, takes it up again."""
        owner = self._owner()
        if owner is not None:
            owner._initialized = False  # transformers 4 would log into the run that has ended
        if self._off:
            return
        try:
            bounded(limit(FINISH_SECONDS), self._library.finish)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            self.failed("cannot finish the run", error)
        else:
            if hasattr(self._run, "_space_id") and not getattr(self._run, "deaf", False):  # trackio's own
                self._be_current(_Ended(self, self._run))

    def freeze(self, **asked: Any) -> Any:
        """Makes a static copy of a Space; None if that failed."""
        return self._push(self._library.freeze, asked)

    def sync(self, **asked: Any) -> Any:
        """Sends a project that is kept on this machine to a Space; None if that failed."""
        return self._push(self._library.sync, asked)

    def _push(self, function: Callable[..., Any], asked: Mapping[str, Any]) -> Any:
        if self._off:
            return None
        try:
            return bounded(limit(PUSH_SECONDS), function, **asked)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
            logger.warning("rldk: trackio cannot push to the Hub (%s). Training is not affected.", _short(error))
            return None

    @property
    def config(self) -> Any:
        """The run's configuration, to be written to."""
        return _Written(self)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        if self._off:
            return
        self._told.update(values)
        try:
            self._library.config.update(values)
        except Exception as error:  # noqa: BLE001  # as above
            self.failed("cannot take the configuration", error)

    def taken_up(self) -> Any:
        """Goes on with the run that has ended; gives the run that is current then."""
        self.init(**self._asked)
        self.configure(self._told)
        owner = self._owner()
        if owner is not None:
            owner._initialized = True
        return self._library.context_vars.current_run.get()

    def failed(self, what: str, error: BaseException) -> None:
        """Switches trackio off until the next training, with one warning."""
        if self._off:
            return
        self._off = f"{what}: {_short(error).rstrip('.')}"
        logger.warning(
            "rldk: trackio %s. It gets nothing more of this training, which is not affected; RLDKCallback's files have everything.",
            self._off,
        )
        if self._run is not None and not isinstance(error, TimeoutError):
            with suppress(Exception, SystemExit):  # that it fails was said
                bounded(limit(FINISH_SECONDS), self._run.finish)  # lets it write what it has
        # TRL also logs by itself, and there an error, or a lock that is never given back, would end or hold up the training.
        self._be_current(Run())
        if ensure_trackio(create=False).verdict == "patched":
            silence(self._library)

    def _be_current(self, run: Any) -> None:
        with suppress(Exception):  # a stray module may have its own idea of it
            self._library.context_vars.current_run.set(run)

    def _kept_here(self, asked: Mapping[str, Any], problem: str) -> None:
        space = asked.get("space_id") or os.environ.get("TRACKIO_SPACE_ID")
        server = asked.get("server_url") or os.environ.get("TRACKIO_SERVER_URL")
        place = f"the Space {clean(str(space))}" if space else "its server" if server else "the Hub"
        later = f" To send them later: trackio.sync(project={asked.get('project')!r}, space_id={space!r})." if space else ""
        logger.warning(
            "rldk: trackio cannot use %s (%s). The rows are not sent there; they are kept on this machine, in %s. Training is not "
            "affected.%s", place, clean(" ".join(problem.split()))[:_LONGEST].rstrip("."),
            getattr(sys.modules.get("trackio.utils"), "TRACKIO_DIR", "trackio's folder"), later,
        )
        with suppress(AttributeError):  # an older trackio has none
            self._library.context_vars.current_space_id.set(None)  # what failed may have set it


class _Written:
    """The configuration as transformers writes to it."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def update(self, values: Mapping[str, Any], allow_val_change: bool = True) -> None:
        """Adds values. trackio, whose configuration is a dictionary, would take the argument for one of them."""
        self._line.configure(values)

    def __setitem__(self, name: str, value: Any) -> None:
        self._line.configure({name: value})


class _Ended:
    """The run that has ended, for whoever still asks for the current one: TRL logs during an evaluation after training."""

    def __init__(self, line: Line, run: Any) -> None:
        self._line = line
        self._ended = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ended, name)

    def log(self, metrics: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
        """Takes the run up again."""
        run = self._line.taken_up()
        if run is not None and run is not self:
            run.log(metrics, step=step)

    def finish(self) -> None:
        """It has."""


class GuardedTrackioCallback(TrackioCallback):
    """transformers' own, guarded from the start: a missing or stray trackio is no error either."""

    def __init__(self) -> None:
        ensure_trackio(create=True)
        super().__init__()
        guard(self)


def guard(callback: Any) -> None:
    """Guards one of transformers' trackio callbacks, or of a subclass of it, in place. May be called again."""
    if isinstance(getattr(callback, "_trackio", None), Line):
        return
    library = sys.modules.get("trackio") or callback._trackio
    line = callback._trackio = Line(library, callback)
    if callback._initialized:
        line.adopt()
    for name in _EVENTS:
        method = getattr(callback, name, None)
        if method is not None:
            setattr(callback, name, _event(line, name, method))


def _event(line: Line, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def event(*args: Any, **kwargs: Any) -> Any:
        if name == "on_train_begin":
            line.begins()
        try:
            return method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # transformers passes it on into the training loop
            line.failed(f"failed in {name}", error)
            return None

    return event


def guard_trainer(args: Any, trainer: Any) -> None:
    """Makes trackio safe for a trainer that is built: by what it reports to, and in the callbacks that it has.

    Args:
        args: The trainer's arguments.
        trainer: The trainer; None if it was not found.
    """
    wanted = "trackio" in (args.report_to or ())
    if ensure_trackio(create=wanted, wanted=wanted).verdict == "off":
        return
    for callback in trainer.callback_handler.callbacks if trainer is not None else ():
        if isinstance(callback, TrackioCallback):
            guard(callback)


def _short(error: BaseException) -> str:
    return clean(" ".join(f"{type(error).__name__}: {error}".split()))[:_LONGEST]
