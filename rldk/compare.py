"""Runs side by side: where they end, how good they get and when, their alerts, what differs, and where they part.

One pass over all logs at once, step by step, so that memory does not grow with the length of the runs. Nothing is written.
Numbers are compared only where they mean the same: a metric whose unit differs between the runs is left out, and named.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ._compared import Compared, Row
from .exceptions import ConfigurationError, NoLogsError
from .ingest import open_log
from .live import run_logs
from .metrics import HEADLINE, canonical_name, headline, lookup, nearest, of_the_machine

__all__ = ["compare"]

# Where a run stands and what it is called, and not what it does.
_WHERE = frozenset({
    "output_dir", "logging_dir", "run_name", "project", "hub_model_id", "trackio_space_id", "trackio_bucket_id",
    "resume_from_checkpoint", "report_to", "disable_tqdm", "local_rank", "push_to_hub", "hub_private_repo",
})
# What a training log says of the step itself, whenever the one before it was.
_AT_THE_STEP = frozenset({"lr", "epoch", "num_tokens"})
# Of the last row: totals of the process that ended the run, which after a resume is not the whole of it.
_TOTALS = frozenset({"train_loss", "total_flos"})
_SHARE_OF_BEST = 0.9


def compare(
    sources: Iterable[str | os.PathLike[str]],
    *,
    to: Mapping[str, float] | None = None,
    tolerance: float = 0.0,
    ignore: Iterable[str] = (),
) -> dict[str, Any]:
    """Compares two or more runs. The first is the one that the others are held against.

    Args:
        sources: Files, folders or globs: rldk's events, flat logs, `trainer_state.json`, a tracker's store. A folder or
            store of several runs stands for all of them.
        to: One metric and a level of it. By default the level is nine tenths of the way from the first value of the first
            run to its best, of the first metric in `rldk.metrics.HEADLINE` that is better when higher, else of the loss.
        tolerance: The relative difference up to which two values count as equal; 0 means exactly equal.
        ignore: Metrics that are not looked at when the runs are held against each other step by step.

    Returns:
        Plain values: `runs`, `metrics`, `not_compared`, `measured_otherwise`, `time_to`, `alerts`, `divergence`,
        `arguments`, `versions`, `notes`. docs/compare.md describes them.

    Raises:
        ConfigurationError: For fewer than two runs, a negative tolerance, or a metric in `to` that no run has.
        IngestError: If a log cannot be read.

    Example:
        ```python
        found = compare(["runs/a", "runs/b"])
        print(found["divergence"][0]["step"])
        ```
    """
    if not 0.0 <= tolerance < math.inf:
        raise ConfigurationError(f"tolerance must be 0 or more; got {tolerance!r}")
    found = [item for source in sources for path in run_logs(source) for item in _runs_in(path)]
    if len(found) < 2:
        known = ", ".join(str(path) for path, _ in found)
        raise ConfigurationError(f"compare takes two runs or more; got {len(found)}: {known or 'none'}")
    runs = [Compared(_label(index), path, run_id) for index, (path, run_id) in enumerate(found)]
    level = _level(runs[0], to)
    units = _Units(runs)
    walk = _Walk(runs, units, level, tolerance, frozenset(map(canonical_name, ignore)))
    walk.go()
    seen = {name: None for run in runs for name in run.stats}
    if level is not None and to is not None and level[0] not in seen:
        raise ConfigurationError(f"no run logs {level[0]!r}.{nearest(level[0], list(seen))}")
    arguments = _differing([run.arguments for run in runs])
    what = {name: values for name, values in arguments.items() if name.rpartition(".")[2] not in _WHERE}
    same_set_up = not what if all(run.arguments for run in runs) else None
    return {
        "runs": [run.about() for run in runs],
        "metrics": {name: walk.row(name) for name in _in_order(seen) if name not in units.different},
        "not_compared": units.different,
        "measured_otherwise": units.otherwise,
        "time_to": walk.time_to(),
        "alerts": _alerts(runs),
        "divergence": [walk.divergence(index, _alike(runs[0], runs[index])) for index in range(1, len(runs))],
        "arguments": {
            "what": what,
            "where": {name: values for name, values in arguments.items() if name not in what},
            "unknown": [run.label for run in runs if not run.arguments],
        },
        "versions": _differing([run.versions for run in runs]),
        "notes": _notes(runs, same_set_up),
    }


def _runs_in(path: Path) -> list[tuple[Path, str | None]]:
    """A log with each of its runs, where it is a store of several; else alone."""
    log = open_log(path)
    try:
        # Of its runs, those that have an event: a tracker keeps runs, too, that died before their first.
        runs = log.survey().runs if len(log.names()) > 1 else ()
    except OSError as error:
        raise NoLogsError(f"cannot read {path}: {error}") from error
    return [(path, run_id) for run_id in runs] or [(path, None)]


def _label(index: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def _in_order(names: Iterable[str]) -> list[str]:
    names = list(names)
    first = headline(names, 0)
    return first + [name for name in names if name not in set(first)]


def _level(run: Compared, to: Mapping[str, float] | None) -> tuple[str, float, bool, str] | None:
    """What is to be reached: metric, level, whether from below, and how the level came about."""
    if to:
        ((given, level),) = to.items()
        name = canonical_name(given)
        first, _ = _first_and_best(run, (name,)).get(name, (level, level))
        metric = lookup(name)
        rising = metric.bad == "low" if metric is not None and metric.bad in ("low", "high") else level >= first
        return name, float(level), rising, "given"
    better_high = [name for name in HEADLINE if (metric := lookup(name)) is not None and metric.bad == "low"]
    found = _first_and_best(run, (*better_high, "loss"))
    for name in (*better_high, "loss"):
        if name in found:
            first, best = found[name]
            level = first + _SHARE_OF_BEST * (best - first)
            return name, level, name != "loss", f"{_SHARE_OF_BEST:.0%} of the way from the first value of A to its best"
    return None


def _first_and_best(run: Compared, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for row in run.rows(judge=False):
        for name in names:
            value = row.metrics.get(name)
            if _is_finite(value):
                metric = lookup(name)
                better = max if metric is None or metric.bad != "high" else min
                first, best = found.get(name, (value, value))
                found[name] = first, better(best, value)
    return found


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and value - value == 0


def _differing(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Entries that are not the same in all tables; a table that is empty is not known, and says nothing.

    An argument that one version of transformers does not have is the same as one that nobody set.
    """
    known = [table for table in tables if table]
    names = {name: None for table in known for name in table}
    return {
        name: [table.get(name) for table in tables]
        for name in names
        if any(table.get(name) != known[0].get(name) for table in known)
    }


def _alike(first: Compared, other: Compared) -> bool | None:
    """Whether two runs have the same seed and arguments; None where that is not known of both."""
    if not first.arguments or not other.arguments:
        return None
    differing = _differing([first.arguments, other.arguments])
    return all(name.rpartition(".")[2] in _WHERE for name in differing)


class _Units:
    """Which metrics mean the same in all runs.

    Attributes:
        different: By metric, the unit in each run, where these are not one.
        otherwise: The same where the unit is one but the estimator or the average is not.
    """

    def __init__(self, runs: Sequence[Compared]) -> None:
        self._runs = runs
        self._known: set[str] = set()
        self.different: dict[str, list[str | None]] = {}
        self.otherwise: dict[str, list[str | None]] = {}

    def comparable(self, name: str) -> bool:
        """Whether the numbers may be put side by side."""
        if name not in self._known:
            self._known.add(name)
            units = [run.unit(name) for run in self._runs]
            said = {unit for unit in units if unit is not None}
            if len({_plain_unit(unit) for unit in said}) > 1:
                self.different[name] = units
            elif len(said) > 1:
                self.otherwise[name] = units
        return name not in self.different


def _plain_unit(unit: str) -> str:
    """The unit without what is particular about it in a trainer."""
    return unit.partition(" (")[0]


class _Walk:
    """All runs at once, step by step."""

    def __init__(
        self, runs: Sequence[Compared], units: _Units, level: tuple[str, float, bool, str] | None,
        tolerance: float, ignore: frozenset[str],
    ) -> None:
        self._runs, self._units, self._level, self._tolerance, self._ignore = runs, units, level, tolerance, ignore
        self._reached: list[dict[str, Any] | None] = [None] * len(runs)
        # Sums over steps that the same runs have: which runs, then each one's sum, and the number of steps.
        self._sums: dict[tuple[str, tuple[int, ...]], tuple[list[float], int]] = {}
        self._pairs = [_Pair() for _ in runs]

    def go(self) -> None:
        """Reads all logs."""
        readers = [run.rows() for run in self._runs]
        rows: list[Row | None] = [next(reader, None) for reader in readers]
        while True:
            there = [row.step for row in rows if row is not None]
            if not there:
                return
            step = min(there)
            here = {index: row for index, row in enumerate(rows) if row is not None and row.step == step}
            self._take(step, here)
            for index in here:
                rows[index] = next(readers[index], None)

    def _take(self, step: int, here: Mapping[int, Row]) -> None:
        for index, row in here.items():
            self._runs[index].count(row)
            self._reach(index, row)
        if len(here) < 2:
            return
        names: dict[str, list[int]] = {}
        for index, row in here.items():
            for name, value in row.metrics.items():
                if _is_finite(value):
                    names.setdefault(name, []).append(index)
        for name, indices in names.items():
            if len(indices) > 1 and self._units.comparable(name):
                sums, count = self._sums.setdefault((name, tuple(indices)), ([0.0] * len(indices), 0))
                for place, index in enumerate(indices):
                    sums[place] += here[index].metrics[name]
                self._sums[name, tuple(indices)] = sums, count + 1
        if 0 in here:
            for index in here:
                if index:
                    self._hold(self._pairs[index], step, here[0], here[index])

    def _reach(self, index: int, row: Row) -> None:
        if self._level is None or self._reached[index] is not None:
            return
        name, level, rising, _ = self._level
        value = row.metrics.get(name)
        if _is_finite(value) and self._units.comparable(name) and (value >= level if rising else value <= level):
            self._reached[index] = {"step": row.step, "seconds": self._runs[index].seconds(row.wall_time), "value": value}

    def _hold(self, pair: _Pair, step: int, ours: Row, theirs: Row) -> None:
        """Holds two runs against each other at one step."""
        if pair.step is not None:
            return
        differing: dict[str, list[Any]] = {}
        compared = 0
        # A training log says means since the one before: over other steps they are other numbers.
        same_span = ours.since == theirs.since
        pair.spans += not same_span
        for name, value in ours.metrics.items():
            if name not in theirs.metrics or not (same_span or name in _AT_THE_STEP or name.startswith("eval_")):
                continue
            if name in self._ignore or name in _TOTALS or of_the_machine(name) or not self._units.comparable(name):
                continue
            compared += 1
            if not _equal(value, theirs.metrics[name], self._tolerance):
                differing[name] = [value, theirs.metrics[name]]
        states = [[ours.states[phase], theirs.states[phase]] for phase in ours.states if phase in theirs.states]
        parted = next((state for state in states if state[0] != state[1]), None)
        pair.steps += bool(compared)
        pair.checksums += len(states)
        if differing or parted:
            pair.step = step
            pair.metrics = {name: differing[name] for name in _in_order(differing)}
            pair.state = parted
        elif compared or states:
            pair.alike = step

    def row(self, name: str) -> dict[str, Any]:
        """What is said of one metric."""
        metric = lookup(name)
        self._units.comparable(name)
        stats = [run.stats.get(name) for run in self._runs]
        having = {index for index, item in enumerate(stats) if item is not None and item.count}
        sums, count = [0.0] * len(self._runs), 0
        for (other, indices), (values, number) in self._sums.items():
            if other == name and set(indices) == having:
                count = number
                for index, value in zip(indices, values):
                    sums[index] = value
        better = _better(name)
        return {
            "unit": next((unit for run in self._runs if (unit := run.unit(name)) is not None), None),
            "bad": metric.bad if metric is not None else "",
            "logged": [item.count + item.nonfinite if item else 0 for item in stats],
            "nonfinite": [item.nonfinite if item else 0 for item in stats],
            "end": [item.last if item and item.count else None for item in stats],
            "end_step": [item.last_step if item and item.count else None for item in stats],
            "best": [item.best(better) if item and item.count and better else None for item in stats],
            "best_step": [item.best_step(better) if item and item.count and better else None for item in stats],
            "mean": [sums[index] / count if count and index in having else None for index in range(len(stats))],
            "common_steps": count,
        }

    def time_to(self) -> dict[str, Any] | None:
        """When each run reached the level."""
        if self._level is None:
            return None
        name, level, rising, how = self._level
        return {"metric": name, "level": level, "reached_by": "at least" if rising else "at most", "how": how,
                "comparable": self._units.comparable(name), "runs": self._reached}

    def divergence(self, index: int, alike: bool | None) -> dict[str, Any]:
        """Where a run parts from the first one."""
        pair, ours, theirs = self._pairs[index], self._runs[0], self._runs[index]
        return {
            "between": [ours.label, theirs.label],
            "same_arguments": alike,
            "step": pair.step,
            "last_equal_step": pair.alike,
            "metrics": pair.metrics,
            "random_state": pair.state,
            "steps_compared": pair.steps,
            "checksums_compared": pair.checksums,
            "other_spans": pair.spans,
            "only_in": {
                run.label: [
                    name for name in run.stats if name not in other.stats and name not in _TOTALS and not of_the_machine(name)
                ]
                for run, other in ((ours, theirs), (theirs, ours))
            },
            "ends": [ours.last_step, theirs.last_step],
        }


class _Pair:
    """What is known of two runs that are held against each other."""

    def __init__(self) -> None:
        self.step: int | None = None  # the first at which they differ
        self.alike: int | None = None  # the last at which they were equal
        self.metrics: dict[str, list[Any]] = {}
        self.state: list[Any] | None = None
        self.steps = self.checksums = 0
        self.spans = 0  # steps whose training logs are means over different numbers of steps


def _equal(ours: Any, theirs: Any, tolerance: float) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    if ours == theirs or (ours != ours and theirs != theirs):
        return True
    return tolerance > 0 and math.isclose(ours, theirs, rel_tol=tolerance)


def _better(name: str) -> str:
    """Which end of a metric's range is its best: `high`, `low`, or none."""
    metric = lookup(name)
    return {"low": "high", "high": "low"}.get(metric.bad, "") if metric is not None else ""


def _alerts(runs: Sequence[Compared]) -> dict[str, list[dict[str, Any] | None]]:
    """Alerts by code and run."""
    codes: Counter[str] = Counter()
    for run in runs:
        codes.update(alert.code for alert in run.alerts)
    return {code: [run.alerts_of(code) for run in runs] for code, _ in codes.most_common()}


def _notes(runs: Sequence[Compared], same_set_up: bool | None) -> list[str]:
    notes = [note for run in runs for note in run.notes()]
    corrections = {tuple(run.corrections) for run in runs if run.metrics_of_ppo}
    if len(corrections) > 1:
        notes.append(
            "PPO's averages are corrected in some of these runs and not in others: what TRL averages is then too low by a factor"
        )
    if same_set_up is None:
        notes.append("the arguments of some runs are not recorded: whether they should be the same is not known")
    return notes

