"""MLflow's file store: `mlruns/<experiment>/<run>/`, a file a metric, a line a value. Reads, and unpacks nothing."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path

from ..event import sanitised
from ._lines import Damage
from ._points import Point

__all__ = ["is_run", "run_folders", "run_points", "run_told"]

_META = "meta.yaml"
# From a run's folder, an experiment's, the store, or what the store stands in.
_PLACES = ("", "*/", "*/*/", "mlruns/*/*/")
_BLOCK = 1 << 16
_LONGEST = 1 << 12


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / _META).is_file() and (path / "metrics").is_dir()


def run_folders(folder: Path) -> list[Path]:
    """The runs in a folder, without those that were deleted."""
    for place in _PLACES:
        metas = sorted(folder.glob(f"{place}{_META}"))
        found = [meta.parent for meta in metas if is_run(meta.parent) and ".trash" not in meta.parts and not _is_deleted(meta)]
        if found:
            return found
    return []


def _is_deleted(meta: Path) -> bool:
    return _entries(meta).get("lifecycle_stage") == "deleted"


def _entries(meta: Path) -> dict[str, str]:
    """The plain entries of a small YAML file, as MLflow writes it: a name and a value a line."""
    entries = {}
    for line in _content(meta).splitlines():
        name, sign, value = line.partition(": ")
        if sign:
            entries[name] = value.strip().strip("'\"")
    return entries


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_BLOCK).decode("utf-8", "replace")
    except OSError:
        return ""  # deleted meanwhile, or nobody's business


def run_told(folder: Path) -> tuple[str, str, list[tuple[str, str]]]:
    """What a run is called, its id, and its parameters."""
    entries = _entries(folder / _META)
    key = entries.get("run_id") or entries.get("run_uuid") or folder.resolve().name
    name = _content(folder / "tags" / "mlflow.runName").strip() or entries.get("run_name") or key
    params = folder / "params"
    files = sorted(path for path in params.rglob("*") if path.is_file())
    return name, key, [(str(sanitised(path.relative_to(params).as_posix())), _content(path)) for path in files]


def run_points(folder: Path, damage: Damage) -> Iterator[Point]:
    """Yields the values of all metrics in the order of their times, with a block of each file in memory.

    Raises:
        OSError: If a file cannot be read.
    """
    metrics = folder / "metrics"
    files = sorted(path for path in metrics.rglob("*") if path.is_file())
    series = [_points(path, str(sanitised(path.relative_to(metrics).as_posix())), damage) for path in files]
    # Many steps may pass in one of MLflow's milliseconds.
    yield from heapq.merge(*series, key=lambda point: (point.seconds, point.step))


def _points(path: Path, name: str, damage: Damage) -> Iterator[Point]:
    for number, line in enumerate(_lines(path), 1):
        parts = line.split()
        try:
            # Since MLflow 2.21 a line may also name a dataset.
            seconds, value, step = int(parts[0]) / 1000, float(parts[1]), int(parts[2]) if len(parts) > 2 else 0
        except (ValueError, IndexError, OverflowError):
            damage.add(number)
            continue
        if abs(step) >= 2**63 or math.isnan(seconds):
            damage.add(number)
            continue
        yield Point(number, step, seconds, name, value)


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, which is open only while a block is read: there may be more metrics than a process may open."""
    position, rest = 0, b""
    while True:
        with open(path, "rb") as file:
            file.seek(position)
            block = file.read(_BLOCK)
        position += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if not block:
            return  # a last line without its newline is torn: who knows of how many digits its step was to be
        if len(rest) > _LONGEST:
            rest = rest[-_LONGEST:]  # no line of a metric is as long
