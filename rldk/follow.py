"""Follows a file that somebody else is writing: whole new lines, as they come.

Nothing is assumed of the writer. The file may not be there yet, its last line may be torn, it may be truncated, or
replaced by another one (rotation, a synchronised copy). Constant memory: at most one block is read at a time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

__all__ = ["Chunk", "LineFollower"]

_BLOCK = 1 << 20
# A line of ours has a few kilobytes. What is longer than this was never a record, and is passed over as one bad line.
_LONGEST_LINE = 1 << 24
# What stood just before our place is looked at again: a file that was truncated and has grown past it is another file.
_FINGERPRINT = 64


class Chunk(NamedTuple):
    """What one look at the file gave.

    Attributes:
        lines: Whole lines, without their newlines.
        first: Number of the first of them in its file, from 1.
        fresh: Whether they are the beginning of a file: the first one, one that replaced it, or the same one emptied.
    """

    lines: list[bytes]
    first: int
    fresh: bool


class LineFollower:
    """Reads a growing file.

    Our place is always the end of a whole line, so that a writer may still repair the torn line behind it.

    Args:
        path: The file; it need not exist yet.

    Attributes:
        position: Bytes of the present file that have been taken.
        size: Its size when last looked at.
        modified: When it was last written to, in seconds since the epoch; 0 before it exists.
        missing: Whether there is no such file now.
        restarts: How often another file, or an emptied one, was begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = self.size = 0
        self.modified = 0.0
        self.missing = True
        self.restarts = 0
        self._file: BinaryIO | None = None
        self._identity: tuple[int, int] | None = None
        self._before = b""  # the bytes that end at `position`
        self._line = 1
        self._fresh = True
        self._overlong = False

    def read(self) -> Chunk:
        """What has come since the last call, at most a megabyte of it; no lines if nothing has.

        Raises:
            OSError: If the file is there and cannot be read.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            # Gone, or not there yet. What is still open may have an unread rest.
            self.missing = True
            return self._more() if self._file is not None else Chunk([], self._line, False)
        self.missing = False
        unchanged = self.modified == status.st_mtime and self.size == status.st_size == self.position
        self.modified = status.st_mtime
        if self._file is not None and (status.st_dev, status.st_ino) != self._identity:
            rest = self._more()
            if rest.lines:
                return rest  # the old file first, to its end
            self._let_go()
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  # it stays open: a rotated file has a rest
            opened = os.fstat(self._file.fileno())
            self._identity = (opened.st_dev, opened.st_ino)
            self._start()
        elif unchanged:
            return Chunk([], self._line, False)  # as it was: the common case, and one system call
        self.size = status.st_size
        if self.size < self.position or not self._is_same():
            self._start()
        return self._more()

    @property
    def progress(self) -> float:
        """The share of the present file that has been taken."""
        return self.position / self.size if self.size else 1.0

    def close(self) -> None:
        """Lets go of the file."""
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _start(self) -> None:
        self.restarts += self.position > 0
        self.position, self._before, self._line, self._fresh, self._overlong = 0, b"", 1, True, False

    def _is_same(self) -> bool:
        if self._file is None or not self._before:
            return True
        self._file.seek(self.position - len(self._before))
        return self._file.read(len(self._before)) == self._before

    def _more(self) -> Chunk:
        """The next whole lines of the open file."""
        assert self._file is not None
        block = self._block()
        if block.startswith(b"\n") and self._before[-1:] not in (b"", b"\n"):
            self._advance(block[:1])  # the newline that the last record had lacked
            block = block[1:]
        end = block.rfind(b"\n") + 1
        if not end and len(block) >= _LONGEST_LINE:
            # Passed over without being kept; the rest of the line is, too, up to its newline.
            self._overlong = True
            self._advance(block)
            return Chunk([], self._line, False)
        if _is_whole(block[end:]):
            end = len(block)  # a last line that lacks only its newline: no beginning of a record is a record
        if not end:
            return Chunk([], self._line, False)
        taken = block[:end]
        self._advance(taken)
        lines = taken.split(b"\n")
        if taken.endswith(b"\n"):
            lines.pop()
        if self._overlong:
            lines[0], self._overlong = b"{", False  # counts as one malformed line
        chunk = Chunk(lines, self._line, self._fresh)
        self._line += len(lines)
        self._fresh = False
        return chunk

    def _block(self) -> bytes:
        """The next block; a longer one if it holds no whole line."""
        assert self._file is not None
        self._file.seek(self.position)
        block = self._file.read(_BLOCK)
        while b"\n" not in block and len(block) < _LONGEST_LINE:
            more = self._file.read(_BLOCK)
            if not more:
                break
            block += more
        return block

    def _advance(self, taken: bytes) -> None:
        self.position += len(taken)
        self._before = (self._before + taken[-_FINGERPRINT:])[-_FINGERPRINT:]


def _is_whole(fragment: bytes) -> bool:
    if not fragment.rstrip().endswith(b"}"):
        return False
    try:
        return isinstance(orjson.loads(fragment), dict)
    except orjson.JSONDecodeError:
        return False
