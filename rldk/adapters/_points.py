"""Rows as trackers store them, and single numbers put together as the rows that they were logged in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["TOTALS", "Point", "StoredRow", "by_call", "gathered"]

# What the trainer logs once, as it ends, at the step of its last log.
TOTALS = frozenset({"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"})
_ANY_PHASE = frozenset({"epoch", "num_input_tokens_seen", "global_step"})
_PHASES = ("train", "eval", "summary")
_TIED = 10_000


class StoredRow(NamedTuple):
    """One log call.

    Attributes:
        number: For a message, should it be malformed.
        step: The tracker's own step; None if it has none, or none that is a whole number.
        seconds: Since the epoch, or any other beginning; NaN if it is not known.
        values: What was logged, by raw names.
    """

    number: int
    step: int | None
    seconds: float
    values: Mapping[str, Any]


class Point(NamedTuple):
    """One number, as trackers keep it that have no rows."""

    number: int
    step: int
    seconds: float
    name: str
    value: float


def gathered(points: Iterable[Point]) -> Iterator[StoredRow]:
    """Puts points together that were logged at one step: what one log call said, or several calls without a name twice.

    An evaluation, and the totals at the end, are rows of their own though they share the step with a training log.
    """
    number, at, seconds = 0, 0, math.nan
    values: dict[str, float] = {}
    kind = ""
    for point in points:
        its = _kind(point.name)
        if values and (point.step != at or point.name in values or (its and kind and its != kind)):
            yield StoredRow(number, at, seconds, values)
            values, kind = {}, ""
        if not values:
            number, at, seconds = point.number, point.step, point.seconds
        values[point.name] = point.value
        kind = kind or its
    if values:
        yield StoredRow(number, at, seconds, values)


def by_call(points: Iterable[Point]) -> Iterator[Point]:
    """Yields points of one time and step so that those of one phase stand together: two log calls may share a millisecond."""
    for _, tied in itertools.groupby(points, key=lambda point: (point.seconds, point.step)):
        while together := list(itertools.islice(tied, _TIED)):
            kinds = dict.fromkeys(kind for point in together if (kind := _kind(point.name)))
            if len(kinds) < 2:
                yield from together
                continue
            shared = [point for point in together if not _kind(point.name)]
            for kind in sorted(kinds, key=_PHASES.index):
                yield from (point for point in together if _kind(point.name) == kind)
                for name in {point.name: None for point in shared}:
                    at = next(index for index, point in enumerate(shared) if point.name == name)
                    yield shared.pop(at)


def _kind(name: str) -> str:
    """The phase that a name tells of; empty for what is logged in each."""
    name = name.removeprefix("train/")
    if name in _ANY_PHASE:
        return ""
    if name in TOTALS:
        return "summary"
    return "eval" if name.startswith(("eval/", "eval_", "test/", "test_")) else "train"
