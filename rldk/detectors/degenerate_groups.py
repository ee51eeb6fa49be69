"""Groups of completions that all got the same reward: no advantage, no signal."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Gain, Streak

# At or above this every group of the batch was degenerate.
_ALL = 0.999
# Deviation of equal rewards, as a share of them: 0.7 has no exact float32, so that TRL finds a spread of 6e-8 and counts no
# group as degenerate.
_ROUNDING = 1e-6
# Beyond this a reward is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
# Weight of a log in the mean share: about the last 50.
_ALPHA = 0.04


class DegenerateGroups(Detector):
    """All completions of a prompt get the same reward, in every group or in nearly every one.

    What it sees: `frac_zero_std`, and a `reward_std` of zero or of rounding alone (TRL up to 0.17 logs no share, and later
    ones miss a constant that float32 cannot hold, such as 0.7); `reward_mean` to know a solved task.
    Why it matters: GRPO and RLOO learn from differences inside a group. Without any, sampling is paid for and nothing is
    learnt.
    When it fires: critical when every group of the first `patience` logs is degenerate (twice as many while the reward is
    constant at zero or below, or takes two values only: a sparse reward that is hardly ever earned yet). A warning when such logs come in a streak longer
    than this run's own share of them explains (one in 100,000; six at least), critical at 12; a warning when the mean
    share over the last 50 or so logs is `share` or more, critical above 0.98.
    What to do: harder or easier prompts, more `num_generations`, a higher `temperature`, a graded reward.
    False alarms: with a sparse reward most groups are degenerate in a healthy run (0.8 of four groups leaves 4 batches in
    10 empty), so nothing is said below that; a reward that has clearly risen and stands at its best is a solved task.
    Blind where `scale_rewards="batch"`, for which TRL computes the share over the batch: `zero_gradient` sees those.
    Sources: DAPO's dynamic sampling; TRL issue 3857; rldoctor's levels of 0.5 and 0.75 were raised here, because healthy
    sparse runs reach them.

    Args:
        patience: Logs from the start in which all groups must be degenerate.
        share: Mean share of degenerate groups among the last logs.
    """

    code = "degenerate_groups"
    title = "Groups without a signal"
    watches = ("frac_zero_std", "reward_std")
    only_watched = True
    needs = "the share of groups with equal rewards, which GRPO and RLOO log"
    advice = (
        "Look at the rewards of one group: if they are all equal, the reward function is constant, the prompts are too "
        "hard or too easy, or sampling is (nearly) greedy. Raise temperature or num_generations, change the prompts, or "
        "grade the reward."
    )
    cooldown = 30

    def __init__(self, *, patience: int = 5, share: float = 0.9) -> None:
        self.patience = number_parameter(self.code, "patience", patience, low=2, whole=True)
        self.share = number_parameter(self.code, "share", share, low=0.1, high=1.0)
        self._streak = Streak(least=6)
        self._gain = Gain()
        self._count = 0
        self._mean = 0.0
        self._rewards: set[float] = set()  # different ones, three at most, before the first good log
        self._open = False
        self._good = 0

    def judge(self, event: Event) -> Answer:
        """Counts wholly degenerate batches from the start and in a row, and averages the share."""
        metrics = event.metrics
        name = "frac_zero_std"
        value = share = metrics.get(name)
        reward, spread = metrics.get("reward_mean"), metrics.get("reward_std")
        if spread is not None and 0.0 <= spread <= _ROUNDING * max(1.0, abs(reward or 0.0)):
            name, value, share = "reward_std", spread, 1.0
        elif share is None:
            if spread is None:
                return ABSENT
            name, value, share = "reward_std", spread, 0.0 if spread == spread else spread
        if not -_HUGE < share < _HUGE:
            return WARMING
        solved = False
        if reward is not None and -_HUGE < reward < _HUGE:
            self._gain.add(reward)
            if self._streak.from_start and len(self._rewards) < 3:
                self._rewards.add(reward)
            solved = share > 0.5 and self._gain.solved(reward)
        share = 0.0 if solved or share < 0.0 else 1.0 if share > 1.0 else share
        self._count += 1
        self._mean += (share - self._mean) * max(_ALPHA, 1.0 / self._count)
        streak = self._streak
        if share < _ALL:
            streak.good()
            self._good += 1
            if self._mean < self.share - (0.1 if self._open else 0.0):
                if self._open and self._good < 3:
                    return self._finding(name, value, Severity.WARNING)
                self._open = False
                return FINE
            return self._by_mean(name, value)
        self._good = 0
        too_long = streak.bad()
        if streak.from_start:
            # Zero or minus one again and again, or all against nothing: a hard task with a sparse reward begins so.
            sparse = len(self._rewards) == 2 or (len(self._rewards) == 1 and max(self._rewards) <= 0.0)
            if streak.length >= self.patience * (2 if sparse else 1):
                self._open = True
                return self._finding(name, value, Severity.CRITICAL)
            return FINE
        if too_long:
            self._open = True
            return self._finding(name, value, Severity.CRITICAL if streak.length >= 12 else Severity.WARNING)
        if self._mean >= self.share:
            return self._by_mean(name, value)
        return self._finding(name, value, Severity.WARNING) if self._open else FINE

    def _by_mean(self, name: str, value: float | None) -> Answer:
        if self._count < 50:
            return self._finding(name, value, Severity.WARNING) if self._open else FINE
        self._open = True
        return self._finding(name, value, Severity.CRITICAL if self._mean > 0.98 else Severity.WARNING)

    def _finding(self, name: str, value: float | None, severity: Severity) -> Finding:
        length = self._streak.length
        message = (
            f"{name} is {number(value)}: {length} logs in a row{' from the start' if self._streak.from_start else ''} "
            f"without one group whose rewards differ, and {100 * self._mean:.0f} % such groups over the last logs."
        )
        evidence = {"streak": length, "share_of_last_logs": self._mean, "reward_level": self._gain.level}
        return Finding(name, value, None, message, severity, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A constant reward, a policy that stops varying, a sparse reward, and a solved task."""
        yield Example("constant reward", [{"frac_zero_std": 1.0, "reward_mean": 1.0, "reward_std": 0.0}] * 20, [5])
        tiny = {"frac_zero_std": 0.0, "reward_mean": 0.7, "reward_std": 6e-8}
        yield Example("a constant that float32 cannot hold", [tiny] * 20, [5])
        yield Example("the prompt is scored", [{"frac_zero_std": 1.0, "reward_mean": 1.0 + step % 3, "reward_std": 2.67}
                                               for step in range(20)], [5])
        yield Example("nobody has earned it", [{"frac_zero_std": 1.0, "reward_mean": 0.0}] * 20, [10])
        varied = [{"frac_zero_std": 0.25 * (step % 3), "reward_mean": 0.5 + 0.1 * (step % 3)} for step in range(60)]
        yield Example("stops varying", [*varied, *[{"frac_zero_std": 1.0, "reward_mean": 0.4}] * 9], [66])
        bits = [(step * 2654435761 >> 7) % 100 < 45 for step in range(1, 400)]
        sparse = [{"frac_zero_std": 1.0 if bit else 0.75, "reward_mean": 0.0 if bit else 0.1} for bit in bits]
        yield Example("sparse reward", sparse, [])
        old = [{"reward_std": 0.0 if bit else 0.3, "reward_mean": 0.0 if bit else 0.1} for bit in bits]
        yield Example("sparse reward, TRL 0.14", old, [])
        rise = [{"frac_zero_std": 0.25, "reward_mean": min(1.0, 0.1 + step / 40)} for step in range(50)]
        yield Example("solved", [*rise, *[{"frac_zero_std": 1.0, "reward_mean": 1.0}] * 100], [])
