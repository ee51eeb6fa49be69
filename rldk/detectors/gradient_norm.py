"""Gradient norm that explodes, or above the user's threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Example, Finding
from ._stats import Surge
from ._threshold import ThresholdDetector

_HUGE = 1e100
_WARM_UP = 20
_TEN, _FIVE, _HUNDRED = math.log(10.0), math.log(5.0), math.log(100.0)
# A gradient smaller than half of the clipping bound is no explosion, whatever it is held against.
_MATERIAL = 0.5


class _Norm:
    """One norm's past, and where its episode stands."""

    __slots__ = ("before", "calm", "early", "high", "highest", "large", "quiet", "surge")

    def __init__(self) -> None:
        self.surge = Surge()
        self.highest = 0.0  # of the first logs
        self.early = 0  # logs in a row far above those
        self.large = 0  # decaying count of large values: three within ten logs
        self.quiet = 0
        self.high = 0  # logs in a row with the fast mean far above
        self.before: float | None = None  # logarithm of the level before the episode that is open
        self.calm = 0


class GradientNorm(ThresholdDetector):
    """The gradient explodes.

    What it sees: `grad_norm`, before clipping (of TRL's PPO measured by the callback); without it, `grad_norm_policy` and
    `grad_norm_value`.
    Why it matters: gradients explode before losses do, and a clipped explosion is still a step in a random direction.
    When it fires: after 20 logs, held against the recent and the long-term level, whichever is higher: one log 10 times the
    level and 6 robust deviations out; three logs within 10 at 5 times and 3 deviations; a mean of the last logs at 5 times
    for 8 logs. Before that: two logs in a row at 30 times the largest so far, and above 10. Always above half of
    `max_grad_norm` (1 if not known). Critical: 100 times the level, in the mean of the last logs. Given a `threshold`,
    only: the norm above it.
    What to do: lower `learning_rate`; set `max_grad_norm`; longer `warmup_steps`; look at the batch.
    False alarms: small batches have heavy tails, which the deviations account for; norms of zero (groups without a
    signal) are passed over; a run that converged bounces far above its low, and is held against its long-term level.
    Sources: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311) on spikes and rewinding; ZClip (arXiv 2504.02507); a public
    GRPO run with one step at 43.6 against a median of 0.59. Factors chosen here, by simulation and on real runs.
    """

    code = "gradient_norm"
    title = "Gradient norm too high"
    watches = ("grad_norm", "grad_norm_policy", "grad_norm_value")
    only_watched = True
    needs = "20 logs of a gradient norm"
    advice = "Lower learning_rate, set max_grad_norm, lengthen warmup_steps, and look at this step's batch."

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__(threshold=threshold)
        self._material = _MATERIAL
        self._norms: dict[str, _Norm] = {}

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Takes the clipping bound for the measure of what is large."""
        bound = arguments.get("max_grad_norm")
        if isinstance(bound, (int, float)) and 0 < bound < _HUGE:
            self._material = _MATERIAL * bound

    def calibrated(self, event: Event) -> Answer:
        """Judges the trainer's norm, or else those of policy and value model, the worse of the two."""
        metrics = event.metrics
        value = metrics.get("grad_norm")
        if value is not None:
            return self._judge("grad_norm", value)
        answer: Answer = ABSENT
        for name in ("grad_norm_policy", "grad_norm_value"):
            value = metrics.get(name)
            if value is not None:
                other = self._judge(name, value)
                if isinstance(other, Finding):
                    if not isinstance(answer, Finding) or other.severity.rank > answer.severity.rank:
                        answer = other
                elif answer is ABSENT or answer is WARMING:
                    answer = other
        return answer

    def _judge(self, name: str, value: float) -> Answer:
        norm = self._norms.get(name)
        if norm is None:
            norm = self._norms[name] = _Norm()
        surge = norm.surge
        count = surge.count
        if not 1e-30 < value < _HUGE:
            # No signal in this batch, or not finite, which is another detector's: neither good nor bad.
            return WARMING if count < _WARM_UP or norm.before is not None else FINE
        logarithm = math.log(value)
        if count < _WARM_UP:
            return self._judge_early(name, value, logarithm, norm)
        before = norm.before
        if before is not None:
            return self._judge_open(name, value, logarithm, logarithm - before, norm)
        reference = surge.centre if surge.centre > surge.past else surge.past
        above = logarithm - reference
        quiet = norm.quiet = norm.quiet + 1
        if above < _FIVE and surge.fast - reference < _FIVE:
            norm.high = 0
            surge.add(logarithm)
            if quiet > 10:
                norm.large = 0
            return FINE
        sigmas = above / surge.spread
        surge.add(logarithm)
        if value < self._material:
            return FINE
        if above > _FIVE and sigmas > 3.0:
            norm.large = norm.large + 1 if quiet <= 10 else 1
            norm.quiet = 0
        norm.high = norm.high + 1 if surge.fast - reference > _FIVE else 0
        if (above > _TEN and sigmas > 6.0) or norm.large >= 3 or norm.high >= 8:
            norm.before, norm.calm = reference, 0
            return self._finding(name, value, reference, sigmas, norm)
        return FINE

    def _judge_early(self, name: str, value: float, logarithm: float, norm: _Norm) -> Answer:
        """Without a history only what no run starts with is bad."""
        if norm.surge.count >= 2 and value > 30.0 * norm.highest and value > 20.0 * self._material:
            norm.early += 1
            if norm.early >= 2:
                norm.before, norm.calm = math.log(norm.highest), 0
                # What comes is held against what was there before it, as after a warm-up.
                norm.surge.count = _WARM_UP
                norm.surge.past = norm.surge.centre
                return self._finding(name, value, norm.before, 0.0, norm)
            return WARMING
        norm.early = 0
        norm.highest = max(norm.highest, value)
        norm.surge.add(logarithm)
        return WARMING

    def _judge_open(self, name: str, value: float, logarithm: float, above: float, norm: _Norm) -> Answer:
        """The level stays as it was, until three logs are near it again; a level that holds for long is the new one."""
        surge = norm.surge
        surge.fast += 0.3 * (logarithm - surge.fast)
        surge.count += 1
        norm.calm = norm.calm + 1 if above < 1.1 else 0  # three times
        if norm.calm >= 3 and surge.fast - surge.reference < _FIVE:
            norm.before, norm.high, norm.large = None, 0, 0
            return FINE
        assert norm.before is not None
        return self._finding(name, value, norm.before, above / surge.spread, norm)

    def _finding(self, name: str, value: float, reference: float, sigmas: float, norm: _Norm) -> Finding:
        level = math.exp(reference)
        lasting = norm.surge.fast - reference > _HUNDRED
        message = f"{name} is {number(value)}, {number(round(value / level, 1))} times its level of {number(level)}."
        return Finding(
            name, value, max(self._material, 5.0 * level), message, Severity.CRITICAL if lasting else Severity.WARNING,
            {"level": level, "robust_sigmas": round(sigmas, 1)},
        )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Norms as trainers log them."""
        wave = [0.9, 1.3, 0.7, 1.1, 1.6, 0.5, 1.0, 0.8]
        usual = [{"grad_norm": 0.6 * wave[step % 8]} for step in range(40)]
        yield Example("one batch", [*usual, {"grad_norm": 43.6}, *usual], [41])
        yield Example("an explosion that stays", usual + [{"grad_norm": 300.0 * wave[step % 8]} for step in range(30)], [41])
        yield Example("twice as large for good", usual + [{"grad_norm": 2 * row["grad_norm"]} for row in usual], [])
        sparse = [{"grad_norm": 0.0 if step % 3 else 0.001 * 2.0 ** min(step, 60) ** 0.5} for step in range(200)]
        yield Example("groups become informative by and by", sparse, [])
        heavy = [{"grad_norm": (0.1, 0.4, 2.5, 0.2, 0.9, 0.3, 4.0, 0.15)[step % 8]} for step in range(200)]
        yield Example("batches of one", heavy, [])
        falls = [{"grad_norm": 10.0 * wave[step % 8] * 0.95**step} for step in range(150)]
        yield Example("bounces after convergence", [*falls, {"grad_norm": 0.4}, {"grad_norm": 0.1}, *falls[-20:]], [])
        early = [{"grad_norm": 1.0}] * 3 + [{"grad_norm": 900.0}] * 4
        yield Example("within the warm-up", early, [5])
