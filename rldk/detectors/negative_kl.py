"""A divergence estimate that is negative for long."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_HUGE = 1e100
_ALPHA = 0.15
# An exponential mean with that weight has this share of the deviation of its values: sqrt(a / (2 - a)).
_MEAN_NOISE = 0.285
# Divergence below which it is no rounding or luck: nats a token, nats a sequence.
_TOKEN, _SEQUENCE = 0.03, 1.0
# KTO's is clamped at zero, OnlineDPO's counts padding and drifts below zero in healthy runs (measured), GRPO's is k3.
_OTHERS = frozenset({"kto", "online_dpo", "grpo"})


class NegativeKL(Detector):
    """The estimated divergence from the reference is negative, and not by chance.

    What it sees: `kl_mean`: in PPO the sum of log-ratios over a sequence, in RLOO their mean over tokens (estimator k1).
    Why it matters: a divergence is never negative. A mean of samples that stays below zero says that the samples do not
    come from the policy that is measured, and the KL penalty has become a bonus for running away.
    When it fires: after 8 logs, when the exponential mean of the last logs is below minus `floor` (1 nat a sequence; 0.03 a
    token in RLOO) and further below zero than 4 times its own noise. Critical at 10 times the floor.
    What to do: sample from the plain distribution (`temperature` as in training, top_k 0, top_p 1, no min_length); check
    the end-of-sequence and padding tokens, and that the reference model is the one the policy started from.
    False alarms: single values below zero are normal for this estimator, and means of few samples swing: both are held
    against the values' own spread. KTO clamps it at 0, GRPO's k3 is never negative, and OnlineDPO counts padding: left out.
    Sources: TRL issues 235, 351, 925, 1857; the first of them names the generation settings.

    Args:
        floor: Size of a negative mean that matters, in nats a sequence; for RLOO, 0.03 of it in nats a token.
    """

    code = "negative_kl"
    title = "Negative KL divergence"
    watches = ("kl_mean",)
    only_watched = True
    left_out = _OTHERS
    needs = "a k1 estimate of the divergence, which PPO and RLOO log"
    advice = (
        "Sample from the plain distribution: top_k=0, top_p=1.0, no min_length, the temperature of training. Check pad and "
        "EOS tokens, and that ref_model is what the policy started from."
    )
    cooldown = 20

    def __init__(self, *, floor: float = _SEQUENCE) -> None:
        self.floor = number_parameter(self.code, "floor", floor, low=1e-6)
        self._count = 0
        self._mean = 0.0
        self._noise = 0.0
        self._last = 0.0
        self._open = False

    def judge(self, event: Event) -> Answer:
        """Holds the mean of the last logs against its own noise."""
        value = event.metrics.get("kl_mean")
        if value is None:
            return ABSENT
        family = event.model_info.get("trainer")
        if family in _OTHERS:
            return ABSENT
        if not -_HUGE < value < _HUGE:
            return WARMING
        count = self._count = self._count + 1
        if count == 1:
            self._mean = self._last = value
            return WARMING
        # From one log to the next: a trend does not count as noise.
        change = value - self._last
        self._last = value
        first = 1.0 / count
        weight = first if first > _ALPHA else _ALPHA
        self._noise += weight * ((change if change >= 0.0 else -change) - self._noise)
        mean = self._mean = self._mean + weight * (value - self._mean)
        if mean >= 0.0:
            self._open = False
            return FINE if count >= 8 else WARMING
        floor = self.floor * _TOKEN if family == "rloo" else self.floor
        # The mean absolute change of independent normal values is 1.13 deviations; 4 of the mean's own.
        noise = 4.0 * _MEAN_NOISE * self._noise / 1.13
        if count < 8 or mean > (-0.5 * floor if self._open else -floor) or (not self._open and -mean < noise):
            self._open = self._open and mean < -0.5 * floor
            return FINE if count >= 8 else WARMING
        self._open = True
        severity = Severity.CRITICAL if mean < -10.0 * floor else Severity.WARNING
        message = f"kl_mean is {number(mean)} in the mean of the last logs, {number(value)} now; a divergence cannot be negative."
        return Finding("kl_mean", value, -floor, message, severity, {"mean": mean, "noise": noise / 4.0})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Estimates of PPO, in nats a sequence."""
        wave = [0.3, -0.5, 0.8, -0.2, -0.9, 0.6, 0.1, -0.3]
        yield Example("noise around zero", [{"kl_mean": 2.0 * wave[step % 8]} for step in range(100)], [])
        yield Example("noise around a small negative", [{"kl_mean": wave[step % 8] - 0.3} for step in range(100)], [])
        yield Example("grows from zero", [{"kl_mean": 0.1 * step + wave[step % 8]} for step in range(100)], [])
        yield Example("sinks", [{"kl_mean": -0.4 * step + wave[step % 8]} for step in range(30)], [8])
