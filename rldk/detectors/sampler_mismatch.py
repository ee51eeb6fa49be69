"""The engine that samples and the model that trains disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Baseline

_HUGE = 1e100
_ALPHA = 0.25
_WARM_UP = 5


class SamplerMismatch(Detector):
    """The sampler's probabilities are not the trainer's.

    What it sees: `sampler_logp_diff_mean`, the mean difference of log-probability between vLLM and the trainer, and
    `sampler_ratio_mean`, the mean importance ratio between them.
    Why it matters: training then is off-policy without saying so, and runs with a large mismatch collapse after hundreds of
    steps.
    When it fires: in the mean of about the last 5 logs, from the fifth on: a difference above `difference` (0.1 nats a
    token), or above 0.03 and four times its early median; critical above five times `difference`. The ratio, where it is one
    of tokens (`vllm_importance_sampling_mode` of `token_truncate` or `token_mask`): outside 0.5 to 2. Where it is one of
    sequences, or not known: below 0.25, or below half of its early median.
    What to do: one dtype in both (an fp32 head), no quantised sampling, prefix cache off, processed log-probabilities, and
    weights that are really synchronised.
    False alarms: mixtures of experts and quantised samplers have more (public logs: 0.0045 to 0.06). Ratios of sequences are
    products over tokens, and masked ones count as 0, so they scatter: a 30B run that trains well logs 0.46.
    Sources: NeMo RL's guide to GRPO (beyond 1 to 2 % is a bug), verl's documentation of rollout correction (ratio within 0.5
    to 2, difference above 0.1). From documents and public logs: no vLLM was run here.

    Args:
        difference: Nats a token.
    """

    code = "sampler_mismatch"
    title = "Sampler and trainer disagree"
    watches = ("sampler_logp_diff_mean", "sampler_ratio_mean")
    only_watched = True
    needs = "a vLLM sampler whose log-probabilities TRL compares (use_vllm=True)"
    advice = (
        "Use one dtype in vLLM and trainer (fp32 for the head), no quantised sampling, switch the prefix cache off, and check "
        "that the weights are synchronised; vllm_importance_sampling_correction=True meanwhile."
    )
    cooldown = 20

    def __init__(self, *, difference: float = 0.1) -> None:
        self.difference = number_parameter(self.code, "difference", difference, low=1e-6)
        self._of_tokens = False
        self._difference = 0.0
        self._difference_count = 0
        self._early_difference = Baseline(skip=2, size=10)
        self._ratio = 0.0
        self._ratio_count = 0
        self._early_ratio = Baseline(skip=2, size=10)
        self._open = 1.0

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Learns whether the ratios are of tokens."""
        self._of_tokens = str(arguments.get("vllm_importance_sampling_mode", "")).startswith("token")

    def judge(self, event: Event) -> Answer:
        """The difference first, then the ratio."""
        metrics = event.metrics
        difference, ratio = metrics.get("sampler_logp_diff_mean"), metrics.get("sampler_ratio_mean")
        if difference is None and ratio is None:
            return ABSENT
        judged = False
        found: Finding | None = None
        if difference is not None and 0.0 <= difference < _HUGE:
            self._difference_count += 1
            self._difference += (difference - self._difference) * max(_ALPHA, 1.0 / self._difference_count)
            early = self._early_difference.add(difference)
            judged = self._difference_count >= _WARM_UP
            if judged:
                found = self._judge_difference(difference, early)
        if ratio is not None and 0.0 <= ratio < _HUGE:
            self._ratio_count += 1
            self._ratio += (ratio - self._ratio) * max(_ALPHA, 1.0 / self._ratio_count)
            early = self._early_ratio.add(ratio)
            if self._ratio_count >= _WARM_UP:
                judged = True
                if found is None:
                    found = self._judge_ratio(ratio, early)
        if not judged:
            return WARMING
        self._open = 1.0 if found is None else 0.8
        return FINE if found is None else found

    def _judge_difference(self, value: float, early: float | None) -> Finding | None:
        mean = self._difference
        limit = self.difference
        if early is not None:
            limit = min(limit, max(0.3 * self.difference, 4.0 * early))
        if mean <= limit * self._open:
            return None
        severity = Severity.CRITICAL if mean > 5.0 * self.difference else Severity.WARNING
        message = f"sampler_logp_diff_mean is {number(mean)} nats a token in the last logs, above {number(limit)}."
        return Finding("sampler_logp_diff_mean", value, limit, message, severity, {"mean": mean, "early": early})

    def _judge_ratio(self, value: float, early: float | None) -> Finding | None:
        mean = self._ratio
        low, high = (0.5, 2.0) if self._of_tokens else (0.25, _HUGE)
        if early is not None:
            low = max(low, 0.5 * min(early, 1.0))
        if low / self._open <= mean <= high * self._open:
            return None
        limit = low if mean < high * self._open else high
        message = f"sampler_ratio_mean is {number(mean)} in the last logs, beyond {number(limit)}; 1 is agreement."
        severity = Severity.CRITICAL if mean < 0.05 else Severity.WARNING
        return Finding("sampler_ratio_mean", value, limit, message, severity, {"mean": mean, "early": early})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Without a known mode a ratio is taken to be one of sequences."""
        wave = [1.0, 1.3, 0.8, 1.1, 0.7]

        def rows(difference: float, ratio: float, count: int = 40) -> list[dict[str, float]]:
            return [
                {"sampler_logp_diff_mean": difference * wave[step % 5], "sampler_ratio_mean": ratio * wave[step % 5] ** 0.5}
                for step in range(count)
            ]

        yield Example("bf16 on both sides", rows(0.011, 0.99), [])
        yield Example("mixture of experts", rows(0.06, 0.46), [])
        yield Example("another dtype from the start", rows(0.2, 0.9), [5])
        yield Example("weights no longer synchronised", rows(0.01, 0.99) + [
            {"sampler_logp_diff_mean": 0.01 + 0.01 * step, "sampler_ratio_mean": 0.95} for step in range(30)
        ], [47])
        yield Example("masked sequences", [{"sampler_ratio_mean": 0.9 * wave[step % 5] ** 0.5} for step in range(30)] + [
            {"sampler_ratio_mean": 0.1} for _ in range(10)
        ], [33])
