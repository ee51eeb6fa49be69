"""trackio's databases: `<project>.db`, many runs in each. trackio itself is not needed, and nothing is written.

Versions before 0.24 know a run by its name, later ones by an id beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ._lines import parse, whole_number
from ._points import StoredRow
from ._sqlite import FAILURES, columns_of, each, found_in, holds, last_write, opened, refusal
from ._tracked import StoredRun, Tracked

_TABLES = {"metrics": {"run_name", "step", "timestamp", "metrics"}}
_ID = 8  # digits of a run's id that tell it from another one of its name


class TrackioDatabase(Tracked):
    """A project. A row is a log call; "line" numbers are those of the rows of the table."""

    name = "trackio"
    rank = 50
    looked_for = "trackio's *.db"

    @classmethod
    def find(cls, folder: Path) -> list[Path]:
        """The projects in trackio's folder."""
        return found_in(folder, _TABLES)

    @classmethod
    def claims(cls, path: Path, head: bytes) -> bool:
        """A database with trackio's table of metrics."""
        return holds(path, head, _TABLES)

    @classmethod
    def refusal(cls, path: Path, head: bytes) -> str:
        """For a database that is neither trackio's nor MLflow's."""
        return refusal(path, head)

    @classmethod
    def modified(cls, path: Path) -> float:
        """A writer appends to a log beside the database."""
        return last_write(path)

    def runs(self) -> list[StoredRun]:
        """The project's runs."""
        with opened(self.path) as connection:
            identity = _identity(connection)
            found = connection.execute(
                f"SELECT {identity}, MAX(run_name), MIN(rowid), MAX(rowid), COUNT(*) FROM metrics GROUP BY {identity}"
            ).fetchall()
            # Whoever had a name first keeps it, so that a run is called the same while others come.
            found.sort(key=lambda row: row[2])
            runs: dict[str, tuple[int, StoredRun]] = {}
            for key, called, _, last, count in found:
                name = _readable(called) or "run"
                if name in runs:
                    name = f"{name}-{_readable(key)[:_ID]}"
                while name in runs:
                    name += "+"
                runs[name] = last, StoredRun(key, name, "", count, last, _arguments(connection, identity, key))
        return [run for _, run in sorted(runs.values(), key=lambda item: item[0])]

    def stored(self, run: StoredRun) -> Iterator[StoredRow]:
        """Yields the run's rows in trackio's own order."""
        with opened(self.path) as connection:
            order = f"SELECT rowid FROM metrics WHERE {_identity(connection)} = ? AND rowid <= ? ORDER BY timestamp, rowid"
            asked = run.key, run.end
            for number, (step, time, metrics) in each(connection, order, asked, "step, timestamp, metrics", self.damage):
                values = _object(metrics)
                if values is None:
                    self.damage.add(number)
                    continue
                yield StoredRow(number, whole_number(step), _seconds(time), values)


def _identity(connection: sqlite3.Connection) -> str:
    return "run_id" if "run_id" in columns_of(connection, "metrics") else "run_name"


def _arguments(connection: sqlite3.Connection, identity: str, key: Any) -> dict[str, Any]:
    """The run's config."""
    if not {identity, "config"} <= columns_of(connection, "configs"):
        return {}
    try:
        found = connection.execute(f"SELECT config FROM configs WHERE {identity} = ? ORDER BY rowid DESC LIMIT 1", (key,)).fetchone()
    except FAILURES:
        return {}
    return (found and _object(found[0])) or {}


def _object(value: Any) -> dict[str, Any] | None:
    """A column of JSON, which trackio writes as bytes."""
    try:
        found = parse(value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value)
    except (ValueError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _seconds(value: Any) -> float:
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return float("nan")


def _readable(value: Any) -> str:
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else str(value)
