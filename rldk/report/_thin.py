"""One metric's curve over a run of any length, in constant memory, without losing a spike or a NaN.

A curve is cut into at most `BUCKETS` buckets of equally many logged values. Each keeps its lowest and its highest value,
where they were, and its mean, since an average of extremes is none of the values. When all buckets are used, neighbours are merged and the buckets hold twice as many from then on. Up to
`2 * BUCKETS` values nothing is lost, since a bucket of two values keeps both.

NaN and infinities are kept beside the curve, as spans of steps.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

__all__ = ["BUCKETS", "Curve", "Gap"]

BUCKETS = 1024
_MAX_GAPS = 256

# First step, last step, number of values, and `nan`, `inf`, `-inf` or `mixed`.
Gap = tuple[int, int, int, str]
Numbers = np.ndarray[Any, Any]


class Curve:
    """A metric over the steps.

    Attributes:
        logged: Finite values that it was given.
        width: Logged values a bucket, at most.
        gaps: Spans without a finite value.
    """

    __slots__ = ("_high", "_high_step", "_in_gap", "_low", "_low_step", "_means", "_open", "_steps", "_sum", "_values", "gaps", "logged", "width")

    def __init__(self) -> None:
        self.logged = 0
        self.width = 2
        self.gaps: list[Gap] = []
        self._in_gap = False
        self._steps = array("q")
        self._values = array("d")
        self._means = array("d")  # one a bucket, once buckets hold more than their two points
        self._open, self._sum = 0, 0.0  # values in the bucket that is not full yet, their sum, and their extremes
        self._low = self._high = 0.0
        self._low_step = self._high_step = 0

    def fold(self, steps: Numbers, values: Numbers) -> None:
        """Takes values (float64) with their steps (int64), in the order in which they were logged; NaN is a value."""
        finite = np.isfinite(values)
        if not finite.all():
            self._note_gaps(steps, values, finite)
            steps, values = steps[finite], values[finite]
        elif len(values):
            self._in_gap = False
        self.logged += len(values)
        while len(values):
            taken = self._take(steps, values)
            steps, values = steps[taken:], values[taken:]
            if len(self._steps) >= 2 * BUCKETS:
                steps_so_far, values_so_far, means = _halved(*self._points())
                self._steps, self._values, self._means = array("q"), array("d"), array("d")
                self._keep(steps_so_far, values_so_far, means)
                self.width *= 2

    def _note_gaps(self, steps: Numbers, values: Numbers, finite: Numbers) -> None:
        odd = np.flatnonzero(~finite)
        for run in np.split(odd, np.flatnonzero(np.diff(odd) > 1) + 1):
            kinds = {"nan" if value != value else "inf" if value > 0 else "-inf" for value in np.unique(values[run])}
            gap = int(steps[run[0]]), int(steps[run[-1]]), len(run), kinds.pop() if len(kinds) == 1 else "mixed"
            if run[0] == 0 and self._in_gap:
                self.gaps[-1] = _joined(self.gaps[-1], gap)
            else:
                self.gaps.append(gap)
        while len(self.gaps) > _MAX_GAPS:
            pairs = [self.gaps[at : at + 2] for at in range(0, len(self.gaps), 2)]
            self.gaps = [_joined(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        self._in_gap = not finite[-1]

    def _take(self, steps: Numbers, values: Numbers) -> int:
        """Takes what fits into the buckets as they are; returns how many values that were."""
        width, room = self.width, BUCKETS - len(self._steps) // 2
        if width == 2:
            taken = min(len(values), 2 * BUCKETS - len(self._steps))
            self._keep(steps[:taken], values[:taken])
        elif self._open or len(values) < width:
            taken = min(len(values), width - self._open)
            self._widen(steps[:taken], values[:taken])
        else:
            whole = min(len(values) // width, room)
            taken = whole * width
            table = values[:taken].reshape(whole, width)
            self._keep(*_extremes(steps[:taken], values[:taken], table), _mean(table))
        return taken

    def _widen(self, steps: Numbers, values: Numbers) -> None:
        """Takes values into the open bucket, and closes it when it is full."""
        (low_step, high_step), (low, high) = _extremes(steps, values, values.reshape(1, len(values)))
        if low > high:
            low_step, low, high_step, high = high_step, high, low_step, low
        if not self._open or low < self._low:
            self._low, self._low_step = float(low), int(low_step)
        # Of a constant stretch both ends are kept.
        if not self._open or high > self._high or (high == self._high and self._low == self._high):
            self._high, self._high_step = float(high), int(high_step)
        self._open += len(values)
        self._sum += float(values.sum())
        if self._open >= self.width:
            for step, value in self._open_points():
                self._steps.append(step)
                self._values.append(value)
            self._means.append(self._open_mean())
            self._open, self._sum = 0, 0.0

    def _open_points(self) -> list[tuple[int, float]]:
        return sorted(((self._low_step, self._low), (self._high_step, self._high)), key=lambda point: point[0])

    def _open_mean(self) -> float:
        # The largest floats overflow a sum; a mean lies between the extremes in any case.
        return min(max(self._sum / self._open, self._low), self._high)

    def _keep(self, steps: Numbers, values: Numbers, means: Numbers | None = None) -> None:
        self._steps.frombytes(np.ascontiguousarray(steps, dtype=np.int64).tobytes())
        self._values.frombytes(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        if means is not None:
            self._means.frombytes(np.ascontiguousarray(means, dtype=np.float64).tobytes())

    def _points(self) -> tuple[Numbers, Numbers, Numbers]:
        # Copies: an array cannot grow while something looks into its memory.
        steps, values = np.array(self._steps, dtype=np.int64), np.array(self._values, dtype=np.float64)
        if self.width == 2:
            return steps, values, _mean(values[: len(values) // 2 * 2].reshape(-1, 2))
        return steps, values, np.array(self._means, dtype=np.float64)

    def points(self, most: int = 2 * BUCKETS) -> tuple[list[int], list[float], list[float]]:
        """The curve in step order, of about so many points at most; thinned further for it if need be.

        Returns:
            Steps, values, and the mean of what each pair of points stands for; without means if nothing is thinned, or
            if steps went back.
        """
        steps, values, means = self._points()
        if self._open:
            rest = self._open_points()[: self._open]  # of a single value one is enough
            steps = np.append(steps, [step for step, _ in rest])
            values = np.append(values, [value for _, value in rest])
            if len(rest) == 2:
                means = np.append(means, self._open_mean())
        while len(steps) > max(most, 8):
            steps, values, means = _halved(steps, values, means)
        if len(steps) >= self.logged:
            means = means[:0]
        if (steps[1:] < steps[:-1]).any():
            order = np.argsort(steps, kind="stable")
            steps, values, means = steps[order], values[order], means[:0]
        return steps.tolist(), values.tolist(), means.tolist()


def _extremes(steps: Numbers, values: Numbers, table: Numbers) -> tuple[Numbers, Numbers]:
    """Steps and values of each row's lowest and highest value, in the order in which they came.

    Of a row of equal values it is the first and the last.
    """
    rows, width = table.shape
    low, high = table.argmin(axis=1), table.argmax(axis=1)
    high[low == high] = width - 1
    low[(low == high) & (width > 1)] = 0
    pairs = np.sort(np.stack((low, high), axis=1), axis=1) + np.arange(rows)[:, None] * width
    chosen = pairs.ravel()
    return steps[chosen], values[chosen]


def _halved(steps: Numbers, values: Numbers, means: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Two neighbouring buckets, four points, become one: the lowest and the highest of them, in their order."""
    whole = len(steps) // 4 * 4
    kept_steps, kept = _extremes(steps[:whole], values[:whole], values[:whole].reshape(-1, 4))
    merged = np.concatenate((_mean(means[: whole // 2].reshape(-1, 2)), means[whole // 2 :]))
    return np.concatenate((kept_steps, steps[whole:])), np.concatenate((kept, values[whole:])), merged


def _mean(table: Numbers) -> Numbers:
    """The mean of each row; halved first, so that the largest floats do not overflow."""
    mean: Numbers = (table * (1.0 / table.shape[1])).sum(axis=1)
    return mean


def _joined(first: Gap, second: Gap) -> Gap:
    kind = first[3] if first[3] == second[3] else "mixed"
    return min(first[0], second[0]), max(first[1], second[1]), first[2] + second[2], kind
