"""Preference training without a preference to learn: tied pairs, a reference that moves along, labels that are noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_LN2 = math.log(2.0)
_ZERO = 1e-7  # a margin that is no margin; the first step of a healthy run makes a larger one
_ALPHA = 0.01
_FAST = 0.1
_SPREADS = 3.0  # how sure: the mean and three of its standard errors are below the limit
_LEAST_STEPS = 60
_LEAST_CLEAR = 30  # where the pairs are lost more often than by a coin
_LEAST_STILL = 100  # where the margins have hardly moved
_NO_REFERENCE = frozenset({"orpo", "cpo"})
_UNUSED = frozenset({"online_dpo", "grpo", "rloo", "ppo", "sft"})


class PreferenceSignal(Detector):
    """The pairs give no signal, or one that is no better than a coin.

    What it sees: `reward_margin`, `pair_accuracy`, `loss` and `lr` of preference and reward-model training; the
    accuracy in evaluations. Where no accuracy is logged, KTO's margin stands in by its sign, and the loss for the reward
    trainer of TRL up to 0.23.
    Why it matters: identical pairs, a prompt that fills the length limit, a reference that is the policy itself, or
    labels at random cost a whole run that goes through without an error.
    When it fires: the margin is exactly 0 and no pair is won for `ties` (5) logs with a learning rate above 0
    (critical). The mean accuracy is below `accuracy` (0.6) by three standard errors and not rising, after `logs` (20)
    logs and 60 steps since the warm-up: 100 steps if the margins have hardly moved, 30 if it is surely below 0.45
    (warning). Below 0.4 the pairs are swapped or tied. The accuracy of three evaluations is below 0.35 while that of training is above 0.65 (warning).
    What to do: look at ten pairs as they are tokenized: are `chosen` and `rejected` the right way round, different, and
    both inside `max_length`? If they are, raise `learning_rate` (LoRA needs ten times that of full training).
    False alarms: the first log of DPO has margin 0 and accuracy 0 by right, since a tie counts as wrong. Batches of one
    or two pairs log 0 or 1: the standard error comes from the logged values themselves, so they are waited for
    longer. A small learning rate is waited for while the accuracy creeps up. ORPO and CPO start where the base
    model stands, and are held against that. Online DPO draws new pairs for each step and is judged on ties only.
    Sources: TRL issues 1236 and 2371, LlamaFactory issue 664; measured: identical pairs give loss 0.6931, margin 0,
    accuracy 0; random pairs with ties an accuracy of 0.275; 20 % of labels wrong still gives more than 0.6. The
    limits are chosen here, on simulated learners of many rates and batch sizes.

    Args:
        accuracy: Mean share of pairs won below which there is no signal.
        logs: Logs after the warm-up before the accuracy is judged.
        ties: Logs in a row with a margin of exactly 0.
    """

    code = "preference_signal"
    title = "No signal in the pairs"
    watches = ("reward_margin", "pair_accuracy")
    needs = "a margin or an accuracy of pairs (preference or reward-model training)"
    advice = (
        "Read some pairs as they are tokenized: chosen and rejected must differ inside max_length and be the right way "
        "round, and ref_model must be no part of the policy. If they are right, raise learning_rate."
    )
    phases = frozenset({"train", "eval"})
    cooldown = 30

    def __init__(self, *, accuracy: float = 0.6, logs: int = 20, ties: int = 5) -> None:
        self.accuracy = number_parameter(self.code, "accuracy", accuracy, low=0.0, high=1.0)
        self.logs = number_parameter(self.code, "logs", logs, low=2, whole=True)
        self.ties = number_parameter(self.code, "ties", ties, low=2, whole=True)
        self._small = 0.01  # a margin that has hardly moved: a tenth of a nat at a beta of 0.1
        self._rate: float | None = None  # the full learning rate, where the arguments say it
        self._interval = 1  # steps a log, where the arguments say it
        self._tied = 0
        self._highest_lr = 0.0
        self._count = 0
        self._mean = 0.0
        self._square = 0.0  # exponential variance around the mean
        self._fast = 0.0
        self._first = 0.0  # mean of the first logs, for trainers without a reference
        self._size = 0.0  # exponential mean of the margin's absolute value
        self._off = 0.0  # exponential mean of the loss's distance from ln 2
        self._bad = False
        self._swapped = 0
        self._from_eval: Finding | None = None

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Takes the scale of the margins from `beta`, the full learning rate, and the steps between two logs."""
        rate = arguments.get("learning_rate")
        self._rate = rate if isinstance(rate, (int, float)) and 0.0 < rate < 1e6 else None
        interval = arguments.get("logging_steps")
        self._interval = interval if isinstance(interval, int) and 1 <= interval <= 1000 else 1
        beta = arguments.get("beta")
        if isinstance(beta, (int, float)) and 0.0 < beta < 1e6:
            self._small = 0.1 * beta

    def judge(self, event: Event) -> Answer:
        """Ties first, then the mean accuracy."""
        metrics = event.metrics
        if event.phase == "eval":
            return self._evaluated(metrics.get("eval_pair_accuracy"))
        margin, share = metrics.get("reward_margin"), metrics.get("pair_accuracy")
        family = event.model_info.get("trainer")
        if margin is None and share is None:
            if family != "reward":
                return ABSENT
            loss = metrics.get("loss")
            return ABSENT if loss is None else self._by_loss(loss, metrics.get("lr"))
        if margin is not None and not -1e300 < margin < 1e300:
            margin = None
        if share is not None and not 0.0 <= share <= 1.0:
            share = None
        lr = metrics.get("lr")
        if (margin is None and share is None) or lr == 0.0:
            return WARMING
        rising = lr is not None and lr > self._highest_lr  # still warming up
        if rising:
            self._highest_lr = lr  # type: ignore[assignment]
        if margin is not None and -_ZERO < margin < _ZERO and not share:
            # Low-precision weights may not move at all at the first rates of a warm-up.
            if rising and (self._rate is None or self._highest_lr < 0.5 * self._rate):
                return WARMING
            return self._tie(margin, share)
        self._tied = 0
        if rising:
            return WARMING
        if family in _UNUSED:
            return FINE
        return self._from_eval or self._noise(margin, share, event, family)

    def _tie(self, margin: float, share: float | None) -> Answer:
        self._tied += 1
        if self._tied < self.ties:
            return WARMING
        won = "" if share is None else " and pair_accuracy 0"
        message = f"reward_margin is {number(margin)}{won} for {self._tied} logs: the two sides of every pair are the same to the model."
        return Finding("reward_margin", margin, None, message, Severity.CRITICAL, {"logs": self._tied})

    def _noise(self, margin: float | None, share: float | None, event: Event, family: str | None) -> Answer:
        won = share if share is not None else float(margin > 0.0)  # type: ignore[operator]  # one of them is there
        self._count = count = self._count + 1
        loss = event.metrics.get("loss")
        first = 1.0 / count
        weight = first if first > _ALPHA else _ALPHA
        off = won - self._mean
        self._mean = mean = self._mean + weight * off
        self._square = (1.0 - weight) * (self._square + weight * off * off)
        self._fast += (first if first > _FAST else _FAST) * (won - self._fast)
        if margin is not None:
            self._size += weight * (abs(margin) - self._size)
        if loss is not None and -1e300 < loss < 1e300:
            self._off += weight * (abs(loss - _LN2) - self._off)
        if count <= 20:
            self._first = mean
        if mean > self.accuracy + 0.02 or count < self.logs:
            self._bad = False
            return FINE if count >= self.logs else WARMING
        return self._low(margin, share, family)

    def _low(self, margin: float | None, share: float | None, family: str | None) -> Answer:
        """The mean is low: whether it is surely so, and stays so."""
        mean, count = self._mean, self._count
        if self._bad:
            return self._accused(margin, share)
        if mean >= self.accuracy:
            return FINE
        deviation = math.sqrt(max(self._square, 1e-4))
        sure = mean + _SPREADS * deviation * math.sqrt(max(_ALPHA / (2.0 - _ALPHA), 1.0 / count))
        rising = self._fast - mean > max(0.02, 0.2 * deviation)
        limit = self.accuracy
        if family in _NO_REFERENCE:
            limit = min(limit, 0.55)
            rising = rising or mean > self._first + 0.05
        # Few logs are needed where each is a mean over many pairs, but not fewer steps than learning takes to show.
        if self._size < self._small or share is None:
            least = _LEAST_STILL
        else:
            least = _LEAST_CLEAR if sure < 0.45 and family not in _NO_REFERENCE else _LEAST_STEPS
        if count * self._interval < least:
            return WARMING
        if sure >= limit or rising or self._fast >= limit:
            return FINE
        self._bad = True
        return self._accused(margin, share)

    def _accused(self, margin: float | None, share: float | None) -> Finding:
        mean, size = self._mean, self._size
        evidence = {"mean": mean, "logs": self._count, "mean_size_of_margin": size}
        what = "pair_accuracy is" if share is not None else "reward_margin is above 0 in a share of"
        message = f"{what} {number(mean)} on average of the last {min(self._count, round(1 / _ALPHA))} logs"
        if size < self._small and self._off < 0.005 and margin is not None:
            message += f", the loss is at ln 2 and reward_margin at {number(margin)}: nothing is learnt from the pairs."
        elif mean < 0.4:
            message += ": most pairs are lost or tied, as with swapped or identical answers."
        else:
            message += ", no better than a coin: the labels look like noise."
        name = "pair_accuracy" if share is not None else "reward_margin"
        return Finding(name, share if share is not None else margin, self.accuracy, message, Severity.WARNING, evidence)

    def _by_loss(self, loss: float, lr: float | None) -> Answer:
        """The reward trainer of TRL 0.23 logs no accuracy: its loss is ln 2 where it knows nothing."""
        if not -1e300 < loss < 1e300 or lr == 0.0:
            return WARMING
        if lr is not None and lr > self._highest_lr:
            self._highest_lr = lr
            return WARMING
        self._tied = self._tied + 1 if abs(loss - _LN2) < 1e-4 else 0
        if self._tied >= self.ties:
            message = f"loss is {number(loss)}, ln 2, for {self._tied} logs: reward_margin is 0, the two sides of every pair are the same."
            return Finding("loss", loss, _LN2, message, Severity.CRITICAL, {"logs": self._tied})
        self._count = count = self._count + 1
        weight = max(_ALPHA, 1.0 / count)
        off = loss - self._mean
        self._mean = mean = self._mean + weight * off
        self._square = (1.0 - weight) * (self._square + weight * off * off)
        self._fast += max(_FAST, 1.0 / count) * (loss - self._fast)
        if count < self.logs:
            return WARMING
        deviation = math.sqrt(self._square)
        sure = mean - _SPREADS * deviation * math.sqrt(max(_ALPHA / (2.0 - _ALPHA), 1.0 / count))
        if self._bad:
            self._bad = mean > 0.64
        elif sure > 0.66 and mean < 1.0 and self._fast > max(0.66, mean - 0.02):
            self._bad = True
        if not self._bad:
            return FINE
        message = (
            f"loss is {number(mean)} on average, about ln 2 (0.693): after {count} logs the reward model tells chosen from "
            "rejected no better than a coin."
        )
        return Finding("loss", loss, 0.66, message, Severity.WARNING, {"mean": mean, "logs": count})

    def _evaluated(self, share: float | None) -> Answer:
        """Pairs that are won in training and lost in the evaluation: one of the two sets is the wrong way round."""
        if share is None:
            return ABSENT
        if not 0.0 <= share <= 1.0 or self._count < 10:
            return WARMING
        if share >= 0.35 or self._mean <= 0.65:
            was, self._from_eval = self._from_eval, None
            self._swapped = 0
            return FINE if was else WARMING
        self._swapped += 1
        if self._swapped < 3:
            return WARMING
        message = (
            f"eval_pair_accuracy is {number(share)} for {self._swapped} evaluations while pair_accuracy in training is "
            f"{number(self._mean)}: chosen and rejected look swapped in one of the two sets."
        )
        self._from_eval = Finding("eval_pair_accuracy", share, 0.35, message, Severity.WARNING, {"train": self._mean})
        return self._from_eval

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Ties, noise, and healthy runs that look like it: at the start, in small batches, at a small rate."""
        tie = {"loss": _LN2, "reward_margin": 0.0, "pair_accuracy": 0.0, "lr": 1e-5}
        yield Example("chosen is rejected", [tie] * 30, [6])
        coin = (0.5, 0.25, 0.75, 0.5, 0.625, 0.375, 0.5, 0.5)
        noisy = [
            {"loss": 0.7, "reward_margin": 0.1 * (-1) ** log, "pair_accuracy": coin[log % 8], "lr": 1e-5}
            for log in range(100)
        ]
        yield Example("labels at random", noisy, [61])
        learns = [
            {"loss": 0.69 - 0.003 * log, "reward_margin": 0.02 * log, "pair_accuracy": min(0.95, 0.5 + 0.02 * log), "lr": 1e-5}
            for log in range(1, 100)
        ]
        yield Example("a first log without a margin, then it learns", [{**tie, "lr": 0.0}, tie, *learns], [])
        yield Example("one pair a log, four of five won", [
            {"loss": 0.6, "reward_margin": 0.5, "pair_accuracy": float(log % 5 != 0), "lr": 1e-5} for log in range(200)
        ], [])
        yield Example("a small rate: slowly upwards", [
            {"loss": _LN2 - 1e-5 * log, "reward_margin": 1e-5 * log, "pair_accuracy": min(0.7, 0.5 + 0.002 * log), "lr": 1e-7}
            for log in range(1, 300)
        ], [])
