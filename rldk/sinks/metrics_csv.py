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
from ..text import cell

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
        self._last_names: tuple[str, ...] = ()  # metrics of the row before, and where their columns are
        self._indices: list[int] = []
        self._in_order = True  # whether those are the first ones
        self._held: dict[int, Event] = {}  # by step, in order; rows that are not in the file yet
        if resume_at is not None:
            self._take_over(resume_at)

    def write(self, event: Event) -> None:
        """Adds the event's metrics to the row of its step."""
        step, metrics = event.step, event.metrics
        if not metrics:
            return
        held = self._held.get(step)
        if held is not None:
            self._held[step] = held._replace(metrics={**held.metrics, **metrics})
            return
        self._held[step] = event
        if len(self._held) > _ROWS_HELD:
            self._flush(_ROWS_A_FLUSH)

    def _flush(self, count: int) -> None:
        """Writes the oldest rows. The newest stay, since a checkpoint's analysis comes a few steps late."""
        steps = list(self._held)[:count]
        rows = [self._row(self._held.pop(step)) for step in steps]
        width = len(self._header)
        block = _lines(rows, width)
        try:
            if width != self._in_file or not self.path.exists():
                self._rewrite(width)
            self._append(block)
        except OSError:
            self.lost += len(steps)
            raise

    def _row(self, event: Event) -> list[Any]:
        """The event's cells, each where its column is."""
        names = tuple(event.metrics)
        if names != self._last_names:
            self._last_names = names
            self._indices = [self._column(name) for name in names]
            self._in_order = self._indices == [*range(len(_FIXED), len(_FIXED) + len(names))]
        if self._in_order:
            return [event.step, event.wall_time, *event.metrics.values()]  # `_line` fills it up
        row: list[Any] = [None] * len(self._header)
        row[0], row[1] = event.step, event.wall_time
        for index, value in zip(self._indices, event.metrics.values()):
            row[index] = value
        return row

    def _column(self, name: str) -> int:
        """Where the metric's column is; a metric that is new gets the next one."""
        index = self._columns.get(name)
        if index is None:
            title = _title(name)
            index = self._unclaimed.pop(title, None)
            if index is None:
                index = len(self._header)
                self._header.append(title)
            self._columns[name] = index
        return index

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

    def alert(self, alert: Alert) -> None:
        """Nothing: alerts have their own file."""

    def close(self) -> None:
        """Writes the rows that are still in memory."""
        if self._held:
            self._flush(len(self._held))


def _lines(rows: list[list[Any]], width: int) -> bytes:
    if all(len(row) == width for row in rows):
        block = orjson.dumps(rows)
        if b"null" not in block:
            return block[2:-2].replace(b"],[", b"\n") + b"\n"
    return b"".join([_line(row, width) for row in rows])


def _line(row: list[Any], width: int) -> bytes:
    row.extend([None] * (width - len(row)))
    # JSON's number format is CSV's. A null is an empty cell, unless it stands for NaN or Inf.
    line = orjson.dumps(row)[1:-1]
    nulls = line.count(b"null")
    if not nulls:
        return line + b"\n"
    if nulls == row.count(None):
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
    """The column's title."""
    return f"metrics/{name}" if name in _FIXED else cell(name)


def _csv_line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
