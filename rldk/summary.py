"""The fold: what a whole run comes to, in constant memory, from its events and alerts alone.

Values are gathered a thousand events at a time and folded with built-in functions, so that a step costs little.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .event import Event

__all__ = ["Summary"]

_EVENTS_A_FOLD = 1024


class _Series:
    """Running statistics of one metric. NaN and Inf are counted and left out of the others."""

    __slots__ = ("count", "first", "highest", "last", "lowest", "mean", "nonfinite", "spread")

    def __init__(self) -> None:
        self.count = 0
        self.nonfinite = 0
        self.first: float | None = None
        self.last: float | None = None
        self.lowest = math.inf
        self.highest = -math.inf
        self.mean = 0.0
        self.spread = 0.0  # sum of squared deviations

    def fold(self, values: list[Any]) -> None:
        """Merges a batch, by the pairwise formula of Chan, Golub and LeVeque (1979) for the deviations."""
        try:
            total_value = math.fsum(values)
        except (TypeError, ValueError, OverflowError):  # a None; opposite infinities; beyond the largest float
            total_value = math.nan
        if not math.isfinite(total_value):
            logged = [value for value in values if value is not None]
            values = [value for value in logged if math.isfinite(value)]
            self.nonfinite += len(logged) - len(values)
            if not values:
                return
            # Divided before it is summed, so that the largest floats do not overflow; a last rounding still may.
            mean = 2 * math.fsum(value / (2 * len(values)) for value in values)
            mean = min(max(mean, min(values)), max(values))
        else:
            mean = total_value / len(values)
        count = len(values)
        total, shift = self.count + count, mean - self.mean
        deviation = math.dist(values, [mean] * count)
        self.spread += deviation * deviation + shift * shift * self.count * count / total
        self.mean = self.mean * (self.count / total) + mean * (count / total)
        self.count = total
        self.lowest = min(self.lowest, min(values))
        self.highest = max(self.highest, max(values))
        self.last = values[-1]
        if self.first is None:
            self.first = values[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `std` is the population's."""
        row: dict[str, Any] = {"count": self.count}
        if self.count:
            row.update(
                first=self.first, last=self.last, min=self.lowest, max=self.highest, mean=self.mean,
                std=math.sqrt(self.spread / self.count) if math.isfinite(self.spread) else None,
            )
        if self.nonfinite:
            row["nonfinite"] = self.nonfinite
        return row


class Summary:
    """Totals and statistics of a run.

    Attributes:
        events: Events seen, by phase.
        first_step: Step of the first training event; None before it.
        last_step: Highest step seen.
        wall_time: Seconds since the run began, at the last event.
        tokens: Tokens processed, by direction; empty where the trainer counts none.
    """

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        self.first_step: int | None = None
        self.last_step = 0
        self.wall_time = 0.0
        self.tokens: dict[str, int] = {}
        self._batch: list[Event] = []
        self._series: dict[str, _Series] = {}

    def add(self, event: Event) -> None:
        """Takes one event."""
        self._batch.append(event)
        if len(self._batch) >= _EVENTS_A_FOLD:
            self._fold()

    def _fold(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        steps, wall_times, _, phases, _, slices, _, _, _ = zip(*batch)
        counts: Counter[str] = Counter(phases)
        for phase, count in counts.items():
            self.events[phase] = self.events.get(phase, 0) + count
        if self.first_step is None and "train" in phases:
            self.first_step = steps[phases.index("train")]
        self.last_step = max(self.last_step, max(steps))
        self.wall_time = max(self.wall_time, *wall_times)  # in this order: of a NaN each comparison is false
        for name, tokens in itertools.chain.from_iterable(data_slice.items() for data_slice in slices):
            if isinstance(tokens, (int, float)) and math.isfinite(tokens):
                self.tokens[name] = self.tokens.get(name, 0) + int(tokens)
        values: dict[str, list[Any]] = {}
        # Events in a row that have the same metrics are turned from rows into columns at once.
        for names, alike in itertools.groupby((event.metrics for event in batch), tuple):
            for name, column in zip(names, zip(*(metrics.values() for metrics in alike))):
                values.setdefault(name, []).extend(column)
        for name, series in values.items():
            known = self._series.get(name)
            if known is None:
                known = self._series[name] = _Series()
            known.fold(series)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Statistics by metric: count, first, last, min, max, mean, std, and how many were NaN or Inf."""
        self._fold()
        return {name: series.to_dict() for name, series in self._series.items()}

    def totals(self) -> Mapping[str, Any]:
        """Steps, events by phase, seconds, tokens."""
        self._fold()
        totals: dict[str, Any] = {
            "steps": self.last_step,
            "events": dict(self.events),
            "wall_time": self.wall_time,
        }
        return {**self.tokens, **totals}  # names of a damaged stream must not replace ours
