"""The policy's entropy collapses without a reward to show for it."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Progress

_HUGE = 1e100
# Trainers that sample, for which entropy is exploration. In SFT and DPO it falls as the model learns its texts.
_SAMPLERS = frozenset({"grpo", "rloo", "ppo", "online_dpo"})
_BASELINE = 10  # logs in which the highest level is the one that is held against
_FEW = 0.01  # nats a token: one token in hundreds is still drawn
_CONTINUOUS = -1e-3  # below this it is no rounding: tokens have an entropy of zero at least


class EntropyCollapse(Detector):
    """The policy has stopped exploring, and no success explains it.

    What it sees: `entropy_mean`, nats a token, of trainers that sample, and `reward_mean`.
    Why it matters: without entropy the samples of a group are the same, the gradient is zero, and what was not found by then
    will not be found.
    When it fires: the mean of the last logs, against the highest of the first 10: below `share` of it for 10 logs while the
    reward has not risen since the start; below three quarters of that for 5 logs while the reward had no new best for 8; critical below
    0.01 nats for 8 logs. Never on a task that is solved: the reward has risen to 0.9 a reward function or more.
    What to do: `epsilon_high=0.28`, a higher `temperature`, `entropy_coef` where the trainer has it, a lower
    `learning_rate`, a raised `beta`.
    False alarms: most of the entropy goes in the first hundreds of steps of a healthy run, while the reward rises; levels
    differ by model (public GRPO runs: 0.1 to 0.8), so none is used but the last. PPO's sum over the sequence
    (`entropy_seq`) counts padding and is not looked at, nor is a run whose entropy has been negative: its actions are
    continuous.
    Sources: Cui et al. 2025 (arXiv 2505.22617); DAPO (clip-higher); rldoctor's lesson that decay with a rising reward is
    convergence. Lengths and shares chosen here, on runs of tiny models.

    Args:
        share: Share of the early entropy.
    """

    code = "entropy_collapse"
    title = "Entropy collapse"
    watches = ("entropy_mean",)
    only_watched = True
    needs = "the entropy of a trainer that samples (GRPO, RLOO, PPO)"
    advice = (
        "Raise epsilon_high to 0.28, raise temperature or beta, use an entropy bonus (entropy_coef) where there is one, "
        "lower learning_rate."
    )
    cooldown = 20

    def __init__(self, *, share: float = 0.2) -> None:
        self.share = number_parameter(self.code, "share", share, low=0.001, high=0.9)
        self._reward = Progress()
        self._reward_functions = 0
        self._count = 0
        self._fast = 0.0
        self._highest = 0.0
        self._low = 0
        self._lower = 0
        self._nothing = 0
        self._open = False
        self._continuous = False

    def judge(self, event: Event) -> Answer:
        """Two signals: the entropy against its start, and the reward."""
        metrics = event.metrics
        value = metrics.get("entropy_mean")
        if value is None:
            return ABSENT
        if value < _CONTINUOUS:
            self._continuous = True
        if self._continuous:
            return FINE  # the entropy of a density, which has no lowest value
        reward = metrics.get("reward_mean")
        if event.model_info.get("trainer") not in _SAMPLERS and reward is None and self._reward.count == 0:
            return ABSENT
        if reward is not None and -_HUGE < reward < _HUGE:
            self._reward.add(reward)
            if self._reward_functions == 0:
                names = sum(name.startswith("rewards/") and name.endswith("/mean") for name in metrics)
                self._reward_functions = max(1, names)
        if not -_HUGE < value < _HUGE:
            return WARMING
        count = self._count = self._count + 1
        self._fast += (value - self._fast) * (0.4 if count > 2 else 1.0 / count)
        fast = self._fast
        if count <= _BASELINE and fast > self._highest:
            self._highest = fast
        limit = self.share * self._highest * (1.5 if self._open else 1.0)
        if fast > limit and fast > _FEW:
            self._low = self._lower = self._nothing = 0
            self._open = False
            return FINE if count > 5 else WARMING
        self._low += 1
        self._lower = self._lower + 1 if fast < 0.75 * limit else 0
        self._nothing = self._nothing + 1 if fast < _FEW else 0
        text = self._bad()
        if not text:
            self._open = False
            return FINE if count > 5 else WARMING
        self._open = True
        share = fast / self._highest if self._highest > 0.0 else 0.0
        message = f"entropy_mean is {number(value)} nats a token, {share:.1%} of its early {number(self._highest)}, {text}."
        severity = Severity.CRITICAL if self._nothing >= 8 else Severity.WARNING
        evidence = {"early_entropy": self._highest, "reward": self._reward.fast if self._reward.count else None}
        return Finding("entropy_mean", value, max(_FEW, limit), message, severity, evidence)

    def _bad(self) -> str:
        """What is wrong with so low an entropy; empty for nothing."""
        reward = self._reward
        known = reward.count >= 5
        risen = known and reward.risen
        if risen and reward.fast >= 0.9 * self._reward_functions:
            return ""  # solved: what is there to explore?
        if self._nothing >= 8:
            return "which is next to nothing"
        if not known:
            return ""
        if self._low >= 10 and not risen:
            return "and the reward has not risen"
        if (self._lower >= 5 or (self._open and self._low >= 5)) and not reward.rising:
            return "and the reward no longer rises"
        return ""

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Entropy with the reward beside it."""
        def rows(entropy: list[float], reward: list[float]) -> list[dict[str, float]]:
            return [{"entropy_mean": e, "reward_mean": r} for e, r in zip(entropy, reward, strict=True)]

        wave = [0.00, 0.04, -0.03, 0.02, -0.04]
        falls = [max(0.0004, 3.0 * 0.8**step) for step in range(60)]
        half = [min(0.5, 0.03 * step) + wave[step % 5] * (step < 18) for step in range(60)]
        yield Example("one habit, no solution", rows(falls, half), [30])
        yield Example("nothing learnt", rows(falls, [0.1 + wave[step % 5] for step in range(60)]), [16])
        solved = [min(1.0, 0.06 * step) for step in range(60)]
        yield Example("solved", rows(falls, solved), [])
        decay = [0.4 + 2.0 * 0.97**step for step in range(200)]
        yield Example("decays while the reward rises", rows(decay, [step / 200 for step in range(200)]), [])
        low = [0.12 * (1.0 + 5 * wave[step % 5]) for step in range(200)]
        yield Example("low from the start", rows(low, [wave[step % 5] for step in range(200)]), [])
        yield Example("continuous actions", rows([2.0 - 0.1 * step for step in range(60)], [wave[step % 5] for step in range(60)]), [])
        yield Example("fine-tuning, which does not sample", [{"entropy_mean": value, "loss": 1.0} for value in falls], [])
