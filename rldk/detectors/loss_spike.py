"""A training loss that jumps, or goes up and stays there."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Surge

_HUGE = 1e100
_WARM_UP = 15
_LOG_5 = math.log(5.0)
_EARLY = 50
_CENTRED = frozenset({"grpo", "rloo", "ppo"})
_LOG_1_8, _LOG_2, _LOG_2_2, _LOG_2_5, _LOG_6 = (math.log(factor) for factor in (1.8, 2.0, 2.2, 2.5, 6.0))


class LossSpike(Detector):
    """The loss jumps out of its level, or diverges.

    What it sees: `loss`, of trainers whose loss is a positive error (SFT, DPO, KTO, reward, ORPO, CPO and the like);
    `entropy_mean` beside it in SFT.
    Why it matters: a diverged model does not come back by itself, and what a spike unlearns must be learnt again.
    When it fires: after 15 logs, in the log domain: one log at `ratio` times the level, 5 robust deviations out and beyond
    what the run has bounced before; two in a row at 2.5 times and 3 deviations; 5 logs at twice the level and none below 1.8
    times between, with their mean at 2.2 times and 2.5 deviations. In the first 50 logs, which need no long history: three
    logs in a row at 1.8 times what was before and twice it in the mean, or two at 4 times (6 times, if there are others
    between), and 2 nats above it (0.4 for pairs); in SFT two logs 5 nats and 3 times above the model's own entropy, which is
    worse than guessing. Always by a material amount: above half of the first loss (all of it where pairs are compared, whose
    loss falls to nothing and bounces); half of that for a level that lasts. Critical when it stays at twice the level before
    for 5 logs. The episode is open until the loss is below 1.5 times that level.
    What to do: lower `learning_rate`, longer `warmup_steps`, clip with `max_grad_norm`; look at the batch; go back about 100
    steps and skip it.
    False alarms: a loss that was ever negative (GRPO, RLOO, PPO: centred at zero) disarms it; a change of data that less
    than doubles the loss is let pass; with one example a batch a loss of many times the level is healthy where the
    spread says so.
    Sources: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311): about 20 spikes, rewound by 100 steps; ZClip (arXiv
    2504.02507); trainproof's 1.5x; the rule and its rate of false alarms were simulated and measured here.

    Args:
        ratio: Times its level that a single log must reach.
    """

    code = "loss_spike"
    title = "Loss spike or divergence"
    watches = ("loss",)
    only_watched = True
    left_out = _CENTRED
    needs = "a loss that is always positive; that of GRPO, RLOO and PPO is centred at 0"
    advice = (
        "Lower learning_rate or lengthen warmup_steps, set max_grad_norm=1.0, and look at this step's batch; if the loss "
        "does not come back, resume from a checkpoint before the spike."
    )
    cooldown = 25

    def __init__(self, *, ratio: float = 3.0) -> None:
        self.ratio = number_parameter(self.code, "ratio", ratio, low=1.5)
        self._log_ratio = math.log(ratio)
        self._surge = Surge(hold=20)
        self._disarmed = False
        self._first = 0.0  # logarithm of the first loss
        self._material = 0.0
        self._streak = 0  # logs in a row at 1.8 times the first
        self._streak_sum = 0.0
        self._far = 0  # at 4 times, or at 6 times with a few logs between
        self._since_far = 0
        self._base = 0.0  # logarithm of what early losses are held against
        self._guess = 0  # worse than guessing
        self._jump = 0  # logs in a row out of the level
        self._high = 0  # logs at twice the level, none below 1.8 times between them
        self._before: float | None = None  # logarithm of the level before the episode that is open
        self._lasts = 0
        self._calm = 0

    def judge(self, event: Event) -> Answer:
        """Holds the loss against the first one, then against its level."""
        metrics = event.metrics
        loss = metrics.get("loss")
        if loss is None or self._disarmed:
            return ABSENT
        if not 0.0 < loss < _HUGE:
            if -_HUGE < loss < 0.0:
                self._disarmed = True
                return ABSENT
            return WARMING  # zero is what transformers makes of NaN: another detector's
        surge = self._surge
        logarithm = math.log(loss)
        count = surge.count
        if count == 0:
            if event.model_info.get("trainer") in _CENTRED or "frac_zero_std" in metrics or "policy_loss" in metrics:
                self._disarmed = True
                return ABSENT
            self._first = logarithm
            pairs = "pair_accuracy" in metrics or "reward_margin" in metrics
            self._material = loss if pairs and loss < 1.5 else 0.5 * loss
        if self._before is not None:
            return self._judge_open(loss, logarithm)
        if count < _EARLY:
            found = self._judge_early(loss, logarithm, metrics.get("entropy_mean"), "reward_margin" in metrics)
            if found:
                self._before, self._lasts, self._calm = self._base, 1, 0
                surge.fast = logarithm
                return self._finding(loss, self._base, found)
        reference = surge.centre
        above = logarithm - reference
        if above < _LOG_1_8:
            self._jump = self._high = 0
            surge.add(logarithm)
            return FINE if count >= _WARM_UP else WARMING
        spread, peak, sudden = surge.spread, surge.peak, logarithm - surge.fast
        surge.add(logarithm)
        if count < _WARM_UP:
            return WARMING
        if loss < 0.5 * self._material:
            self._jump = self._high = 0
            return FINE
        single = loss >= self._material
        self._jump = self._jump + 1 if single and above > _LOG_2_5 and above > 3.0 * spread and above > 0.8 * peak else 0
        self._high += above > _LOG_2 and above > 1.5 * spread
        shift = surge.fast - reference
        if (
            (single and above > self._log_ratio and above > 5.0 * spread and above > 1.2 * peak)
            # While a loss falls fast its level lags behind: against the last few logs the jump is plain.
            or (single and sudden > _LOG_5 and sudden > self._log_ratio and sudden > 5.0 * spread and sudden > 1.5 * peak)
            or self._jump >= 2
            or (self._high >= 5 and shift > _LOG_2_2 and shift > 2.5 * spread and shift > 0.5 * peak)
        ):
            self._before, self._lasts, self._calm = reference, max(1, self._high), 0
            return self._finding(loss, reference, "")
        return FINE

    def _judge_early(self, loss: float, logarithm: float, entropy: float | None, pairs: bool) -> str:
        """What is wrong with a loss that has no history yet; empty for nothing."""
        if self._streak == 0:
            # The first loss of a small batch may be low by chance; those after it correct that, until a rise begins. Pairs
            # start from one value, whatever the batch.
            self._base = self._first if pairs else max(self._first, self._surge.centre)
        rise = logarithm - self._base
        self._since_far += 1
        if rise > _LOG_1_8:
            self._streak += 1
            self._streak_sum += rise
            if rise > 2 * _LOG_2 and (self._streak > 1 or rise > _LOG_6):
                self._far = self._far + 1 if self._since_far <= 5 else 1
                self._since_far = 0
            level = math.exp(self._base)
            much = loss > level + (0.4 if pairs else 2.0)
            if much and (self._far >= 2 or (self._streak >= 3 and self._streak_sum > self._streak * _LOG_2)):
                return f" {number(level)} before"
        else:
            self._streak = 0
            self._streak_sum = 0.0
        if entropy is not None and not pairs and 0.0 <= entropy < 100.0 and loss > entropy + 5.0 and loss > 3.0 * entropy:
            self._guess += 1
            if self._guess >= 2:
                return f" an entropy of {number(entropy)}: worse than guessing"
        else:
            self._guess = 0
        return ""

    def _judge_open(self, loss: float, logarithm: float) -> Answer:
        """The level is held as it was before, until three logs are near it."""
        surge = self._surge
        before = self._before
        assert before is not None
        surge.count += 1
        surge.fast += 0.3 * (logarithm - surge.fast)
        above = logarithm - before
        self._lasts = self._lasts + 1 if above > _LOG_2 else 0
        self._calm = self._calm + 1 if above < 0.405 or loss < 0.5 * self._material else 0  # 1.5 times
        if self._calm >= 2:
            self._before = None
            self._jump = self._high = self._streak = self._guess = 0
            self._far = 0
            self._streak_sum = 0.0
            surge.fast = min(surge.fast, before + 0.405)
            return FINE
        return self._finding(loss, before, "")

    def _finding(self, loss: float, before: float, against: str) -> Finding:
        level = math.exp(before)
        severity = Severity.CRITICAL if self._lasts >= 5 else Severity.WARNING
        held = f"against{against}" if against else f"{number(round(loss / level, 2))} times its level of {number(level)}"
        lasting = f", for {self._lasts} logs now" if self._lasts > 1 else ""
        return Finding(
            "loss", loss, max(self._material, 2.0 * level), f"loss is {number(loss)}, {held}{lasting}.", severity,
            {"level_before": level, "first_loss": math.exp(self._first)},
        )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Spikes, divergence from the start, and losses that are healthy and restless."""
        wave = [1.0, 1.15, 0.9, 1.05, 0.85, 1.1, 0.95, 1.2]
        falls = [{"loss": (1.0 + 3.0 * 0.97**step) * wave[step % 8]} for step in range(100)]
        yield Example("one bad batch", [*falls, {"loss": 7.0}, *falls[-20:]], [101])
        yield Example("diverges and stays", falls + [{"loss": 3.2 * wave[step % 8]} for step in range(40)], [110])
        hot = [3.8, 7.2, 10.8, 21.1, 6.4, 11.1, 13.4, 11.1, 8.7, 5.3]
        yield Example("too high a learning rate", [{"loss": value} for value in hot], [4])
        yield Example(
            "averaged over it", [{"loss": value, "entropy_mean": 1.9} for value in (9.8, 10.1, 4.6, 4.1)], [2]
        )
        pairs = [
            {"loss": max(1e-3, 0.69 * 0.93**step) * (0.02, 8.0, 0.5, 1.5, 0.1)[step % 5] ** (step > 5), "reward_margin": 1.0}
            for step in range(200)
        ]
        yield Example("pairs of one, learnt", pairs, [])
        floor = [{"loss": 2.0 * 0.9**min(step, 70) * (1.0, 4.0, 0.3, 2.0)[step % 4]} for step in range(200)]
        yield Example("bounces at the floor", floor, [])
        yield Example("harder data", falls + [{"loss": 1.8 * wave[step % 8]} for step in range(60)], [])
        yield Example("centred at zero", [{"loss": (-1) ** step * 10.0 ** (step % 3)} for step in range(60)], [])
