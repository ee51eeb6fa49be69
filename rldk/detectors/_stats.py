"""Streaming statistics that detectors share: constant memory, a fraction of a microsecond an update.

Spikes and shifts are judged in the log domain, where noise that grows with the level is even, and with winsorised
updates, so that an outlier does not raise the baseline that it is held against. A trailing z-score does neither, and
alarms on nearly every noisy healthy run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

__all__ = ["Baseline", "FastSlow", "Gain", "LogLevel", "Mean", "Progress", "Streak", "Surge", "Window", "median"]


def median(values: Iterable[float]) -> float:
    """The middle of the values; NaN for none."""
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return math.nan
    middle = count // 2
    return ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Mean:
    """An exponential mean. Until it has seen 1/alpha values it is their plain mean, so that it has no start-up bias.

    Args:
        alpha: Weight of a new value, from 0 to 1.
    """

    __slots__ = ("alpha", "count", "value")

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> float:
        """Takes a finite value in; returns the mean."""
        count = self.count = self.count + 1
        first = 1.0 / count
        self.value += (value - self.value) * (first if first > self.alpha else self.alpha)
        return self.value


class LogLevel:
    """Centre and spread of a positive series in the log domain, both robust against outliers.

    The centre is an exponential mean of the logarithm, the spread 1.25 times the exponential mean of the absolute
    deviation (which is the standard deviation for a normal law). A value further out than `clip` spreads is taken in as
    if it stood there.

    Args:
        alpha: Weight of a new value.
        clip: Spreads beyond which a value is winsorised.
        floor: Smallest spread in log units, so that a steady series does not make a molehill an outlier.
    """

    __slots__ = ("alpha", "centre", "clip", "count", "deviation", "floor")

    def __init__(self, alpha: float = 0.05, clip: float = 3.0, floor: float = 0.05) -> None:
        self.alpha = alpha
        self.clip = clip
        self.floor = floor
        self.centre = 0.0
        self.deviation = 0.0
        self.count = 0

    @property
    def level(self) -> float:
        """The centre, back in the series' own unit."""
        return math.exp(self.centre)

    @property
    def spread(self) -> float:
        """The robust standard deviation, in log units."""
        return max(self.floor, 1.25 * self.deviation)

    def score(self, logarithm: float) -> tuple[float, float]:
        """How far a value's logarithm is above the centre: in log units, and in spreads. Takes nothing in."""
        above = logarithm - self.centre
        return above, above / max(self.floor, 1.25 * self.deviation)

    def add(self, logarithm: float) -> None:
        """Takes the logarithm of a value in."""
        # Written out, since a call of `max` costs more than the rest of a line.
        count = self.count = self.count + 1
        if count == 1:
            self.centre = logarithm
            return
        above = logarithm - self.centre
        if count > 10:
            spread = 1.25 * self.deviation
            limit = self.clip * (spread if spread > self.floor else self.floor)
            above = limit if above > limit else -limit if above < -limit else above
        first = 1.0 / count
        weight = first if first > self.alpha else self.alpha
        self.centre += weight * above
        self.deviation += weight * (abs(above) - self.deviation)


class FastSlow:
    """A fast and a slow exponential mean of one series: their difference shows a shift of level that lasts.

    Args:
        fast: Weight of a new value in the fast mean.
        slow: Weight of a new value in the slow mean.
    """

    __slots__ = ("count", "fast", "fast_alpha", "slow", "slow_alpha")

    def __init__(self, fast: float = 0.3, slow: float = 0.03) -> None:
        self.fast_alpha = fast
        self.slow_alpha = slow
        self.fast = 0.0
        self.slow = 0.0
        self.count = 0

    def add(self, value: float) -> float:
        """Takes a value in; returns fast minus slow."""
        count = self.count = self.count + 1
        first = 1.0 / count
        self.fast += (value - self.fast) * (first if first > self.fast_alpha else self.fast_alpha)
        self.slow += (value - self.slow) * (first if first > self.slow_alpha else self.slow_alpha)
        return self.fast - self.slow


class Window:
    """The last values, with their mean in constant time.

    Args:
        size: How many are kept.
    """

    __slots__ = ("_until_exact", "total", "values")

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.total = 0.0
        self._until_exact = 1000

    def add(self, value: float) -> float:
        """Takes a finite value in; returns the mean of those that are kept."""
        values = self.values
        if len(values) == values.maxlen:
            self.total -= values[0]
        values.append(value)
        self.total += value
        self._until_exact -= 1
        if self._until_exact < 0:
            self.total = math.fsum(values)  # rounding, and values near the largest float, must not pile up
            self._until_exact = 1000
        return self.total / len(values)

    @property
    def full(self) -> bool:
        """Whether as many values are there as are kept."""
        return len(self.values) == self.values.maxlen

    @property
    def mean(self) -> float:
        """Their mean; NaN for none."""
        return self.total / len(self.values) if self.values else math.nan


class Baseline:
    """The median of a series' early values, fixed once they are all there.

    Args:
        skip: Values to pass over first: the first steps of training are like no others.
        size: Values that the median is taken of.
    """

    __slots__ = ("_seen", "_skip", "_values", "size", "value")

    def __init__(self, skip: int = 5, size: int = 20) -> None:
        self._skip = skip
        self._seen = 0
        self.size = size
        self._values: list[float] = []
        self.value: float | None = None

    def add(self, value: float) -> float | None:
        """Takes a finite value in; returns the baseline, None while it is not there yet."""
        if self.value is None:
            self._seen += 1
            if self._seen > self._skip:
                self._values.append(value)
                if len(self._values) == self.size:
                    self.value = median(self._values)
                    self._values = []
        return self.value


class Streak:
    """Bad logs in a row, held against how often bad ones come in this very run.

    A run in which every third batch is bad by nature has streaks of four or five now and then; one that never had any
    does not. A streak is judged too long when a run with this one's share of bad logs would show it at a given log with
    a probability below `chance`.

    Args:
        least: Shortest streak that can be too long.
        chance: Probability below which it is.
    """

    __slots__ = ("_bad", "_good", "chance", "least", "length")

    def __init__(self, least: int = 6, chance: float = 1e-5) -> None:
        self.least = least
        self.chance = math.log(chance)
        self.length = 0
        self._bad = 0.0
        self._good = 0.0

    @property
    def from_start(self) -> bool:
        """Whether there has been no good log yet."""
        return self._good == 0.0

    def good(self) -> None:
        """Takes a good log in."""
        if self.length:
            self._bad += self.length
            self.length = 0
        self._good += 1.0
        if self._good + self._bad > 400.0:  # the share is that of the last few hundred logs
            self._good *= 0.5
            self._bad *= 0.5

    def bad(self) -> bool:
        """Takes a bad log in; returns whether the streak is now too long."""
        self.length += 1
        if self.length < self.least:
            return False
        share = (self._bad + 1.0) / (self._bad + self._good + 2.0)
        return self.length * math.log(share) < self.chance


class Gain:
    """What a reward has gained since the start, to tell a task that is solved from one that gives no signal.

    Args:
        first: Values whose mean is where it started.
    """

    __slots__ = ("count", "first", "level", "start", "top")

    def __init__(self, first: int = 5) -> None:
        self.first = first
        self.count = 0
        self.start = 0.0
        self.level = 0.0
        self.top = -math.inf

    def add(self, value: float) -> None:
        """Takes a finite value in."""
        self.count += 1
        if self.count <= self.first:
            self.start += (value - self.start) / self.count
            self.level = self.start
        else:
            self.level += 0.3 * (value - self.level)
        if value > self.top:
            self.top = value

    def solved(self, value: float) -> bool:
        """Whether the reward has clearly risen during the run, and this value stands where it has never been higher."""
        gain = self.top - self.start
        return (
            gain > 0.05 * max(abs(self.top), abs(self.start))
            and value >= self.top - 0.1 * gain
            and self.level >= self.start + 0.7 * gain
        )


class Surge:
    """How far a positive series stands above its own past, in log units: now, and for some time.

    Two references, both means of the logarithm with winsorised updates: `centre`, the recent level, and `past`, the
    level over hundreds of logs, so that a series that converged and then bounces is not held against its low alone.
    `fast` follows the series within a few logs; `spread` is the robust standard deviation around it, so that a trend does
    not count as noise; `peak` is the largest such deviation of late, up or down, that the series has survived. With `hold`, a level that seems to have shifted up is held against what was before it for so long.

    Args:
        alpha: Weight of a new value in the recent level.
        floor: Smallest spread in log units.
        hold: Values for which the recent level does not follow one that seems to have shifted up.
    """

    __slots__ = ("_deviation", "_held", "alpha", "centre", "count", "fast", "floor", "hold", "past", "peak")

    def __init__(self, alpha: float = 0.04, floor: float = 0.1, hold: int = 0) -> None:
        self.alpha = alpha
        self.floor = floor
        self.hold = hold
        self.centre = 0.0
        self.past = 0.0
        self.fast = 0.0
        self.peak = 0.0
        self._deviation = 0.0
        self._held = 0
        self.count = 0

    @property
    def spread(self) -> float:
        """The robust standard deviation, in log units."""
        spread = 1.25 * self._deviation
        return spread if spread > self.floor else self.floor

    @property
    def reference(self) -> float:
        """The higher of the recent and the long-term level, as a logarithm."""
        return self.centre if self.centre > self.past else self.past

    def add(self, logarithm: float) -> None:
        """Takes the logarithm of a value in."""
        count = self.count = self.count + 1
        if count == 1:
            self.centre = self.past = self.fast = logarithm
            return
        first = 1.0 / count
        limit = 3.75 * self._deviation
        if limit < 3.0 * self.floor:
            limit = 3.0 * self.floor
        off = logarithm - self.fast
        self.fast += off * (0.3 if count > 3 else first)
        size = off if off >= 0.0 else -off
        peak = 0.995 * self.peak
        self.peak = size if size > peak else peak
        above = logarithm - self.centre
        if count > 10:
            if size > limit:
                size = limit
            if above > limit:
                above = limit
            elif above < -2.0 and above < -limit:  # a level may fall as fast as it likes, short of a single freak
                above = -limit if limit > 2.0 else -2.0
            if self.hold and self.fast - self.centre > 0.5 and self.fast - self.centre > 1.25 * self._deviation:
                self._held += 1
                if self._held <= self.hold and above > 0.0:
                    above = 0.0
            else:
                self._held = 0
        weight = self.alpha if self.alpha > first else first
        self._deviation += weight * (size - self._deviation)
        self.centre += weight * above
        self.past += (self.centre - self.past) * (0.004 if count > 250 else first)


class Progress:
    """Whether a noisy series, the reward, has risen since the start, still rises, or has fallen from its best.

    Args:
        start: Values whose mean is the level at the start.
    """

    __slots__ = ("_since", "best", "count", "fast", "noise", "start", "start_size")

    def __init__(self, start: int = 5) -> None:
        self.start_size = start
        self.start = 0.0
        self.fast = 0.0
        self.best = 0.0
        self.noise = 0.0
        self.count = 0
        self._since = 0

    def add(self, value: float) -> None:
        """Takes a finite value in."""
        count = self.count = self.count + 1
        if count == 1:
            self.fast = self.start = self.best = value
            return
        first = 1.0 / count
        off = value - self.fast
        self.noise += ((off if off >= 0.0 else -off) - self.noise) * (0.05 if count > 21 else 1.0 / (count - 1))
        self.fast += off * (0.25 if count > 4 else first)
        self._since += 1
        if count <= self.start_size:
            self.start += (value - self.start) * first
            self.best = self.start
        elif self.fast > self.best:
            if self.fast - self.best > 0.02 * (self.best - self.start):
                self._since = 0  # of smaller gains it takes several
            self.best = self.fast

    @property
    def risen(self) -> bool:
        """Clearly above the level at the start."""
        return self.fast - self.start > self.noise + 0.02 * abs(self.start)

    @property
    def rising(self) -> bool:
        """Whether its mean was better than ever within the last 8 values, by more than a trifle."""
        return self._since < 8

    def fallen(self, share: float) -> bool:
        """Whether that share of what was gained since the start is lost, and more than noise accounts for.

        A series that never gained anything has fallen when it is clearly below its start.
        """
        gained = self.best - self.start
        lost = self.best - self.fast
        return lost > share * gained and lost > 2.0 * self.noise + 0.02 * abs(self.best)
