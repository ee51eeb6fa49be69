"""Completions that grow for the reward's sake, or shrink at the task's cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_EARLY = 5  # logs that the baseline is made of
_LEAST = 12
_FAST = 0.2
_SLOW = 0.05
_BOUND = 1e12
_COMPONENTS = 8
_CORRELATED = 0.6


class _Score:
    """A reward beside the length: where it began, where it is, its best, its jitter, and whether it moves with the length.

    How it moves is read from log to log, so that two series that merely both rise are not taken for related.
    """

    __slots__ = ("best", "change", "count", "fast", "jitter", "last", "now", "slow", "start", "together")

    def __init__(self) -> None:
        self.count = 0
        self.last: float | None = None  # None where the log before had none
        self.now = False
        self.start = self.fast = self.slow = self.best = self.jitter = 0.0
        self.change = self.together = 0.0  # mean square of its changes, and mean product with those of the length

    def add(self, value: float, change: float | None) -> None:
        """Takes a value in, and the change of the length since the log before (None if that is not known)."""
        self.count = count = self.count + 1
        first = 1.0 / count
        if self.last is not None:
            step = value - self.last
            weight = first if first > _SLOW else _SLOW
            self.jitter += weight * (abs(step) - self.jitter)
            if change is not None:
                self.change += weight * (step * step - self.change)
                self.together += weight * (step * change - self.together)
        self.last = value
        self.fast += (first if first > _FAST else _FAST) * (value - self.fast)
        self.slow += (first if first > _SLOW else _SLOW) * (value - self.slow)
        if count <= _EARLY:
            self.start = self.fast
        if self.slow > self.best or count <= _EARLY:
            self.best = self.slow

    def correlation(self, lengths: float) -> float:
        """Correlation of its changes with those of the length, whose mean square is given."""
        scale = self.change * lengths
        return self.together / math.sqrt(scale) if scale > 0.0 else 0.0

    @property
    def gain(self) -> float:
        """What it has gained since the start, in jitters of the smoothed value; 0 if it never moved."""
        return (self.fast - self.start) / (self.jitter or 1e-9)

    @property
    def fallen(self) -> bool:
        """Whether it is clearly below the best that it has been, or below where it began."""
        reference = max(self.best, self.start)
        return reference - self.fast > max(self.jitter, 0.1 * abs(reference), 1e-6)


class LengthDrift(Detector):
    """Completions grow because length itself is rewarded, or collapse while the task is lost.

    What it sees: `length_mean`, `reward_mean` and the means of the single reward functions, `rewards/<function>/mean`.
    Why it matters: length is the easiest thing to learn. A reward that pays for it, even in part, is raised by padding,
    and one that punishes it by saying nothing.
    When it fires: growth: the mean length is 1.5 times the lowest that it was for long, the reward has risen, and from log to log
    the two move together (correlation of the changes above 0.6), while no reward function that does not move with the
    length has gained; for `patience` (5) logs. Collapse: the mean length is below half of what it was (or three quarters,
    if the reward moves against it from log to log) while the reward or one of its functions has fallen, or the reward
    has gained nothing; for as many logs.
    What to do: growth: `loss_type="dr_grpo"` or "dapo", a penalty on overlong completions, `mask_truncated_completions`; look
    at what the reward function counts. Collapse: look at completions; a brevity term may outweigh the task
    (`reward_weights`).
    False alarms: answers that grow because longer ones are better have a reward that does not follow the length from
    log to log, or a second reward function that gains: neither raises an alert. Nor do answers that get shorter
    while the reward rises. `eval_reward_mean` is no independent judge, since it is the same reward, and is not used.
    Sources: Singhal et al., "A long way to go" (a length-only reward reproduces most gains of RLHF), open-r1 issue 255
    (387 to 190 tokens while the accuracy reward fell), rldoctor (0.5 and 0.6); the test on changes is chosen here.

    Args:
        growth: Times the lowest lasting mean length above which growth is looked at.
        shrinkage: Share of the mean length below which a collapse is looked at.
        patience: Logs in a row.
    """

    code = "length_drift"
    title = "Length drives the reward"
    watches = ("length_mean",)
    only_watched = True
    needs = "completion lengths and rewards (GRPO, RLOO)"
    advice = (
        "Read completions and what the reward function counts. Growth: loss_type=\"dr_grpo\" or \"dapo\", a penalty on "
        "overlong completions. Collapse: weigh the task higher than brevity (reward_weights)."
    )
    cooldown = 50

    def __init__(self, *, growth: float = 1.5, shrinkage: float = 0.5, patience: int = 5) -> None:
        self.growth = number_parameter(self.code, "growth", growth, low=1.0)
        self.shrinkage = number_parameter(self.code, "shrinkage", shrinkage, low=0.0, high=1.0)
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self._count = 0
        self._last: float | None = None
        self._fast = self._slow = self._longest = self._shortest = 0.0
        self._change = 0.0  # mean square of the changes of the length
        self._total = _Score()
        self._parts: dict[str, _Score] = {}
        self._named = -1  # number of metrics when the names of the parts were last looked up
        self._grown = 0
        self._shrunk = 0

    def judge(self, event: Event) -> Answer:
        """Takes the length and the rewards in, and looks closer where the length has left its range."""
        metrics = event.metrics
        length = metrics.get("length_mean")
        if length is None:
            return ABSENT
        reward = metrics.get("reward_mean")
        if not 0.0 <= length < _BOUND or reward is None or not -_BOUND < reward < _BOUND:
            return WARMING
        change = None if self._last is None else length - self._last
        self._last = length
        self._count = count = self._count + 1
        first = 1.0 / count
        if change is not None:
            self._change += (first if first > _SLOW else _SLOW) * (change * change - self._change)
        self._fast = fast = self._fast + (first if first > _FAST else _FAST) * (length - self._fast)
        self._slow += (first if first > _SLOW else _SLOW) * (length - self._slow)
        self._total.add(reward, change)
        if len(metrics) != self._named:
            self._name(event)
        for name, part in self._parts.items():
            value = metrics.get(name)
            if value is not None and -_BOUND < value < _BOUND:
                part.add(value, change)
            else:
                part.last = None
        slow = self._slow
        if count <= _EARLY:
            self._longest = self._shortest = slow
        elif slow > self._longest:
            self._longest = slow
        elif slow < self._shortest:
            self._shortest = slow
        if count < _LEAST:
            return WARMING
        if fast > self.growth * self._shortest:
            return self._growing(length)
        self._grown = 0
        if fast < 0.5 * (1.0 + self.shrinkage) * self._longest:
            return self._shrinking(length)
        self._shrunk = 0
        return FINE

    def _name(self, event: Event) -> None:
        """Looks up the reward functions' names: only when a log has more or fewer metrics than the one before."""
        self._named = len(event.metrics)
        for name in event.metrics:
            if name.startswith("rewards/") and name.endswith("/mean") and len(self._parts) < _COMPONENTS:
                self._parts.setdefault(name, _Score())

    def _growing(self, length: float) -> Answer:
        total = self._total
        together = total.correlation(self._change)
        # Once it is a finding, it stays one while the length stays: at the cap nothing moves together any more.
        hacked = self._grown >= self.patience or (together > _CORRELATED and total.gain > 1.0)
        if not hacked or self._other_gain():
            self._grown = 0
            return FINE
        self._grown += 1
        if self._grown < self.patience:
            return FINE
        times = self._fast / max(self._shortest, 1e-9)
        message = (
            f"length_mean is {number(length)}, {number(round(times, 1))} times the {number(self._shortest)} of before, and "
            f"the reward moves with it from log to log (correlation {number(round(together, 2))})."
        )
        evidence = {"correlation": together, "reward_mean": total.fast, "reward_at_start": total.start}
        return Finding("length_mean", length, self.growth * self._shortest, message, Severity.WARNING, evidence)

    def _other_gain(self) -> bool:
        """Whether a reward function has gained that does not follow the length."""
        if len(self._parts) < 2:
            return False
        for part in self._parts.values():
            if part.count >= _LEAST and part.gain > 2.0 and part.correlation(self._change) < _CORRELATED:
                return True
        return False

    def _shrinking(self, length: float) -> Answer:
        total = self._total
        part = next((name for name, part in self._parts.items() if part.count >= _LEAST and part.fallen), "")
        fallen = "the reward" if total.fallen else part
        # Where brevity is what is rewarded, and something else is lost by it, half the way is far enough.
        paid = bool(part) and total.correlation(self._change) < -_CORRELATED
        if not paid and (self._fast >= self.shrinkage * self._longest or (not fallen and total.gain > 0.5)):
            self._shrunk = 0
            return FINE
        self._shrunk += 1
        if self._shrunk < self.patience:
            return FINE
        message = (
            f"length_mean is {number(length)}, down from {number(self._longest)}, while "
            f"{f'{fallen} has fallen' if fallen else 'the reward has gained nothing'}."
        )
        evidence = {"reward_mean": total.fast, "reward_at_start": total.start}
        return Finding("length_mean", length, self.shrinkage * self._longest, message, Severity.WARNING, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Padding, silence, and lengths that change for good reasons."""
        wobble = (0.0, 0.9, -0.7, 0.3, -1.1, 0.6, -0.2, 1.0, -0.8, 0.1, 0.4)

        def noise(log: int, shift: int = 0) -> float:
            return wobble[(log * (3 + shift) + shift) % 11]

        padded = [100 + 3 * log + 4 * noise(log) for log in range(100)]
        yield Example("length is the reward", [{"length_mean": size, "reward_mean": size / 100} for size in padded], [30])
        yield Example("thinks longer, and is right more often", [
            {"length_mean": size, "reward_mean": 0.3 + 0.006 * log + 0.04 * noise(log, 2)} for log, size in enumerate(padded)
        ], [])
        yield Example("a second reward gains too", [
            {
                "length_mean": size, "reward_mean": size / 100 + 0.01 * log,
                "rewards/long/mean": size / 100, "rewards/right/mean": 0.01 * log + 0.02 * noise(log, 2),
            }
            for log, size in enumerate(padded)
        ], [])
        shrunk = [max(5.0, 100 * 0.97**log) + noise(log) for log in range(100)]
        yield Example("brevity at the task's cost", [
            {
                "length_mean": size, "reward_mean": -size / 100,
                "rewards/short/mean": -size / 100, "rewards/right/mean": 0.8 * min(1.0, size / 60) + 0.01 * noise(log, 2),
            }
            for log, size in enumerate(shrunk)
        ], [29])
        yield Example("short and right", [
            {"length_mean": size, "reward_mean": 0.3 + 0.006 * log + 0.04 * noise(log, 2)} for log, size in enumerate(shrunk)
        ], [])
        yield Example("lengths jump", [
            {"length_mean": 100 * (1 + 0.3 * noise(log)), "reward_mean": 0.5 + 0.1 * noise(log, 2)} for log in range(200)
        ], [])
