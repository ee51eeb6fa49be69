"""How a run ends when nobody says so.

transformers calls `on_train_end` only when training returns. A run may also end by an exception, caught by the program
or not, or by SIGTERM. `Ending` notices: at the interpreter's exit, on SIGTERM, and, looking once a second, that the
frame of `train()` has gone. It calls back once. SIGKILL leaves nothing to notice; `rldk.rebuild` then works from the events.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

__all__ = ["Ending", "sweep"]

logger = logging.getLogger("rldk")

UNSEEN = "training left train() without on_train_end; the exception was not seen"
_POLL_S = 1.0


class Ending:
    """Watches for the end of a run from inside `train()`.

    Args:
        finish: Called with a status and a reason, at most once.
        state: The trainer's state, which is another object in each call of `train()`.
    """

    def __init__(self, finish: Callable[[str, str], None], state: object) -> None:
        self._finish = finish
        self._state = weakref.ref(state)
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._frame_id, self._code = _training_frame()
        self._done = False
        self._once = threading.Lock()  # two threads and a signal handler may notice the same end
        self.signal: str | None = None  # a signal that arrived and left the end to someone else
        self._previous: Any = None
        self._installed = False
        _watched.add(self)
        self._released = threading.Event()
        threading.Thread(target=self._watch, name="rldk-watch", daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGTERM)
            # None: a handler that was not installed from Python and could not be restored.
            if self._previous not in (None, signal.SIG_IGN):
                signal.signal(signal.SIGTERM, self._on_sigterm)
                self._installed = True

    def release(self) -> None:
        """Stops watching: the run has ended in the ordinary way."""
        self._once.acquire(blocking=False)
        self._done = True
        self._released.set()
        _watched.discard(self)
        self._restore_signal()

    def _watch(self) -> None:
        while not self._released.wait(_POLL_S):
            self.poll()

    def poll(self) -> None:
        """Looks whether `train()` is still on the stack of its thread."""
        if self._done or self._frame_id is None:
            return
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if id(frame) == self._frame_id and frame.f_code is self._code:
                return
            frame = frame.f_back
        if not self._done:
            self._end()

    def _end(self) -> None:
        error = self._uncaught()
        if error is None:
            self._call("failed", self.signal or UNSEEN)
        else:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            text = str(error).splitlines()
            self._call(status, f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__)

    def _call(self, status: str, reason: str) -> None:
        if self._once.acquire(blocking=False):
            self._done = True
            self._released.set()
            self._finish(status, reason)

    def _uncaught(self) -> BaseException | None:
        """The exception that nobody caught, if it came through our `train()`."""
        error = getattr(sys, "last_value", None)
        trace = getattr(error, "__traceback__", None)
        while trace is not None:
            if self._code is None or trace.tb_frame.f_code is self._code:
                return error
            trace = trace.tb_next
        return None

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous
        if callable(previous):
            # Somebody else decides what SIGTERM means, such as a last checkpoint and an orderly end.
            self.signal = "SIGTERM"
            previous(number, frame)
            return
        # A forked data-loading worker inherits this handler, but the run is not its own.
        if os.getpid() == self._process:
            self._call("failed", "SIGTERM")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore_signal(self) -> None:
        if not self._installed or threading.current_thread() is not threading.main_thread():
            return
        # Bound methods are made anew at each access, so equality and not identity.
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, self._previous)
        self._installed = False


_watched: weakref.WeakSet[Ending] = weakref.WeakSet()


def sweep(state: object) -> None:
    """Ends the runs whose `train()` has gone unnoticed; called as another begins.

    A frame's address is used again, so a run that seems to be in the very frame that begins now is over, unless it has
    the same state: then it is another recorder of the same training.
    """
    frame_id, _ = _training_frame()
    for ending in list(_watched):
        if ending._frame_id == frame_id and ending._state() is not state:
            ending._end()
        else:
            ending.poll()


@atexit.register
def _at_exit() -> None:
    for ending in list(_watched):
        if os.getpid() == ending._process and not ending._done:
            ending._end()


def _training_frame() -> tuple[int | None, CodeType | None]:
    """The outermost frame of a method `train` of a trainer, by identity; nothing of it is kept alive."""
    found: tuple[int | None, CodeType | None] = (None, None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "train" and hasattr(frame.f_locals.get("self"), "callback_handler"):
            found = (id(frame), frame.f_code)
        frame = frame.f_back
    return found
