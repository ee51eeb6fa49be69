"""Too many tokens clipped, or a clip fraction above the user's threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Example, Finding
from ._stats import Baseline
from ._threshold import ThresholdDetector

_ALPHA = 0.12
_WARM_UP = 8
# Of tokens, and of sequences, whose ratios clip far more by design.
_HIGH, _HIGH_SEQUENCE = 0.25, 0.6
_HIGHEST, _HIGHEST_SEQUENCE = 0.4, 0.8


class ClipFraction(ThresholdDetector):
    """More tokens are clipped than a sound update clips.

    What it sees: `clip_frac`, the share of tokens whose probability ratio was clipped; in PPO, after the averages that
    TRL dilutes are corrected.
    Why it matters: a clipped token gives no gradient; many of them mean that updates are too large for the samples.
    When it fires: after 8 logs, in the mean of about the last 10: above 0.25, critical above 0.4; or above 0.12 and six
    times the run's own level of logs 11 to 40. Given a `threshold`, only: `clip_frac` above it.
    What to do: lower `learning_rate`, `num_ppo_epochs` or `num_iterations`; larger batches.
    False alarms: the first updates clip a third of the tokens in healthy runs (Adam's first steps are large), for a few logs;
    the first pass over a batch clips nothing, so single values swing between 0 and the rest. Sequence-level ratios
    (`importance_sampling_level="sequence"`) clip far more by design: there the levels are 0.6 and 0.8.
    Sources: Schulman et al. 2017 (arXiv 1707.06347); the TRL documentation on PPO's logged metrics; rldoctor warns at 0.2;
    GSPO for sequences. Measured here: sound runs of tiny models end below 0.1, with a learning rate ten times too high
    they stay at 0.25 to 0.45.
    """

    code = "clip_fraction"
    title = "Clip fraction too high"
    watches = ("clip_frac",)
    only_watched = True
    needs = "8 logs of a clip fraction"
    advice = "Lower learning_rate, num_ppo_epochs (PPO) or num_iterations (GRPO), or raise the batch size."
    highest = 1.0
    cooldown = 20

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__(threshold=threshold)
        self._high, self._highest = _HIGH, _HIGHEST
        self._mean = 0.0
        self._count = 0
        self._baseline = Baseline(skip=10, size=30)
        self._open = False

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Loosens the levels where the ratios are of sequences."""
        if str(arguments.get("importance_sampling_level", "")).startswith("sequence"):
            self._high, self._highest = _HIGH_SEQUENCE, _HIGHEST_SEQUENCE

    def calibrated(self, event: Event) -> Answer:
        """Holds the mean of the last logs against fixed shares, and against the run's own."""
        value = event.metrics.get("clip_frac")
        if value is None:
            return ABSENT
        if not 0.0 <= value <= 1.0:
            return WARMING
        count = self._count = self._count + 1
        mean = self._mean = self._mean + (value - self._mean) * (_ALPHA if count > 8 else 1.0 / count)
        self._baseline.add(mean)
        if count < _WARM_UP:
            return WARMING
        limit = self._high
        baseline = self._baseline.value
        if baseline is not None:
            own = max(0.12, 6.0 * baseline)
            limit = min(limit, own)
        if mean <= (0.7 * limit if self._open else limit):
            self._open = False
            return FINE
        self._open = True
        severity = Severity.CRITICAL if mean > self._highest else Severity.WARNING
        against = "" if limit == self._high else f"; this run's own level was {number(baseline)}"
        message = f"clip_frac is {number(round(mean, 4))} in the mean of the last logs{against}."
        return Finding("clip_frac", value, limit, message, severity, {"mean": mean, "baseline": baseline})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Clip fractions of four passes over a batch, of which the first clips nothing."""
        first = [{"clip_frac": value} for value in (0.0, 0.06, 0.28, 0.34, 0.0, 0.0, 0.0, 0.07)]
        sound = [{"clip_frac": value} for value in (0.0, 0.01, 0.04, 0.05)] * 20
        yield Example("large first updates", first + sound, [])
        yield Example("busy", [{"clip_frac": value} for value in (0.0, 0.15, 0.22, 0.3)] * 40, [])
        yield Example("far too large updates", [{"clip_frac": value} for value in (0.0, 0.45, 0.5, 0.6)] * 20, [8])
        yield Example("grows", sound + [{"clip_frac": 0.3}] * 20, [85])
        yield Example("none", [{"clip_frac": 0.0}] * 40, [])
