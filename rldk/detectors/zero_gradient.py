"""A gradient of exactly zero: steps that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Gain, Streak

# Below this a norm is zero but for rounding: the smallest that healthy runs logged is about 1e-5.
_ZERO = 1e-12
# Beyond this a reward is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
# Weight of a log in the share of zero gradients: about the last 50.
_ALPHA = 0.04


class ZeroGradient(Detector):
    """The gradient is zero, in a streak or in most steps.

    What it sees: `grad_norm`, and `reward_mean` to know a solved task.
    Why it matters: such a step trains nothing and costs as much as any other. Where rewards are constant inside each
    group and scaled over the batch, no metric of the rewards shows it: this is the only sign.
    When it fires: critical when the gradient was zero in all of the first `patience` logs (twice as many while the reward
    is constant at zero or below, or takes two values only: so a sparse reward looks that is hardly ever earned yet). A warning when zeros
    come in a streak longer than this run's own share of them explains (one in 100,000; six at least), critical at twice
    that length; a warning when their share of the last 50 or so logs is `share` or more, critical above 0.92.
    What to do: look at whether rewards differ inside a group, at `requires_grad`, and at gradient checkpointing.
    False alarms: sparse rewards leave a third to a half of all batches without a gradient, which the streak rule learns
    from the run itself. A reward that has clearly risen and now stands at its best, or pairs all ranked rightly, is
    convergence. TRL's PPO logs no `grad_norm`; the callback measures it, of policy and value model together.
    Sources: measured on TRL 1.16 (group-constant rewards under `scale_rewards="batch"`: loss 0, `grad_norm` 0, reward
    spread 2.67); rldoctor's shares of 0.2, 0.4 and 0.7 were raised here, since sparse healthy runs reach the first two.

    Args:
        patience: Logs from the start that must all be zero.
        share: Share of zeros among the last logs.
    """

    code = "zero_gradient"
    title = "Zero gradient"
    watches = ("grad_norm",)
    only_watched = True
    needs = "grad_norm in the training log"
    advice = (
        "Nothing is being learnt. In GRPO and RLOO: check that the rewards differ between the completions of one prompt "
        "(temperature, num_generations, the reward function itself). Else: check requires_grad and, with "
        "gradient_checkpointing, enable_input_require_grads."
    )
    cooldown = 30

    def __init__(self, *, patience: int = 5, share: float = 0.8) -> None:
        self.patience = number_parameter(self.code, "patience", patience, low=2, whole=True)
        self.share = number_parameter(self.code, "share", share, low=0.1, high=1.0)
        self._streak = Streak(least=6)
        self._gain = Gain()
        self._count = 0
        self._share = 0.0
        self._rewards: set[float] = set()  # different ones, three at most, before the first good log
        self._open = False
        self._good = 0

    def judge(self, event: Event) -> Answer:
        """Counts zeros from the start, in a row, and among the last."""
        metrics = event.metrics
        gradient = metrics.get("grad_norm")
        if gradient is None:
            return ABSENT
        if not gradient < _HUGE:
            return WARMING  # not finite: another detector's business
        reward = metrics.get("reward_mean")
        if reward is not None and -_HUGE < reward < _HUGE:
            self._gain.add(reward)
            if self._streak.from_start and len(self._rewards) < 3:
                self._rewards.add(reward)
        else:
            reward = None
        self._count += 1
        if gradient >= _ZERO or self._converged(event, reward):
            self._streak.good()
            self._share -= self._share * max(_ALPHA, 1.0 / self._count)
            self._good += 1
            if self._open and self._good < 3:
                return self._finding(gradient, Severity.WARNING)
            if self._share < self.share - (0.2 if self._open else 0.0):
                self._open = False
                return FINE
            return self._by_share(gradient)
        self._good = 0
        self._share += (1.0 - self._share) * max(_ALPHA, 1.0 / self._count)
        streak = self._streak
        too_long = streak.bad()
        if streak.from_start:
            # Zero or minus one again and again, or all against nothing: a hard task with a sparse reward begins so.
            sparse = len(self._rewards) == 2 or (len(self._rewards) == 1 and max(self._rewards) <= 0.0)
            if streak.length >= self.patience * (2 if sparse else 1):
                self._open = True
                return self._finding(gradient, Severity.CRITICAL)
            return FINE
        if too_long:
            self._open = True
            severe = streak.length >= 2 * streak.least and self._share > 0.5
            return self._finding(gradient, Severity.CRITICAL if severe else Severity.WARNING)
        if self._share >= self.share:
            return self._by_share(gradient)
        return self._finding(gradient, Severity.WARNING) if self._open else FINE

    def _converged(self, event: Event, reward: float | None) -> bool:
        """Whether a zero gradient is what success looks like."""
        if reward is not None:
            return self._gain.solved(reward)
        accuracy = event.metrics.get("pair_accuracy")
        return accuracy is not None and accuracy >= 0.99

    def _by_share(self, gradient: float) -> Answer:
        if self._count < 50:
            return self._finding(gradient, Severity.WARNING) if self._open else FINE
        self._open = True
        return self._finding(gradient, Severity.CRITICAL if self._share > 0.92 else Severity.WARNING)

    def _finding(self, gradient: float, severity: Severity) -> Finding:
        length = self._streak.length
        message = (
            f"grad_norm is {number(gradient)}, zero in {length} logs in a row"
            f"{' from the start' if self._streak.from_start else ''} and in {100 * self._share:.0f} % of the last logs."
        )
        evidence = {"streak": length, "share_of_last_logs": self._share}
        return Finding("grad_norm", gradient, _ZERO, message, severity, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Dead from the start, dead in mid-run, sparse, and solved."""
        dead = {"grad_norm": 0.0, "reward_mean": 1.0, "lr": 1e-5}
        yield Example("constant reward", [dead] * 20, [5])
        yield Example("no reward at all", [{"grad_norm": 0.0, "reward_mean": 0.0}] * 20, [10])
        yield Example("frozen weights", [{"grad_norm": 0.0, "loss": 2.0 + step % 3} for step in range(20)], [5])
        noisy = [{"grad_norm": 0.5, "reward_mean": 0.5 + 0.1 * (step % 3)} for step in range(60)]
        yield Example("dies in mid-run", [*noisy, *[{"grad_norm": 0.0, "reward_mean": 0.3}] * 9], [66])
        # Hash-like but deterministic: a bit under half of the batches have a gradient of zero, in streaks up to 5.
        bits = [(step * 2654435761 >> 7) % 100 < 45 for step in range(1, 400)]
        sparse = [{"grad_norm": 0.0 if bit else 1.0, "reward_mean": 0.0 if bit else 0.1} for bit in bits]
        yield Example("sparse reward", sparse, [])
        rise = [{"grad_norm": 1.0, "reward_mean": min(1.0, 0.1 + step / 40)} for step in range(50)]
        yield Example("solved", [*rise, *[{"grad_norm": 0.0, "reward_mean": 1.0}] * 100], [])
