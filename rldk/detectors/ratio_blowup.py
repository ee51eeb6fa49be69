"""The updated policy leaves the one that sampled: ratio and divergence of an update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Baseline

_HUGE = 1e100
# Shares of slots that TRL may leave unwritten, as `rldk.vocabulary.ppo` explains.
_SHARES = (1 / 2, 1 / 4, 1 / 3, 3 / 4, 2 / 3, 1 / 8, 1 / 6, 1 / 5, 1 / 16)


class RatioBlowup(Detector):
    """An update moves the policy too far from the one that sampled.

    What it sees: `ratio_mean`, the mean probability ratio of new to old policy, which is 1 at rest, `ratio_var`, and
    `approx_kl`, the divergence of an update (PPO).
    Why it matters: PPO's samples are evidence for policies near the one that drew them. Far from it the update is a guess.
    When it fires: `ratio_mean` outside 0.5 to 2 in two of three logs, critical at once above 10 or below 0.1; `ratio_var`
    above 1 and 10 times its early median for 3 logs; `approx_kl` above `approx_kl` (0.05) for
    5 logs, above four times that for 2, or above 0.4 of it and 10 times its early median for 5; critical above 1.
    What to do: lower `learning_rate` and `num_ppo_epochs`, switch dropout off (`disable_dropout`), check that sampling and
    training use one temperature.
    False alarms: TRL averages over slots of which some stay empty. Where the arguments are known this is corrected; in a log
    without them a ratio that starts at such a share (0.5, 0.25, ...) is read as 1. Single updates swing.
    Sources: the TRL documentation on `val/ratio` (2.0 or 0.1 are bad), old TRL's `ratio_threshold=10`, TRL issue 454; a
    healthy public PPO run has an `approx_kl` of 0.0024.

    Args:
        approx_kl: Divergence of an update, in nats a token.
    """

    code = "ratio_blowup"
    title = "Update too far from the sampling policy"
    watches = ("ratio_mean", "ratio_var", "approx_kl")
    only_watched = True
    needs = "PPO's probability ratio"
    advice = "Lower learning_rate and num_ppo_epochs, and make sure that dropout is off and one temperature is used."
    cooldown = 20

    def __init__(self, *, approx_kl: float = 0.05) -> None:
        self.approx_kl = number_parameter(self.code, "approx_kl", approx_kl, low=1e-6)
        self._share: float | None = None
        self._outside = 0  # of the last logs, in bits
        self._variance = Baseline(skip=0, size=10)
        self._wide = 0
        self._median = Baseline(skip=2, size=10)
        self._far = 0
        self._very_far = 0
        self._calm = 0
        self._open: Finding | None = None

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """With these four arguments the averages are corrected where they are read."""
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs")
        if all(name in arguments for name in names):
            self._share = 1.0

    def judge(self, event: Event) -> Answer:
        """The three in turn; an episode ends when all have been fine for three logs."""
        metrics = event.metrics
        ratio, variance, divergence = metrics.get("ratio_mean"), metrics.get("ratio_var"), metrics.get("approx_kl")
        if ratio is None and variance is None and divergence is None:
            return ABSENT
        judged = False
        found: Finding | None = None
        if divergence is not None and -_HUGE < divergence < _HUGE:
            judged = True
            found = self._judge_divergence(divergence)
        if variance is not None and 0.0 <= variance < _HUGE:
            judged = True
            found = self._judge_variance(variance) or found
        if ratio is not None and 0.0 <= ratio < _HUGE:
            judged = True
            found = self._judge_ratio(ratio) or found
        if not judged:
            return WARMING
        if found is not None:
            self._calm = 0
            self._open = found
            return found
        if self._open is not None:
            self._calm += 1
            if self._calm < 3:
                return self._open._replace(severity=Severity.WARNING)
            self._open = None
        return FINE

    def _judge_ratio(self, logged: float) -> Finding | None:
        if self._share is None:
            near = [share for share in _SHARES if abs(logged / share - 1.0) < 0.1]
            self._share = near[0] if near else 1.0
        ratio = logged / self._share
        if 0.5 <= ratio <= 2.0:
            self._outside = self._outside << 1 & 7
            return None
        self._outside = (self._outside << 1 | 1) & 7
        extreme = ratio > 10.0 or ratio < 0.1
        if not extreme and self._outside not in (3, 5, 6, 7):
            return None
        share = "" if self._share == 1.0 else f" (logged as {number(logged)})"
        message = f"ratio_mean is {number(ratio)}{share}, where 1 is at rest."
        severity = Severity.CRITICAL if extreme else Severity.WARNING
        return Finding("ratio_mean", logged, 2.0 if ratio > 1 else 0.5, message, severity, {"corrected": ratio})

    def _judge_variance(self, variance: float) -> Finding | None:
        early = self._variance.value
        if early is None:
            early = self._variance.add(variance) or 0.1
        limit = max(1.0, 10.0 * early)
        self._wide = self._wide + 1 if variance > limit else 0
        if self._wide < 3:
            return None
        message = f"ratio_var is {number(variance)}, above {number(limit)} for {self._wide} logs."
        return Finding("ratio_var", variance, limit, message, Severity.WARNING, {"early": early})

    def _judge_divergence(self, value: float) -> Finding | None:
        early = self._median.value
        if early is None:
            self._median.add(value)
            limit = self.approx_kl
        else:
            limit = min(self.approx_kl, max(0.4 * self.approx_kl, 10.0 * early))
        self._far = self._far + 1 if value > limit else 0
        self._very_far = self._very_far + 1 if value > 4.0 * self.approx_kl else 0
        if self._far < 5 and self._very_far < 2:
            return None
        severity = Severity.CRITICAL if value > 1.0 else Severity.WARNING
        message = f"approx_kl is {number(value)} nats a token, above {number(limit)} for {self._far} logs."
        return Finding("approx_kl", value, limit, message, severity, {"early": early})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Ratios of PPO as logs have them, with and without empty slots."""
        wave = [0.0, 0.02, -0.01, 0.03, -0.02]

        def rows(share: float, divergence: float) -> list[dict[str, float]]:
            return [
                {"ratio_mean": share * (1.0 + wave[step % 5]), "ratio_var": 0.28, "approx_kl": divergence * (1.0 + 9 * wave[step % 5])}
                for step in range(40)
            ]

        yield Example("at rest", rows(1.0, 0.0024), [])
        yield Example("half of the slots empty", rows(0.5, 0.0012), [])
        yield Example("a quarter of the slots written", rows(0.25, 0.0006), [])
        yield Example("one bad update", [*rows(1.0, 0.002), {"ratio_mean": 2.4, "approx_kl": 0.5}, *rows(1.0, 0.002)], [])
        yield Example("ratios grow", rows(1.0, 0.002) + [{"ratio_mean": 1.0 + 0.3 * step} for step in range(10)], [46])
        yield Example("at once", [*rows(1.0, 0.002), {"ratio_mean": 12.0}], [41])
        yield Example("divergence of updates", rows(1.0, 0.002) + rows(1.0, 0.1), [45])
