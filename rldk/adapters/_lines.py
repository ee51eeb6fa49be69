"""Reading lines of JSON from files that have been through something.

Malformed lines are skipped and counted, a torn last line is no error, and nothing in a file's bytes can raise
anything but `OSError`. Reads a bounded block at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ..event import sanitised
from ..remote import shown

__all__ = ["Damage", "parse", "python_json", "read_records", "records_of", "whole_number"]

_BUFFER = 1 << 18
_SHOWN = 5
_BOM = b"\xef\xbb\xbf"


class Damage:
    """Counts malformed lines of one file, and remembers the numbers of the first few."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.first: list[int] = []

    def add(self, line: int) -> None:
        """Counts one."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(line)

    def reset(self) -> None:
        """Forgets them, since the file is read again."""
        self.count = 0
        self.first.clear()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{shown(self.path)}: {self.count} malformed (line {', '.join(map(str, self.first))}{more})"


def parse(line: bytes) -> Any:
    """Parses one line of JSON; bare NaN and Infinity, which Python writes, are accepted.

    Raises:
        ValueError: If it is no JSON.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        # Only a line that could hold Python's NaN is worth a second, slower look.
        if b"NaN" not in line and b"Infinity" not in line:
            raise
        return python_json(line)


def python_json(content: bytes) -> Any:
    """Parses what Python's `json` writes, with values no wilder than orjson's.

    Integers beyond 64 bits become floats, and lone surrogates question marks: neither fits into a DataFrame.

    Raises:
        ValueError: If it is no JSON.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_int=_integer)
        return sanitised(value) if b"\\ud" in content.lower() else value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _integer(digits: str) -> int | float:
    # Twenty characters hold all of 64 bits; longer ones are not read as integers, Python refuses thousands of digits.
    number = int(digits) if len(digits) <= 20 else 2**64
    return number if -(2**63) <= number < 2**64 else float(digits)


def read_records(path: Path, damage: Damage) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and object for every line that holds a JSON object.

    Blank lines are skipped silently. The last line, if it does not parse and has no newline, is torn: not counted.

    Raises:
        OSError: If the file cannot be read.
    """
    loads = orjson.loads
    with open(path, "rb", buffering=_BUFFER) as file:
        for number, line in enumerate(file, 1):
            try:
                record = loads(line)
            except orjson.JSONDecodeError:
                record = _slowly(line, number, damage)
                if record is None:
                    continue
            if type(record) is dict:
                yield number, record
            else:
                damage.add(number)


def records_of(lines: Iterable[tuple[int, bytes]], damage: Damage) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and object of those lines that hold one. Each is whole: what does not parse is malformed."""
    for number, line in lines:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = _slowly(line.rstrip(b"\n") + b"\n", number, damage)
            if record is None:
                continue
        if type(record) is dict:
            yield number, record
        else:
            damage.add(number)


def _slowly(line: bytes, number: int, damage: Damage) -> Any:
    """A line that did not parse at once: blank, with a byte order mark, with a bare NaN, malformed or torn."""
    if number == 1:
        line = line.removeprefix(_BOM)
    if not line.strip():
        return None
    try:
        return parse(line)
    except ValueError:
        if line.endswith(b"\n"):
            damage.add(number)
        return None


def whole_number(value: Any) -> int | None:
    """A step as an int: from an int, or a float that is whole. None for anything else."""
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    if type(value) is float and math.isfinite(value) and value == int(value) and abs(value) < 2**63:
        return int(value)
    return None
