"""Weights & Biases' own files: `wandb/offline-run-*/run-*.wandb`, as a run writes them whether it is offline or not.

wandb must be installed, since its records are described there; it is not started, and nothing is sent.
"""

from __future__ import annotations

import importlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exceptions import MissingLibraryError
from ._lines import Damage, parse, whole_number
from ._points import TOTALS, StoredRow
from ._tracked import StoredRun, Tracked

__all__ = ["WandbFile", "wandb_records"]

_MAGIC = b":W&B"
_HEADER = 7
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_LONGEST = 1 << 26


class WandbFile(Tracked):
    """One run. "Line" numbers are those of the records."""

    name = "wandb"
    rank = 52
    looked_for = "wandb's run-*.wandb"

    @classmethod
    def find(cls, folder: Path) -> list[Path]:
        """The runs in wandb's folder, whichever of its levels it is."""
        for place in ("", "*/", "wandb/*/", "*/*/"):
            # The newest run is there twice: wandb keeps a link `latest-run` to it, which is sorted before it.
            files = {path.resolve(): path for path in sorted(folder.glob(f"{place}*.wandb")) if path.is_file()}
            if files:
                return sorted(files.values())
        return []

    @classmethod
    def claims(cls, path: Path, head: bytes) -> bool:
        """By its first bytes."""
        return head.startswith(_MAGIC)

    @classmethod
    def refusal(cls, path: Path, head: bytes) -> str:
        """For a file of that name that begins otherwise."""
        return f"{path} is no file of wandb's, although it is called like one" if path.suffix == ".wandb" else ""

    def runs(self) -> list[StoredRun]:
        """The one run, with the config that stands before its first log."""
        name, key = "", ""
        config: dict[str, Any] = {}
        for _, record in _parsed(self.path, Damage(self.path)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
                name, key = run.display_name or name, run.run_id or key
                config.update(_items(run.config.update))
            elif kind == "config":
                config.update(_items(record.config.update))
            elif kind == "history":
                break
        return [StoredRun(None, name or key, key, arguments=config)]

    def stored(self, run: StoredRun) -> Iterator[StoredRow]:
        """Yields the run's history."""
        totals: dict[str, Any] = {}
        for number, record in _parsed(self.path, self.damage):
            kind = record.WhichOneof("record_type")
            if kind == "summary":
                # transformers gives the totals at the end to the summary, just before a history with little else.
                totals.update(_items(item for item in record.summary.update if item.key in TOTALS))
            if kind != "history":
                continue
            # wandb keeps no order; in any other, `lr` and `learning_rate` of one row would be called now so, now so.
            values = dict(sorted(_items(record.history.item).items()))
            step = whole_number(values.pop("_step", None))
            if step is None and record.history.HasField("step"):
                step = record.history.step.num
            seconds = values.pop("_timestamp", None)
            values.pop("_runtime", None)
            if totals and not values.keys() - _AT_THE_END:
                values, totals = {**totals, **values}, {}
            yield StoredRow(number, step, float(seconds) if isinstance(seconds, (int, float)) else math.nan, values)


_AT_THE_END = frozenset({"train/epoch", "train/global_step", "train/num_input_tokens_seen"})


def _items(items: Any) -> dict[str, Any]:
    """Names and values of a record: each has a name of one part or several, and a value in JSON."""
    found = {}
    for item in items:
        try:
            found[item.key or ".".join(item.nested_key)] = parse(item.value_json.encode())
        except ValueError:
            continue  # what is no JSON is no number
    return found


def _parsed(path: Path, damage: Damage) -> Iterator[tuple[int, Any]]:
    """The records as wandb's own classes.

    Raises:
        MissingLibraryError: If wandb is not installed.
    """
    try:
        # Late: wandb takes a second, and few logs need it. By name: whether it is installed or not, its types are not known.
        parsed = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString
        malformed = importlib.import_module("google.protobuf.message").DecodeError
    except Exception as error:  # a wandb that does not fit its protobuf raises what it likes
        raise MissingLibraryError(f"reading {path} needs wandb: pip install wandb ({type(error).__name__}: {error})") from error
    for number, data in wandb_records(path, damage):
        try:
            yield number, parsed(data)
        except malformed:
            damage.add(number)


def wandb_records(path: Path, damage: Damage) -> Iterator[tuple[int, bytes]]:
    """Yields the records of a file by their number: LevelDB's log format behind a header of seven bytes.

    Records are cut into parts, so that none crosses a block of 32 KiB. A torn end is no damage.

    Raises:
        OSError: If the file cannot be read, or is none of wandb's.
    """
    number = 0
    with open(path, "rb") as file:
        block = file.read(_BLOCK)
        if not block.startswith(_MAGIC):
            raise OSError("it does not begin as a file of wandb's does")
        at = _HEADER
        parts: list[bytes] | None = None
        while block:
            while len(block) - at >= _HEADER:
                checksum, length, kind = struct.unpack_from("<IHB", block, at)
                at += _HEADER
                if kind == 0 and length == 0:
                    break  # room that was left empty
                data, at = block[at : at + length], at + length
                if len(data) < length and len(block) < _BLOCK:
                    return  # torn
                if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
                    number += 1
                    damage.add(number)
                    parts = None
                    if len(data) < length:
                        break  # of this block nothing more can be told
                    continue
                if kind in (_FULL, _FIRST):
                    parts = []
                if parts is None:
                    continue  # its beginning was damaged
                parts.append(data)
                if sum(map(len, parts)) > _LONGEST:
                    parts = None
                elif kind in (_FULL, _LAST):
                    number += 1
                    yield number, b"".join(parts)
                    parts = None
            block, at = file.read(_BLOCK), 0
