"""Notices that a run has gone silent, while it is silent: a thread that says so when no hook has been called for long.

It says how long, and where the training thread is; whether that is a stall is for the detector to judge.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ._guard import Guard

__all__ = ["Silence"]

_FRAMES = 6


class Silence:
    """Watches for silence.

    Args:
        limit: Seconds of silence after which it speaks; again after as many more, and from ten times that at each doubling.
        speak: Called in the watching thread with the seconds and where the training thread is.
        guard: Catches what goes wrong in `speak`.
    """

    def __init__(self, limit: float, speak: Callable[[float, str], None], guard: Guard) -> None:
        self._limit = limit
        self._speak = speak
        self._guard = guard
        self._training_thread = threading.get_ident()
        self._stop = threading.Event()
        self.beat = time.perf_counter()  # set by whoever sees a sign of life
        # A process that may have no more threads is trained in all the same.
        guard.call("watch for silence", threading.Thread(target=self._watch, name="rldk-silence", daemon=True).start)

    def stop(self) -> None:
        """Ends the thread, without waiting for it."""
        self._stop.set()

    def _watch(self) -> None:
        said = 0.0  # the beat that was spoken of
        next_limit = self._limit
        # Any limit that a user may give: 0 must not spin, and one beyond what a wait can take must not end the thread.
        pause = min(max(self._limit / 10, 0.05), 60.0)
        while not self._stop.wait(pause):
            beat = self.beat
            seconds = time.perf_counter() - beat
            if beat != said:
                next_limit = self._limit
            if seconds > next_limit:
                said, next_limit = beat, seconds + self._limit if seconds < 10 * self._limit else 2 * seconds
                self._guard.call("watch for silence", self._speak, seconds, self._where())

    def _where(self) -> str:
        """The innermost calls of the training thread, innermost first."""
        frame = sys._current_frames().get(self._training_thread)
        calls: list[str] = []
        while frame is not None and len(calls) < _FRAMES:
            calls.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        return ", called from ".join(calls)
