"""Which runs are recorded: scenario, seed, logging interval, TRL version. A pure function of the scenarios.

Each fault and each healthy twin is recorded on three tuning seeds and ten others: on four of these logging every fifth
step, which takes longer, on the rest every step. The TRL version rotates with the seed, so that each version meets both
intervals, and a fault and its twin share both. A held-out fault has no runs on tuning seeds: nobody can look at what is not there. Healthy
scenarios that are nobody's twin fill up the healthy rows, on as few seeds as that takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .store import Key

__all__ = ["HEALTHY_ROWS", "INTERVALS", "REPORT_SEEDS", "TUNING_SEEDS", "VERSIONS", "plan", "rows_of", "versions"]

INTERVALS = (1, 5)
TUNING_SEEDS = tuple(range(5))
_TUNED_ON = (0, 1, 2)
_EVERY_FIFTH = (2, 6, 10, 14)
REPORT_SEEDS = tuple(range(5, 15))
HEALTHY_ROWS = 55_000  # 50,000 are promised; runs that a fault's twin cuts short must not take us below

# TRL version by the name that scripts/env.py knows its environment by.
VERSIONS = {"oldest": "0.23.1", "last-ppo": "1.12.0", "test": "1.16.0"}
# The last TRL with a PPO is 1.12.
_ONLY_ON = {"ppo": ("0.23.1", "1.12.0")}

# Healthy scenarios that are nobody's twin are ten times as long: one interval a seed, more only if rows are missing.
_OTHERS = ((0, (1,)), (5, (1,)), (6, (5,)), (1, (5,)), *((seed, INTERVALS) for seed in (7, 8, 2, 9, 10, 3, 11, 12, 4, 13, 14)))
_OTHERS_AT_LEAST = 2


class Facts(Protocol):
    """What the plan needs to know of a scenario."""

    name: str
    trainer: str
    steps: dict[int, int]
    twin: str
    onset: int
    held_out: bool

    @property
    def healthy(self) -> bool: ...


def versions(trainer: str) -> tuple[str, ...]:
    """The TRL versions that a family is recorded on."""
    return _ONLY_ON.get(trainer, tuple(VERSIONS.values()))


def rows_of(scenario: Facts, interval: int) -> int:
    """Training logs of one run; PPO logs each update whatever the interval."""
    return scenario.steps[interval] // (1 if scenario.trainer == "ppo" else interval)


def healthy_rows_of(scenario: Facts, interval: int) -> int:
    """Training logs of one run before anything was wrong."""
    if scenario.healthy:
        return rows_of(scenario, interval)
    return min(rows_of(scenario, interval), scenario.onset // (1 if scenario.trainer == "ppo" else interval))


def plan(scenarios: Mapping[str, Facts], healthy_rows: int = HEALTHY_ROWS) -> list[Key]:
    """The runs in the order of recording, so that tuning can begin while the rest is recorded.

    Args:
        scenarios: All scenarios by name.
        healthy_rows: Healthy training logs to reach in all.
    """
    twins = {scenario.twin for scenario in scenarios.values()}
    chosen: dict[Key, None] = {}

    def add(scenario: Facts, seed: int, intervals: tuple[int, ...] = INTERVALS) -> int:
        keys = [key for key in _keys(scenario, seed) if key.logging_steps in intervals]
        chosen.update(dict.fromkeys(keys))
        return sum(healthy_rows_of(scenario, key.logging_steps) for key in keys)

    others, total = [], 0
    for _, scenario in sorted(scenarios.items()):
        if scenario.healthy and scenario.name not in twins:
            others.append(scenario)
            continue
        total += sum(
            add(scenario, seed, (5,) if seed in _EVERY_FIFTH else (1,))
            for seed in (*_TUNED_ON, *REPORT_SEEDS) if _open(scenario, seed)
        )
    for number, (seed, intervals) in enumerate(_OTHERS):
        if number >= _OTHERS_AT_LEAST and total >= healthy_rows:
            break
        total += sum(add(scenario, seed, intervals) for scenario in others if _open(scenario, seed))
    return sorted(chosen, key=_order)


def _order(key: Key) -> tuple[Any, ...]:
    """Tuning seeds first; then each seed at one interval, then at the other: a recording cut short is balanced too."""
    second = (key.seed + INTERVALS.index(key.logging_steps)) % 2
    return (key.seed not in TUNING_SEEDS, second, key.seed, key.scenario, key.logging_steps)


def _open(scenario: Facts, seed: int) -> bool:
    return not (scenario.held_out and seed in TUNING_SEEDS)


def _keys(scenario: Facts, seed: int) -> list[Key]:
    known = versions(scenario.trainer)
    return [
        Key(scenario.name, seed, interval, known[seed % len(known)])
        for interval in INTERVALS
        if interval in scenario.steps
    ]
