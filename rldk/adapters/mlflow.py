"""MLflow's stores: the database `mlflow.db`, and the older folder `mlruns`. MLflow itself is not needed, and nothing is written."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..event import sanitised
from ._lines import whole_number
from ._mlruns import is_run, run_folders, run_points, run_told
from ._points import Point, StoredRow, by_call, gathered
from ._sqlite import each, found_in, holds, last_write, opened, refusal
from ._tracked import StoredRun, Tracked

_TABLES = {
    "metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"}, "runs": {"run_uuid", "name"}, "tags": {"key", "value"},
    "params": {"key", "value", "run_uuid"},
}
_ID = 8  # digits of a run's id that tell it from another one of its name
_INFINITE = 1.7976931348623157e308  # what MLflow writes for an infinity, which some databases lack


class MlflowStore(Tracked):
    """A database, or the folder of one run in a file store. "Line" numbers are those of the metric's rows, or lines."""

    name = "mlflow"
    rank = 51
    looked_for = "MLflow's *.db and mlruns/"

    @classmethod
    def find(cls, folder: Path) -> list[Path]:
        """The databases in a folder; else the runs of a file store, whichever of its levels the folder is."""
        return found_in(folder, _TABLES) or run_folders(folder)

    @classmethod
    def claims(cls, path: Path, head: bytes) -> bool:
        """A database with MLflow's tables, or a run's folder."""
        return holds(path, head, _TABLES) or is_run(path)

    @classmethod
    def refusal(cls, path: Path, head: bytes) -> str:
        """As of trackio's databases."""
        return refusal(path, head)

    @classmethod
    def modified(cls, path: Path) -> float:
        """When a metric was written to last."""
        files = (path / "metrics").rglob("*") if path.is_dir() else ()
        return max(map(super().modified, files), default=last_write(path))

    def runs(self) -> list[StoredRun]:
        """The runs that are not deleted; of a folder, its one."""
        if self.path.is_dir():
            name, apart, params = run_told(self.path)
            return [StoredRun(None, name, apart[:_ID], arguments=_arguments(params))]
        with opened(self.path) as connection:
            counts = {
                key: (first, last, count)
                for key, first, last, count in connection.execute(
                    "SELECT run_uuid, MIN(rowid), MAX(rowid), COUNT(*) FROM metrics GROUP BY run_uuid"
                )
            }
            called = dict(connection.execute("SELECT run_uuid, name FROM runs WHERE lifecycle_stage IS NOT 'deleted'"))
            runs: dict[str, StoredRun] = {}
            for key, (_, last, count) in sorted(counts.items(), key=lambda item: item[1]):
                if key not in called or not isinstance(key, str) or sanitised(key) != key:
                    continue
                name = called[key]
                name = str(sanitised(name)) if isinstance(name, str) and name else key
                if name in runs:
                    name = f"{name}-{key[:_ID]}"
                while name in runs:
                    name += "+"
                params = connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (key,)).fetchall()
                runs[name] = StoredRun(key, name, key[:_ID], count, last, _arguments(params))
        return sorted(runs.values(), key=lambda run: run.end)

    def stored(self, run: StoredRun) -> Iterator[StoredRow]:
        """Yields the run's log calls, as far as steps and times tell them apart."""
        yield from gathered(by_call(run_points(self.path, self.damage) if self.path.is_dir() else self._points(run)))

    def _points(self, run: StoredRun) -> Iterator[Point]:
        """Yields the run's metrics in the order of their times: transformers' callback has MLflow write them from many threads."""
        order = "SELECT rowid FROM metrics WHERE run_uuid = ? AND rowid <= ? ORDER BY timestamp, step, rowid"
        with opened(self.path) as connection:
            columns = "step, timestamp, key, value, is_nan"
            for number, (step, milliseconds, key, value, is_nan) in each(connection, order, (run.key, run.end), columns, self.damage):
                at = whole_number(step)
                if at is None or not isinstance(key, str) or not isinstance(value, (int, float)):
                    self.damage.add(number)
                    continue
                if is_nan:
                    value = math.nan
                elif abs(value) == _INFINITE:
                    value = math.copysign(math.inf, value)
                seconds = milliseconds / 1000 if isinstance(milliseconds, (int, float)) else math.nan
                yield Point(number, at, seconds, str(sanitised(key)), value)


def _arguments(params: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Parameters, which MLflow keeps as text: as Python's `str` writes values."""
    arguments: dict[str, Any] = {}
    for name, value in params:
        if not isinstance(name, str) or not isinstance(value, str):
            continue
        try:
            read = ast.literal_eval(value) if len(value) < 500 else value
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            read = value
        arguments[str(sanitised(name))] = sanitised(read) if isinstance(read, (str, int, float, list, dict, type(None))) else str(value)
    return arguments
