"""The policy's entropy rises while the reward falls."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Progress

_HUGE = 1e100
_SAMPLERS = frozenset({"grpo", "rloo", "ppo", "online_dpo"})
_WARM_UP = 10


class EntropyExplosion(Detector):
    """The policy dissolves into noise.

    What it sees: `entropy_mean`, nats a token, of trainers that sample, and `reward_mean`.
    Why it matters: a policy that becomes more random while its reward falls unlearns; rising entropy comes before the text
    turns to garbage.
    When it fires: for 5 logs, the mean of the last logs is `rise` nats and 1.25 times above the lowest level since the run's
    tenth log, while the reward has lost a third of what it had gained, by more than its noise. Critical when it has lost
    nearly all. Where no reward is logged: twice the lowest level and 1 nat above it for 10 logs.
    What to do: lower or drop the entropy bonus (`entropy_coef`), lower `learning_rate` and weight decay, check sampler
    against trainer, go back to a checkpoint before the rise.
    False alarms: entropy may rise in a healthy run, with clip-higher above all, while the reward holds: the reward decides.
    Sources: verl issue 781, rllm issue 116; the factors were chosen here, on runs of tiny models.

    Args:
        rise: Nats a token above the lowest level.
    """

    code = "entropy_explosion"
    title = "Entropy explosion"
    watches = ("entropy_mean",)
    only_watched = True
    needs = "the entropy of a trainer that samples (GRPO, RLOO, PPO)"
    advice = (
        "Lower entropy_coef, learning_rate and weight_decay, compare the sampler's log-probabilities with the trainer's, and "
        "resume from a checkpoint before the rise."
    )
    cooldown = 20

    def __init__(self, *, rise: float = 0.5) -> None:
        self.rise = number_parameter(self.code, "rise", rise, low=0.01)
        self._reward = Progress()
        self._count = 0
        self._fast = 0.0
        self._lowest = 0.0
        self._streak = 0
        self._open = False

    def judge(self, event: Event) -> Answer:
        """Two signals: the entropy against its lowest level, and the reward against its best."""
        metrics = event.metrics
        value = metrics.get("entropy_mean")
        if value is None:
            return ABSENT
        reward = metrics.get("reward_mean")
        if event.model_info.get("trainer") not in _SAMPLERS and reward is None and self._reward.count == 0:
            return ABSENT
        if reward is not None and -_HUGE < reward < _HUGE:
            self._reward.add(reward)
        if not -_HUGE < value < _HUGE:
            return WARMING
        count = self._count = self._count + 1
        self._fast += (value - self._fast) * (0.3 if count > 3 else 1.0 / count)
        fast = self._fast
        if count <= _WARM_UP:
            # Not the lowest: the entropies of the first batches differ by their prompts.
            self._lowest = fast
            return WARMING
        if fast < self._lowest:
            self._lowest = fast
        lowest = self._lowest
        known = self._reward.count >= _WARM_UP
        rise = self.rise if known else 2.0 * self.rise
        factor = 1.25 if known else 2.0
        if self._open:
            rise *= 0.6
            factor = 1.0 + 0.6 * (factor - 1.0)
        if fast - lowest < rise or fast < factor * lowest or (known and not self._fallen()):
            self._streak = 0
            self._open = False
            return FINE
        self._streak += 1
        if self._streak < (5 if known else 10) and not self._open:
            return FINE
        self._open = True
        severity = Severity.CRITICAL if known and self._reward.fallen(0.8) else Severity.WARNING
        lost = f" while the reward fell from {number(self._reward.best)} to {number(self._reward.fast)}" if known else ""
        message = f"entropy_mean is {number(value)} nats a token, up from {number(lowest)}{lost}."
        return Finding("entropy_mean", value, max(lowest + rise, factor * lowest), message, severity, {"lowest": lowest})

    def _fallen(self) -> bool:
        """Whether the reward is clearly below its best; once the episode is open, half of that keeps it open."""
        return self._reward.fallen(0.15 if self._open else 0.33)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Entropy with the reward beside it."""
        wave = [0.00, 0.04, -0.03, 0.02, -0.04]
        learns = [{"entropy_mean": 3.0 - 0.02 * step, "reward_mean": 0.2 + 0.012 * step + wave[step % 5]} for step in range(60)]
        falls = [
            {"entropy_mean": min(3.4, 1.8 + 0.1 * step), "reward_mean": max(0.15, 0.9 - 0.04 * step) + wave[step % 5]}
            for step in range(40)
        ]
        holds = [{**row, "reward_mean": 0.9 + wave[step % 5]} for step, row in enumerate(falls)]
        yield Example("rises while the reward falls", learns + falls, [74])
        yield Example("rises while the reward holds", learns + holds, [])
        drop = [{"entropy_mean": 1.8, "reward_mean": 0.3 + wave[step % 5]} for step in range(40)]
        yield Example("the reward alone falls", learns + drop, [])
        yield Example("no reward logged by a trainer that does not sample", [{"entropy_mean": 0.5 + step} for step in range(60)], [])
