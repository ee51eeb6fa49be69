"""TensorBoard's event files: `events.out.tfevents.*`. A folder is one run, as in TensorBoard: its files are read in their order.

tensorboard must be installed, whose own loader reads them, one record after the other.
"""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..event import sanitised
from ..exceptions import MissingLibraryError
from ._lines import Damage, parse
from ._points import Point, StoredRow, gathered
from ._tracked import StoredRun, Tracked

_PART = "events.out.tfevents."
_MARK = b"brain.Event:"
_FRAME = 16  # bytes around a record: length, checksum, and another checksum
# transformers writes the trainer's arguments as a text of this name.
_ARGUMENTS = "args/text_summary"


class TensorboardFolder(Tracked):
    """A folder, or one of its files alone. "Line" numbers are those of the records, over all files."""

    name = "tensorboard"
    rank = 53
    looked_for = "TensorBoard's events.out.tfevents.*"

    @classmethod
    def find(cls, folder: Path) -> list[Path]:
        """The folders with event files: this one, else those one or two levels below."""
        for place in ("", "*/", "*/*/"):
            found = {path.parent: None for path in sorted(folder.glob(f"{place}*{_PART}*")) if path.is_file()}
            if found:
                return list(found)
        return []

    @classmethod
    def claims(cls, path: Path, head: bytes) -> bool:
        """By the version in a file's first record; a folder by its files."""
        return bool(_files(path)) if path.is_dir() else _MARK in head

    @classmethod
    def refusal(cls, path: Path, head: bytes) -> str:
        """For a file of that name that begins otherwise."""
        return f"{path} is no event file of TensorBoard's, although it is called like one" if _PART in path.name else ""

    @classmethod
    def named_after(cls, path: Path) -> Path | None:
        """The folder of the file: the files of all runs are called alike."""
        return path.resolve() if path.is_dir() else path.resolve().parent if _PART in path.name else None

    @classmethod
    def modified(cls, path: Path) -> float:
        """When one of the files was written to last."""
        return max(map(super().modified, _files(path) if path.is_dir() else [path]), default=0.0)

    def runs(self) -> list[StoredRun]:
        """The one run, with the arguments that stand before its first number."""
        for _, _, name, value in _values(self.path, Damage(self.path)):
            if name == _ARGUMENTS and value.tensor.string_val:
                try:
                    found = parse(value.tensor.string_val[0])
                except ValueError:
                    break
                return [StoredRun(arguments=found if isinstance(found, dict) else {})]
            if _number(value) is not None:
                break
        return [StoredRun()]

    def stored(self, run: StoredRun) -> Iterator[StoredRow]:
        """Yields what was written at one step, in the order in which it was written."""
        yield from gathered(self._points())

    def _points(self) -> Iterator[Point]:
        for number, event, name, value in _values(self.path, self.damage):
            found = _number(value)
            if found is not None:
                yield Point(number, event.step, event.wall_time, name, found)


def _files(folder: Path) -> list[Path]:
    """The event files of a folder, by the second that stands in their names."""
    return sorted((path for path in folder.glob(f"*{_PART}*") if path.is_file()), key=_order)


def _order(path: Path) -> list[tuple[int, str]]:
    """Names with their numbers as numbers: the tenth file of a process comes after the second."""
    return [(int(part) if part.isdecimal() and part.isascii() and len(part) < 20 else -1, part) for part in re.split(r"(\d+)", path.name)]


def _number(value: Any) -> float | None:
    """The number of a scalar: TensorFlow 2 writes it as a tensor, everybody else as it is."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name != "scalars":
        return None
    tensor = value.tensor
    for numbers in (tensor.float_val, tensor.double_val, tensor.int_val, tensor.int64_val):
        if len(numbers) == 1:
            return float(numbers[0])
    content = tensor.tensor_content
    if len(content) == 4 and tensor.dtype == 1:
        return float(struct.unpack("<f", content)[0])
    return float(struct.unpack("<d", content)[0]) if len(content) == 8 and tensor.dtype == 2 else None


def _values(path: Path, damage: Damage) -> Iterator[tuple[int, Any, str, Any]]:
    """Yields the values in a run's files: number of the record, the record, tag and value.

    Raises:
        MissingLibraryError: If tensorboard is not installed.
        OSError: If a file cannot be read.
    """
    try:
        # Late: tensorboard takes a second, and few logs need it. By name: whether it is installed or not, its types are not known.
        load = importlib.import_module("tensorboard.backend.event_processing.event_file_loader").RawEventFileLoader
        parsed = importlib.import_module("tensorboard.compat.proto.event_pb2").Event.FromString
        malformed = importlib.import_module("google.protobuf.message").DecodeError
    except Exception as error:  # one that does not fit its protobuf or numpy raises what it likes
        raise MissingLibraryError(
            f"reading {path} needs tensorboard: pip install tensorboard ({type(error).__name__}: {error})"
        ) from error
    number = 0
    plugins: dict[str, Any] = {}
    for file in _files(path) if path.is_dir() else [path]:
        taken = 0
        for record in load(str(file)).Load():
            number += 1
            taken += len(record) + _FRAME
            try:
                event = parsed(record)
            except malformed:
                damage.add(number)
                continue
            for value in event.summary.value:
                # Only the first value of a tag says what it is.
                if value.HasField("metadata"):
                    plugins.setdefault(value.tag, value.metadata)
                elif value.tag in plugins and value.HasField("tensor"):
                    value.metadata.CopyFrom(plugins[value.tag])
                yield number, event, str(sanitised(value.tag)), value
        if _is_damaged(file, taken):
            number += 1
            damage.add(number)


def _is_damaged(file: Path, taken: int) -> bool:
    """Whether the loader stopped at a record that is all there, and not at a torn end."""
    with open(file, "rb") as content:
        size = content.seek(0, 2)
        content.seek(taken)
        length = content.read(8)
    return len(length) == 8 and taken + struct.unpack("<Q", length)[0] + _FRAME <= size


