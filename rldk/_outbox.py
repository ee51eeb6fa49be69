"""A run's files on their way to somewhere else: which have changed since they were sent, and copies that are whole.

A copy of the stream or the CSV ends with a whole line, whatever is being written to them meanwhile. What looks like a
secret is taken out of the copies, since text from elsewhere (an exception, a note) stands in them too. The run's own files
are only read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import orjson

from .environment import redact
from .runfiles import RunFiles

__all__ = ["Outbox", "Stamp"]

Stamp = tuple[int, int]  # when a file was changed, in nanoseconds, and its size in bytes

_LINES = (".jsonl", ".csv")
# What `redact` looks for in a text begins with one of them; most lines have none, and this is a hundred times quicker.
_SUSPICIOUS = (b"hf_", b"sk-", b"://")


class Outbox:
    """The files of a run, and what of them has been sent.

    Args:
        files: Where they are.
        run_id: The run. Copies are named after it, whatever the stream is called here (`event_log_path`).

    Attributes:
        earlier: A copy of the stream as it was recorded elsewhere, on a machine that is gone: what the stream here goes on
            from, and does not have.
    """

    def __init__(self, files: RunFiles, run_id: str) -> None:
        named = RunFiles.of("", run_id)
        self._paths = {name.name: path for name, path in zip(named, files)}
        self._stream = named.events.name
        # A stream of another name may be shared by several runs, and each is sent to a folder of its own.
        self._only = b"" if files.events.name == self._stream else orjson.dumps(run_id)
        self._sent: dict[str, Stamp] = {}
        self.stream_name = self._stream
        self.manifest_name = named.manifest.name
        self.manifest = files.manifest
        self.folder = files.report.parent
        self.earlier: Path | None = None

    def unsent(self) -> dict[str, Stamp]:
        """The files that have changed since they were sent, by name. A file that is missing or empty is not among them."""
        found: dict[str, Stamp] = {}
        for name, path in self._paths.items():
            try:
                status = path.stat()
            except OSError:
                continue
            stamp = (status.st_mtime_ns, status.st_size)
            if status.st_size and self._sent.get(name) != stamp:
                found[name] = stamp
        return found

    def sent(self, stamps: dict[str, Stamp]) -> None:
        """Notes what has been sent, as `unsent` said it before the copies were made."""
        self._sent.update(stamps)

    def forget(self) -> None:
        """Takes everything for unsent: it is not known any more what is there."""
        self._sent.clear()

    def stage(self, names: Iterable[str], folder: Path) -> list[Path]:
        """Copies files into a folder; those of which there is nothing to send, or that have gone, are left out.

        Raises:
            OSError: If a file cannot be read, or the folder not be written.
        """
        staged = []
        for name in names:
            target = folder / name
            try:
                with open(self._paths[name], "rb") as source, open(target, "wb") as copy:
                    if name.endswith(_LINES):
                        self._copy_lines(name, source, copy)
                    else:
                        copy.write(_public(source.read()))
            except FileNotFoundError:
                continue
            if target.stat().st_size:
                staged.append(target)
        return staged

    def _copy_lines(self, name: str, source: BinaryIO, copy: BinaryIO) -> None:
        only = self._only if name == self._stream else b""
        begun = name != self._stream or self.earlier is None
        for line in source:
            if not line.endswith(b"\n"):
                return  # it is being written
            if only in line:
                line = _public(line)
                if not begun:
                    self._copy_earlier(line, copy)
                    begun = True
                copy.write(line)

    def _copy_earlier(self, first: bytes, copy: BinaryIO) -> None:
        """What came before the first line that is here."""
        assert self.earlier is not None
        with open(self.earlier, "rb") as lines:
            for line in lines:
                if line == first:
                    return
                copy.write(line if line.endswith(b"\n") else line + b"\n")


def _public(text: bytes) -> bytes:
    if not any(mark in text for mark in _SUSPICIOUS):
        return text
    redacted: str = redact(text.decode("utf-8", "surrogateescape"))
    return redacted.encode("utf-8", "surrogateescape")
