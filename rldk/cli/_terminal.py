"""A terminal that is drawn on for a while and given back as it was, whatever ends it.

Keys are read one by one where stdin is a terminal. Ctrl-C, SIGTERM and a window that closes (SIGHUP) end the drawing in the
ordinary way; Ctrl-Z gives the terminal back until the job goes on; a resize draws again at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

try:  # absent on Windows, where only Ctrl-C ends the drawing
    import termios
    import tty
except ImportError:
    termios = tty = None  # type: ignore[assignment]  # asked for below

__all__ = ["Terminal"]

_ERASE_LINE = Control((ControlType.ERASE_IN_LINE, 2))

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
_REDRAWING = ("SIGWINCH",)
_QUIT = frozenset(b"qQ\x03\x04")


class Terminal:
    """Draws frames until it is told to end.

    Args:
        console: Where to.

    Attributes:
        quit: Whether a key or a signal asked for the end.
    """

    def __init__(self, console: Console) -> None:
        self.quit = False
        self._console = console
        self._shown: list[Text] | None = None  # None while the terminal is not ours
        self._size = (0, 0)
        self._keys = sys.stdin.fileno() if termios is not None and sys.stdin is not None and sys.stdin.isatty() else None
        self._modes: Any = None
        self._wake: tuple[int, int] | None = None
        self._resized = self._suspend = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Terminal]:
        """Takes the terminal over, and gives it back at the end."""
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        before = {name: signal.signal(getattr(signal, name), self._heard) for name in (*_ENDING, *_REDRAWING, "SIGTSTP")
                  if hasattr(signal, name)}
        old_wake = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            self._enter()
            yield self
        finally:
            # A terminal that is gone cannot be given back.
            with contextlib.suppress(OSError):
                self._leave()
            signal.set_wakeup_fd(old_wake)
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)
            for end in self._wake:
                os.close(end)

    def draw(self, lines: list[Text]) -> None:
        """Shows a frame. Lines that are on the screen already are not sent again: little goes over a slow line."""
        shown, size = self._shown, self._console.size
        if shown is None:
            return
        with self._console.capture() as captured:
            if size != self._size:
                self._console.control(Control.clear())
                shown = []
            for row in range(max(len(lines), len(shown))):
                line = lines[row] if row < len(lines) else Text()
                if row >= len(shown) or line != shown[row]:
                    self._console.control(Control.move_to(0, row), _ERASE_LINE)
                    self._console.print(line, end="", no_wrap=True, overflow="ignore", crop=True)
        self._shown, self._size = lines, size
        self._send(captured.get())

    def _send(self, text: str) -> None:
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except OSError:
            self.quit = True  # the window was closed

    def wait(self, seconds: float, busy: Callable[[], bool] | None = None) -> None:
        """Waits for a key, a signal, or the time to pass; a resize ends the waiting too.

        Args:
            seconds: How long at most.
            busy: Called again and again in place of sleeping, as long as it returns True.
        """
        deadline = time.monotonic() + seconds
        while not self.quit:
            working = busy is not None and busy()
            left = deadline - time.monotonic()
            if left <= 0:
                left = 0.0
            self._listen(0.0 if working else left)
            if self._suspend:
                self._stop_for_a_while()
            if self._resized or time.monotonic() >= deadline:
                self._resized = False
                return

    def _listen(self, seconds: float) -> None:
        assert self._wake is not None
        sources = [self._wake[0]] + ([self._keys] if self._keys is not None else [])
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._wake[0] in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)
        if self._keys in ready and self._keys is not None:
            try:
                pressed = os.read(self._keys, 1024)
            except OSError:
                pressed = b""
            if not pressed:
                self._keys = None  # the other end is gone; a signal says so too
            self.quit = self.quit or bool(_QUIT.intersection(pressed))

    def _heard(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name in _ENDING:
            self.quit = True
        elif name == "SIGTSTP":
            self._suspend = True
        else:
            self._resized = True

    def _enter(self) -> None:
        if self._keys is not None:
            self._modes = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSANOW)
        # The other screen: frames leave no trace in what can be scrolled back to.
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self._shown, self._size = [], (0, 0)

    def _leave(self) -> None:
        entered, self._shown = self._shown is not None, None
        try:
            if entered:
                self._console.show_cursor(True)
                self._console.set_alt_screen(False)
        finally:
            modes, self._modes = self._modes, None
            if modes is not None:
                with contextlib.suppress(termios.error):  # it is gone
                    termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, modes)

    def _stop_for_a_while(self) -> None:
        """Ctrl-Z: the shell gets its terminal, until `fg`."""
        self._suspend = False
        self._leave()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here the job goes on.
        signal.signal(signal.SIGTSTP, ours)
        self._enter()
        self._resized = True
