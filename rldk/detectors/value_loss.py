"""A value loss that blows up."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Surge

_HUGE = 1e100
_WARM_UP = 12
_TEN, _FIVE, _THREE = math.log(10.0), math.log(5.0), math.log(3.0)


class ValueLoss(Detector):
    """The value model's loss blows up, or most of its predictions are clipped.

    What it sees: `value_loss` and `value_clip_frac` (PPO).
    Why it matters: advantages are made from the values; when those are off, the policy is pushed at random.
    When it fires: after 12 logs, held against the recent and the long-term level, whichever is higher: one log at 10
    times and 5 robust deviations, two in a row at 5 times and 3 deviations, or a mean of the last logs at 3 times for 5
    logs, critical at 30 times. Before that: three logs in a row at 10 times the largest of the first. Below 10 times only if the
    values do not explain the returns (`explained_variance` below 0), where that is logged. Or more than `clip_share` of the
    predictions clipped, in the mean of the last 10 logs.
    What to do: lower `learning_rate` or `vf_coef`; scale or clip the reward (its square sets the scale of this loss); warm
    the value model up.
    False alarms: a loss that starts huge and falls; the scale of the reward, which is why no absolute number is used; small
    batches, whose spread the deviations account for; returns that spread as the policy learns, with which the loss grows while the
    values go on explaining them (seen at 3 to 7 times on healthy runs of rldk.ppo).
    Sources: TRL documentation on PPO's metrics ("should not spike"); verl issue 498. Factors chosen here.

    Args:
        clip_share: Share of clipped value predictions.
    """

    code = "value_loss"
    title = "Value loss blows up"
    watches = ("value_loss", "value_clip_frac", "explained_variance")
    only_watched = True
    needs = "PPO's value loss"
    advice = "Lower learning_rate or vf_coef, scale or clip the reward, and let the value model warm up first."
    cooldown = 20

    def __init__(self, *, clip_share: float = 0.5) -> None:
        self.clip_share = number_parameter(self.code, "clip_share", clip_share, low=0.01, high=1.0)
        self._surge = Surge(hold=20)
        self._highest = 0.0
        self._early = 0
        self._jump = 0
        self._high = 0
        self._before: float | None = None
        self._calm = 0
        self._clipped = 0.0
        self._clip_count = 0
        self._explained = -1.0  # as if the values explained nothing, until something else is logged

    def judge(self, event: Event) -> Answer:
        """The loss first; the clipping speaks only where the loss does not."""
        metrics = event.metrics
        explained = metrics.get("explained_variance")
        if explained is not None:  # of the last rollout, of which there may be several logs
            self._explained = explained
        loss = metrics.get("value_loss")
        answer: Answer = ABSENT if loss is None else self._judge_loss(loss)
        if isinstance(answer, Finding) and self._explained >= 0.0 and loss is not None and loss < 10.0 / 3.0 * (answer.threshold or 0.0):
            answer = FINE
        share = metrics.get("value_clip_frac")
        if share is not None and 0.0 <= share <= 1.0:
            self._clip_count += 1
            self._clipped += (share - self._clipped) * max(0.1, 1.0 / self._clip_count)
            if not isinstance(answer, Finding):
                if self._clip_count < 10:
                    return WARMING if answer is ABSENT else answer
                if self._clipped > self.clip_share:
                    message = f"value_clip_frac is {number(self._clipped)} in the mean of the last logs."
                    return Finding("value_clip_frac", share, self.clip_share, message, Severity.WARNING)
                return FINE
        elif share is not None and answer is ABSENT:
            return WARMING
        return answer

    def _judge_loss(self, loss: float) -> Answer:
        surge = self._surge
        if not 1e-30 < loss < _HUGE:
            return WARMING
        logarithm = math.log(loss)
        count = surge.count
        if self._before is not None:
            return self._judge_open(loss, logarithm)
        if count < _WARM_UP:
            if count >= 3 and loss > 10.0 * self._highest:
                self._early += 1
                if self._early >= 3:
                    surge.fast = logarithm
                    self._before, self._calm = math.log(self._highest), 0
                    return self._finding(loss, self._before)
                return WARMING
            self._early = 0
            self._highest = max(self._highest, loss)
            surge.add(logarithm)
            return WARMING
        reference = surge.reference
        above = logarithm - reference
        if above < _THREE and surge.fast - reference < _THREE:
            self._jump = self._high = 0
            surge.add(logarithm)
            return FINE
        spread = surge.spread
        surge.add(logarithm)
        self._jump = self._jump + 1 if above > _FIVE and above > 3.0 * spread else 0
        self._high = self._high + 1 if surge.fast - reference > _THREE and surge.fast - reference > 2.0 * spread else 0
        if (above > _TEN and above > 5.0 * spread) or self._jump >= 2 or self._high >= 5:
            self._before, self._calm = reference, 0
            return self._finding(loss, reference)
        return FINE

    def _judge_open(self, loss: float, logarithm: float) -> Answer:
        """The level is held as it was until three logs in a row are near it again."""
        surge = self._surge
        before = self._before
        assert before is not None
        surge.count += 1
        surge.fast += 0.3 * (logarithm - surge.fast)
        self._calm = self._calm + 1 if logarithm - before < _THREE else 0
        if self._calm >= 3:
            self._before = None
            self._jump = self._high = self._early = 0
            surge.fast = before
            return FINE
        return self._finding(loss, before)

    def _finding(self, loss: float, before: float) -> Finding:
        level = math.exp(before)
        severity = Severity.CRITICAL if self._surge.fast - before > 3.4 else Severity.WARNING  # 30 times
        message = f"value_loss is {number(loss)}, {number(round(loss / level, 1))} times its level of {number(level)}."
        return Finding("value_loss", loss, 3.0 * level, message, severity, {"level_before": level})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Blow-ups, and a loss that starts huge."""
        wave = [1.0, 1.6, 0.6, 1.2, 0.5, 2.0, 0.8, 1.1]
        usual = [{"value_loss": 0.1 * wave[step % 8], "value_clip_frac": 0.02} for step in range(40)]
        yield Example("blows up", usual + [{"value_loss": 2.0 * 1.5**step} for step in range(20)], [41])
        yield Example("starts huge", [{"value_loss": 900.0 * 0.9**step * wave[step % 8]} for step in range(150)], [])
        yield Example("restless", usual * 5, [])
        grown = [{"value_loss": metrics["value_loss"] * 5.0} for metrics in usual]
        yield Example("grows, unexplained", usual + grown, [50])
        yield Example("grows with the returns", [{**metrics, "explained_variance": 0.2} for metrics in usual + grown], [])
        yield Example("clipped", [{"value_loss": 0.1, "value_clip_frac": 0.8}] * 20, [10])
