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

__all__ = ["Ending", "sweep", "told_by"]

logger = logging.getLogger("rldk")

UNSEEN = "training left train() without on_train_end; the exception was not seen"
_NO_TRAIN = "the program ended before the run was finished"
_POLL_S = 1.0
_PATIENCE_S = 10.0


class Ending:
    """Watches for the end of a run from inside `train()`.

    Args:
        finish: Called with a status and a reason, at most once.
        state: The trainer's state, which is another object in each call of `train()`.
        in_train: Whether the run ends with the `train()` that it began in, if it began in one. One that is logged by
            hand may go on after it.
    """

    def __init__(self, finish: Callable[[str, str], None], state: object, *, in_train: bool = True) -> None:
        self._finish = finish
        self._state = weakref.ref(state)
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._frame_id, self._code, self._bottom_id = _training_frame() if in_train else (None, None, None)
        self._error_before = id(getattr(sys, "last_value", None))  # in a notebook a cell may have failed before the run
        self._done = False
        self._once = threading.Lock()  # two threads and a signal handler may notice the same end
        self.signal: str | None = None  # a signal that arrived and left the end to someone else
        _watched.add(self)
        self._released = threading.Event()
        if self._frame_id is not None:
            threading.Thread(target=self._watch, name="rldk-watch", daemon=True).start()
        _SigtermHandler.install()
        # Anew for each run: what is registered last is called first, and so before the trackers that began before this
        # run leave: they are still to be told how it ended.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)

    def release(self) -> None:
        """Stops watching: the run has ended in the ordinary way."""
        self._once.acquire(blocking=False)
        self._done = True
        self._released.set()
        _watched.discard(self)
        if not _watched:
            _SigtermHandler.remove()

    def _watch(self) -> None:
        while not self._released.wait(_POLL_S):
            self.poll()

    def poll(self) -> None:
        """Looks whether `train()` is still on the stack of its thread."""
        if not self._done and self._frame_id is not None and self._gone():
            self._end()

    def _gone(self) -> bool:
        """Whether a walk down the whole stack of the thread did not meet `train()`.

        The thread may run on while another walks its stack, and a generator that is left meanwhile has no caller any
        more: only a walk that arrives at the thread's outermost frame has seen everything.
        """
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return True  # the thread has ended
        last = None
        while frame is not None:
            last = id(frame)
            if last == self._frame_id and frame.f_code is self._code:  # an address alone may be another frame's by now
                return False
            frame = frame.f_back
        return last == self._bottom_id

    def _end(self) -> None:
        error = self._uncaught()
        if error is None:
            # Outside of train(), in a loop of one's own, there is no saying that anything went wrong.
            status, reason = ("failed", UNSEEN) if self._frame_id is not None else ("stopped", _NO_TRAIN)
            self._call("failed" if self.signal else status, self.signal or reason)
        else:
            self._call(*told_by(error))

    def _call(self, status: str, reason: str) -> None:
        alone = _finishing.acquire(timeout=_PATIENCE_S)
        try:
            if self._once.acquire(blocking=False):
                self._done = True
                self._released.set()
                self._finish(status, reason)
        finally:
            if alone:
                _finishing.release()

    def _uncaught(self) -> BaseException | None:
        """The exception that nobody caught, if it came through our `train()`."""
        error = getattr(sys, "last_value", None)
        trace = getattr(error, "__traceback__", None) if id(error) != self._error_before else None
        while trace is not None:
            # By identity: an earlier exception of a notebook may have come through another call of `train()`.
            frame = trace.tb_frame
            if self._frame_id is None or (id(frame) == self._frame_id and frame.f_code is self._code):
                return error
            trace = trace.tb_next
        return None


def told_by(error: BaseException) -> tuple[str, str]:
    """The status of a run that an exception ended, and the reason."""
    text = str(error).splitlines()
    reason = f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed", reason


class _SigtermHandler:
    """What SIGTERM does while runs are recorded: one handler for all of them, whichever order they end in.

    Args:
        previous: The handler that was there before.
    """

    def __init__(self, previous: Any) -> None:
        self._previous = previous

    @classmethod
    def install(cls) -> None:
        """Takes over SIGTERM, unless that is done, or not possible: in another thread, or where it is ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        # None: a handler that was not installed from Python and could not be restored.
        if previous not in (None, signal.SIG_IGN) and not isinstance(previous, cls):
            signal.signal(signal.SIGTERM, cls(previous))

    @classmethod
    def remove(cls) -> None:
        """Puts back what was there, unless someone else has taken over since. Python allows it in the main thread only."""
        handler = signal.getsignal(signal.SIGTERM)
        if isinstance(handler, cls) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler._previous)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # A forked data-loading worker inherits this handler, but the runs are not its own.
        runs = [ending for ending in _watched if ending._process == os.getpid()]
        if callable(self._previous):
            # Somebody else decides what SIGTERM means, such as a last checkpoint and an orderly end.
            for ending in runs:
                ending.signal = "SIGTERM"
            self._previous(number, frame)
            return
        for ending in runs:
            ending._call("failed", "SIGTERM")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


_watched: weakref.WeakSet[Ending] = weakref.WeakSet()
# Held while a run is ended, so that one which goes on in the same files waits until they are whole. Never for long: a
# signal may have interrupted what the other thread needs.
_finishing = threading.RLock()


def sweep(state: object) -> None:
    """Ends the runs whose `train()` has gone unnoticed; called as another begins.

    A frame's address is used again, so a run that seems to be in the very frame that begins now is over, unless it has
    the same state: then it is another recorder of the same training.
    """
    frame_id, _, _ = _training_frame()
    for ending in list(_watched):
        if frame_id is not None and ending._frame_id == frame_id and ending._state() is not state:
            ending._end()
        else:
            ending.poll()
    # A watching thread may have been first, and still be writing.
    if _finishing.acquire(timeout=_PATIENCE_S):
        _finishing.release()


def _at_exit() -> None:
    for ending in list(_watched):
        if os.getpid() == ending._process and not ending._done:
            ending._end()


def _training_frame() -> tuple[int | None, CodeType | None, int | None]:
    """The innermost frame of a method `train` of a trainer, its code, and the thread's outermost frame.

    By identity, so that nothing of them is kept alive. Innermost, since a training may begin inside another.
    """
    found = code = last = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        last = id(frame)
        if found is None and frame.f_code.co_name == "train" and hasattr(frame.f_locals.get("self"), "callback_handler"):
            found, code = last, frame.f_code
        frame = frame.f_back
    return found, code, last
