"""metrics.csv: one row a logged step, one column a metric, complete columns even for keys that appear late.

Rows are numbers only, so a late column is a new header and some commas: the file is rewritten block by block, at most
once a flush, however many columns came. What is logged at one step (training, evaluation, checkpoint) is one row.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import orjson

from ..event import Alert, Event
from ..text import clean

__all__ = ["MetricsCsvSink"]

_FIXED = ("step", "wall_time")
_ROWS_HELD = 320
_ROWS_A_FLUSH = 256
_BLOCK = 1 << 20


class MetricsCsvSink:
    """Writes `{run_id}_metrics.csv`, a few hundred rows at a time.

    After a kill the file lacks the last rows; `rldk.rebuild` makes it whole from the event stream.

    Args:
        path: The file.
        resume_at: None for a new file. Otherwise the step that a resumed run goes on from: rows up to it stay.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        self.path = path
        self.lost = 0
        self._header = list(_FIXED)
        self._columns: dict[str, int] = {}  # metric -> where its column is
        self._unclaimed: dict[str, int] = {}  # columns of the run's earlier part, whose metrics have yet to come
        self._in_file = 0  # columns that the file's header has; 0 while there is no file of ours
        self._rows: dict[int, list[Any]] = {}  # by step, in order; rows that are not in the file yet
        if resume_at is not None:
            self._take_over(resume_at)

    def write(self, event: Event) -> None:
        """Adds the event's metrics to the row of its step."""
        if not event.metrics:
            return
        failure = None
        row = self._rows.get(event.step)
        if row is None:
            if len(self._rows) >= _ROWS_HELD:
                try:
                    self._flush(_ROWS_A_FLUSH)
                except OSError as error:
                    failure = error  # it cost earlier rows, and need not cost this one
            row = self._rows[event.step] = [event.step, event.wall_time]
        columns = self._columns
        for name, value in event.metrics.items():
            index = columns.get(name)
            if index is None:
                index = self._new_column(name)
            if index == len(row):
                row.append(value)
            else:
                if index > len(row):
                    row.extend([None] * (index + 1 - len(row)))
                row[index] = value
        if failure is not None:
            raise failure

    def _new_column(self, name: str) -> int:
        title = _title(name)
        index = self._unclaimed.pop(title, None)
        if index is None:
            index = len(self._header)
            self._header.append(title)
        self._columns[name] = index
        return index

    def _flush(self, count: int) -> None:
        """Writes the oldest rows. The newest stay, since a checkpoint's analysis comes a few steps late."""
        width = len(self._header)
        steps = list(self._rows)[:count]
        block = b"".join(_line(self._rows.pop(step), width) for step in steps)
        try:
            if width != self._in_file or not self.path.exists():
                self._rewrite(width)
            self._append(block)
        except OSError:
            self.lost += len(steps)
            raise

    def _append(self, block: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                rest = memoryview(block)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                os.ftruncate(file.fileno(), size)  # half a row would run into the next one
                raise

    def _rewrite(self, width: int) -> None:
        """Gives the file a header of `width` columns and its old rows the commas that they lack."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as new:
                new.write(_csv_line(self._header))
                if self._in_file and self.path.exists():
                    commas = b"," * (width - self._in_file) + b"\n"
                    with open(self.path, "rb") as old:
                        old.readline()
                        while block := old.read(_BLOCK):
                            new.write(block.replace(b"\n", commas))
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._in_file = width

    def _take_over(self, resume_at: int) -> None:
        """Keeps the rows of an earlier part of the run, up to the step that it goes on from."""
        try:
            with open(self.path, newline="", encoding="utf-8") as old:
                rows = csv.reader(old)
                header = next(rows, None)
                if not header or tuple(header[:2]) != _FIXED:
                    return
                kept = (row for row in rows if len(row) == len(header) and _step_of(row) <= resume_at)
                temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
                with open(temporary, "w", newline="", encoding="utf-8") as new:
                    writer = csv.writer(new, lineterminator="\n")
                    writer.writerow(header)
                    writer.writerows(kept)
            os.replace(temporary, self.path)
        except (OSError, csv.Error, UnicodeDecodeError):
            # No earlier file, or none that is ours: a new one begins, and the events still have everything.
            return
        self._header, self._in_file = header, len(header)
        self._unclaimed = {title: index for index, title in enumerate(header) if index >= len(_FIXED)}

    def alert(self, alert: Alert, alerts: list[Alert]) -> None:
        """Nothing: alerts have their own file."""

    def close(self) -> None:
        """Writes the rows that are still in memory."""
        if self._rows:
            self._flush(len(self._rows))


def _line(row: list[Any], width: int) -> bytes:
    row.extend([None] * (width - len(row)))
    # JSON's number format is CSV's. A null is an empty cell, unless it stands for NaN or Inf.
    line = orjson.dumps(row)[1:-1]
    if line.count(b"null") == row.count(None):
        return line.replace(b"null", b"") + b"\n"
    return b",".join(_cell(value) for value in row) + b"\n"


def _step_of(row: list[str]) -> float:
    try:
        return float(row[0])
    except ValueError:
        return math.inf


def _cell(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, float) and not math.isfinite(value):
        return b"nan" if value != value else b"inf" if value > 0 else b"-inf"
    return orjson.dumps(value)


def _title(name: str) -> str:
    """The column's title. A name that a spreadsheet would run as a formula gets an apostrophe in front."""
    if name in _FIXED:
        return f"metrics/{name}"
    title = clean(name.encode("utf-8", "replace").decode("utf-8"))
    return "'" + title if title[:1] in ("=", "+", "-", "@") else title


def _csv_line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
