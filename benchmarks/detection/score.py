"""From alarms to the numbers of the table: pure functions, no files.

What counts, of one run:

* A fault is *caught* by an alarm of a right code after its onset, and *flagged* by an alarm of any code after it.
  Other tools have codes of their own, so flagged is all that can be asked of them.
* The *delay* is counted in training logs: 1 is the first log after the onset, 0 an alarm before the first log of a
  fault that is there from the start.
* An alarm is *false* in a healthy run, and in a faulty run up to the onset. What a tool says after the onset beside
  the right code is neither: faults have consequences.
* *Healthy logs* are the training logs in which an alarm would be false.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from .judges import Verdict
from .store import Key

__all__ = ["Interval", "Judged", "Outcome", "Score", "outcome", "poisson", "score", "wilson"]

_Z = 1.959963984540054  # of a two-sided interval of 95 %


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Judged(NamedTuple):
    """A run and one tool's alarms.

    Attributes:
        key: The run.
        trainer: Its family.
        logs: The steps of its training logs.
        verdicts: The alarms, in order.
    """

    key: Key
    trainer: str
    logs: tuple[int, ...]
    verdicts: tuple[Verdict, ...]


class Outcome(NamedTuple):
    """What became of one run.

    Attributes:
        judged: The run and the alarms.
        faulty: Whether there was anything to find.
        healthy_logs: Training logs in which an alarm is false.
        false: The false alarms.
        right: The first alarm of a right code after the onset.
        any: The first alarm after the onset.
        right_delay: Training logs from the onset to `right`.
        any_delay: Training logs from the onset to `any`.
    """

    judged: Judged
    faulty: bool
    healthy_logs: int
    false: tuple[Verdict, ...]
    right: Verdict | None = None
    any: Verdict | None = None
    right_delay: int | None = None
    any_delay: int | None = None


def outcome(judged: Judged, codes: frozenset[str], onset: int) -> Outcome:
    """Judges the judge on one run.

    Args:
        judged: The run and the alarms.
        codes: Those that name the fault; empty for a healthy run.
        onset: The step after which the fault acts; 0 if it is there from the start.
    """
    if not codes:
        return Outcome(judged, False, len(judged.logs), judged.verdicts)
    before = sum(step <= onset for step in judged.logs) if onset else 0
    after = [verdict for verdict in judged.verdicts if verdict.step > onset or not onset]
    false = tuple(verdict for verdict in judged.verdicts if onset and verdict.step <= onset)
    right = next((verdict for verdict in after if verdict.code in codes), None)
    first = after[0] if after else None
    delays = [None if verdict is None else max(0, verdict.logged - before) for verdict in (right, first)]
    return Outcome(judged, True, before, false, right, first, *delays)


class Score(NamedTuple):
    """What a tool did on a set of runs; intervals are of 95 %.

    Attributes:
        faults: Faulty runs.
        caught: Those that an alarm of a right code named.
        caught_in: Interval of the share caught.
        flagged: Those in which any alarm followed the onset.
        flagged_in: Interval of the share flagged.
        delay: Median delay of what was caught; None if nothing was.
        delay_in: Its interval.
        any_delay: Median delay of what was flagged.
        any_delay_in: Its interval.
        healthy_logs: Training logs in which an alarm is false.
        false: False alarms.
        false_in: Interval of the false alarms per 1,000 healthy logs.
    """

    faults: int
    caught: int
    caught_in: Interval
    flagged: int
    flagged_in: Interval
    delay: float | None
    delay_in: Interval | None
    any_delay: float | None
    any_delay_in: Interval | None
    healthy_logs: int
    false: int
    false_in: Interval

    @property
    def caught_share(self) -> float:
        """From 0 to 1; NaN without faults."""
        return self.caught / self.faults if self.faults else math.nan

    @property
    def flagged_share(self) -> float:
        """From 0 to 1; NaN without faults."""
        return self.flagged / self.faults if self.faults else math.nan

    @property
    def false_rate(self) -> float:
        """False alarms per 1,000 healthy training logs; NaN without any."""
        return 1000 * self.false / self.healthy_logs if self.healthy_logs else math.nan


def score(outcomes: Iterable[Outcome]) -> Score:
    """Adds outcomes up."""
    runs = list(outcomes)
    faulty = [run for run in runs if run.faulty]
    right = [run.right_delay for run in faulty if run.right_delay is not None]
    any_ = [run.any_delay for run in faulty if run.any_delay is not None]
    logs, false = sum(run.healthy_logs for run in runs), sum(len(run.false) for run in runs)
    ends = poisson(false)
    rates = Interval(*(1000 * end / logs if logs else math.nan for end in ends))
    return Score(
        len(faulty), len(right), wilson(len(right), len(faulty)), len(any_), wilson(len(any_), len(faulty)),
        median(right) if right else None, median_interval(right), median(any_) if any_ else None, median_interval(any_),
        logs, false, rates,
    )  # fmt: skip


def wilson(hits: int, trials: int) -> Interval:
    """Wilson's score interval of a share."""
    if not trials:
        return Interval(math.nan, math.nan)
    share, square = hits / trials, _Z * _Z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return Interval(0.0 if hits == 0 else centre - half, 1.0 if hits == trials else centre + half)


def poisson(count: int) -> Interval:
    """The exact (Garwood's) interval of a Poisson mean, by bisection of the distribution function."""
    low = 0.0 if count == 0 else _mean_at(count - 1, 0.975)
    return Interval(low, _mean_at(count, 0.025))


def _mean_at(count: int, level: float) -> float:
    """The mean at which P(X <= count) is `level`."""
    low, high = 0.0, 2.0 * count + 20
    while high - low > 1e-9 * (1 + high):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, middle) > level else (low, middle)
    return (low + high) / 2


def _at_most(count: int, mean: float) -> float:
    """P(X <= count) of a Poisson mean, summed from its largest term down, since the smaller ones soon add nothing."""
    if mean <= 0:
        return 1.0
    top = min(count, int(mean))
    peak = math.exp(top * math.log(mean) - mean - math.lgamma(top + 1))
    total, term = peak, peak
    for index in range(top, 0, -1):
        term *= index / mean
        total += term
        if term < total * 1e-16:
            break
    term = peak
    for index in range(top + 1, count + 1):
        term *= mean / index
        total += term
        if term < total * 1e-16:
            break
    return min(1.0, total)


def median_interval(values: Sequence[int]) -> Interval | None:
    """A distribution-free interval of the median, by order statistics; None without values."""
    if not values:
        return None
    ranked, count = sorted(values), len(values)
    reach = _Z * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return Interval(ranked[max(0, low - 1)], ranked[min(count - 1, high)])
