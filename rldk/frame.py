"""Events to a DataFrame: the one pivot, and the only module that knows pandas.

Values are packed as they come, spread over the columns a block at a time, and kept in one growing array a column, so
that a million events cost little more memory than the frame itself. Columns that appear late are complete; what was not
logged is NaN.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from .adapters import Row
from .timeline import is_resume

__all__ = ["FrameBuilder"]

_ROWS_A_BLOCK = 1024
_MAX_LAYOUTS = 1000
# What a packed row has before its metrics: where it stands in its block, and what is no metric.
_HEAD = "=iqdiii"
_HEAD_FIELDS = [("row", "=i4"), ("step", "=i8"), ("wall_time", "=f8"), ("phase", "=i4"), ("run", "=i4"), ("generation", "=i4")]


class _Layout:
    """Rows with the same metrics in the same order: a row is packed in one call."""

    __slots__ = ("columns", "data", "dtype", "pack")

    def __init__(self, columns: list[int]) -> None:
        self.columns = columns
        self.pack = struct.Struct(f"{_HEAD}{len(columns)}d").pack
        self.dtype = np.dtype([*_HEAD_FIELDS, ("values", "=f8", (len(columns),))])
        self.data = bytearray()


class _Run:
    """Where a run stands while its events are read in order."""

    __slots__ = ("code", "generation", "last_step", "name", "rewinds")

    def __init__(self, name: str | None, code: int) -> None:
        self.name = name
        self.code = code
        self.generation = 0
        self.last_step = -math.inf
        self.rewinds: list[tuple[int, int]] = []  # generation that begins, and the step that it goes on from


class FrameBuilder:
    """Gathers events and pivots them: one row an event, one column a metric.

    Overlaps are resolved when the frame is built: where a run went back to an earlier step (a resume), the newest
    recording of each step counts, and what a resumed run left behind beyond its checkpoint is dropped.
    """

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._columns: list[array[float]] = []
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._last_names: tuple[str, ...] | None = None
        self._layout = _Layout([])
        self._steps = array("q")
        self._wall_times = array("d")
        self._phases = array("i")
        self._phase_codes: dict[str, int] = {}
        self._run_codes = array("i")
        self._generations = array("i")
        self._runs: dict[str, _Run] = {}
        self._run = _Run(None, -1)
        self._in_block = 0
        self._stored = 0

    def __len__(self) -> int:
        return self._stored + self._in_block

    def extend(self, rows: Iterable[Row]) -> None:
        """Takes rows: step, wall_time, run_id, phase, metrics and notes of each event.

        Events without metrics make no row. One long loop over local names: it runs a million times.
        """
        run, layout, names, phase_codes = self._run, self._layout, self._last_names, self._phase_codes
        in_block = self._in_block
        for step, wall_time, run_id, phase, metrics, notes in rows:
            if run_id != run.name:
                run = self._runs.setdefault(run_id, _Run(run_id, len(self._runs)))
            if not metrics:
                if is_resume(metrics, notes):
                    run.generation += 1
                    run.rewinds.append((run.generation, step))
                    run.last_step = step
                continue
            if phase == "train":
                if step < run.last_step:
                    run.generation += 1
                run.last_step = step
            if phase not in phase_codes:
                phase_codes[phase] = len(phase_codes)
            these = tuple(metrics)
            if these != names:
                if these not in self._layouts and not all(map(_is_number, metrics.values())):
                    # A damaged line: what is no number gets no column, and no numbers no row.
                    metrics = {name: value for name, value in metrics.items() if _is_number(value)}
                    if not metrics:
                        continue
                    these = tuple(metrics)
                names, layout = these, self._layouts.get(these) or self._new_layout(these)
            head = in_block, step, wall_time, phase_codes[phase], run.code, run.generation
            try:
                layout.data += layout.pack(*head, *metrics.values())
            except (struct.error, OverflowError):  # a None, a huge integer, or what a damaged line has for a number
                numbers = {name: _float(value) for name, value in metrics.items() if _is_number(value)}
                if not numbers:
                    continue
                names = tuple(numbers)
                layout = self._layouts.get(names) or self._new_layout(names)
                layout.data += layout.pack(*head[:2], _float(wall_time), *head[3:], *numbers.values())
            in_block += 1
            if in_block == _ROWS_A_BLOCK:
                self._in_block, in_block = in_block, 0
                names = None if self._end_block() else names
        self._run, self._layout, self._last_names, self._in_block = run, layout, names, in_block

    def _new_layout(self, names: tuple[str, ...]) -> _Layout:
        columns = []
        for name in names:
            index = self._names.get(name)
            if index is None:
                index = self._names[name] = len(self._columns)
                self._columns.append(array("d", [math.nan]) * self._stored)
            columns.append(index)
        layout = self._layouts[names] = _Layout(columns)
        return layout

    def _end_block(self) -> bool:
        """Spreads the block's values over the columns. Returns whether the layouts known so far are forgotten."""
        filled = [layout for layout in self._layouts.values() if layout.data]
        block = np.full((len(self._columns), self._in_block), math.nan)
        heads = np.empty(self._in_block, dtype=_HEAD_FIELDS)
        for layout in filled:
            rows = np.frombuffer(layout.data, dtype=layout.dtype)
            if len(filled) == 1:  # the common case, and then there is nothing to scatter
                block[layout.columns] = rows["values"].T
                heads = rows
            else:
                block[np.ix_(np.array(layout.columns), rows["row"])] = rows["values"].T
                heads[rows["row"]] = rows[[name for name, _ in _HEAD_FIELDS]]
            layout.data = bytearray()
        for column, values in zip(self._columns, block):
            column.frombytes(values.view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer, whatever its stub says
        self._steps.frombytes(heads["step"].tobytes())
        self._wall_times.frombytes(heads["wall_time"].tobytes())
        self._phases.frombytes(heads["phase"].tobytes())
        self._run_codes.frombytes(heads["run"].tobytes())
        self._generations.frombytes(heads["generation"].tobytes())
        self._stored += self._in_block
        self._in_block = 0
        # Rows with ever-changing sets of keys must not collect layouts.
        if len(self._layouts) <= _MAX_LAYOUTS:
            return False
        self._layouts.clear()
        return True

    def build(self) -> pd.DataFrame:
        """The frame: `step`, `wall_time`, `run_id`, `phase`, then the metrics in order of appearance.

        Rows are in step order within a run, runs in order of appearance. `run_id` and `phase` are categories. The
        builder is empty afterwards.
        """
        if self._in_block:
            self._end_block()
        steps = np.frombuffer(self._steps, dtype=np.int64) if self._steps else np.empty(0, np.int64)
        runs = np.frombuffer(self._run_codes, dtype=np.int32) if self._steps else np.empty(0, np.int32)
        order = self._order(steps, runs)
        data: dict[str, Any] = {
            "step": _taken(steps, order),
            "wall_time": _taken(_floats(self._wall_times), order),
            "run_id": pd.Categorical.from_codes(_taken(runs, order), categories=list(self._runs)),
            "phase": pd.Categorical.from_codes(
                _taken(np.frombuffer(self._phases, dtype=np.int32) if self._steps else runs, order),
                categories=list(self._phase_codes),
            ),
        }
        for name, index in self._names.items():
            key = name
            while key in data:  # a metric called `step`, say
                key = f"metrics/{key}"
            data[key] = _taken(_floats(self._columns[index]), order)
            self._columns[index] = array("d")  # the frame has it now, or a reordered copy
        frame = pd.DataFrame(data, copy=False)
        self.__init__()  # type: ignore[misc]  # a builder is used once; what it held belongs to the frame
        return frame

    def _order(self, steps: np.ndarray[Any, Any], runs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """The indices of the rows that count, in order; None if that is all of them as they stand."""
        keep = np.ones(len(steps), dtype=bool)
        generations = np.frombuffer(self._generations, dtype=np.int32) if len(steps) else runs
        for run in self._runs.values():
            if run.generation == 0:
                continue
            ours = runs == run.code
            for generation, step in run.rewinds:
                keep &= ~(ours & (generations < generation) & (steps > step))
            # Without a mark, a step that was recorded again replaces what an earlier generation said of it.
            rows = np.flatnonzero(ours & keep)
            newest = pd.Series(generations[rows]).groupby(steps[rows]).transform("max").to_numpy()
            keep[rows[generations[rows] < newest]] = False
        kept = None if keep.all() else np.flatnonzero(keep)
        steps, runs = _taken(steps, kept), _taken(runs, kept)
        sorted_already = len(steps) < 2 or bool(
            np.all((runs[1:] > runs[:-1]) | ((runs[1:] == runs[:-1]) & (steps[1:] >= steps[:-1])))
        )
        if sorted_already:
            return kept
        order = np.lexsort((steps, runs))  # stable: what was logged at one step stays in its order
        return order if kept is None else kept[order]


def _floats(values: array[float]) -> np.ndarray[Any, Any]:
    return np.frombuffer(values, dtype=np.float64) if values else np.empty(0)


def _taken(values: np.ndarray[Any, Any], order: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    return values if order is None else values[order]


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _float(value: Any) -> float:
    """A value of a damaged line as a float: what is no number is NaN."""
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return math.nan
