"""Reward functions that judge nothing, never vary, or drown the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._rewards import RewardFunctions, weights_of

# Beyond this a reward is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
# Weight of a log in variances and levels; logs that make the early ones, that must be seen, and that it must last.
_ALPHA, _EARLY, _SEEN, _LASTING = 0.05, 10, 20, 10
# A function that only ever takes points away is at its best when it is constantly zero.
_PENALTIES = ("penal", "punish", "overlong", "repetit")


class _Function:
    """One reward function."""

    __slots__ = ("blank", "constant", "count", "early_mean", "early_variance", "level", "mean", "std", "value", "variance")

    def __init__(self, mean: str) -> None:
        self.mean = mean
        self.std = RewardFunctions.std(mean)
        self.blank = 0  # logs without a value, before the first value
        self.count = 0
        self.value = 0.0
        self.constant = 0  # logs from the first value on in which nothing varied; -1 once something has
        self.level = self.early_mean = 0.0
        self.variance = self.early_variance = 0.0

    def add(self, mean: float, std: float | None) -> None:
        """Takes one log in."""
        self.count = count = self.count + 1
        if self.constant >= 0:
            if count == 1:
                self.value = mean
            self.constant = -1 if std or mean != self.value else self.constant + 1
            if self.constant >= 0:
                self.level = mean
                return
        weight = max(_ALPHA, 1.0 / count)
        self.level += weight * (mean - self.level)
        if std is not None and 0.0 <= std < _HUGE:
            self.variance += weight * (std * std - self.variance)
        if count <= _EARLY:
            self.early_mean, self.early_variance = self.level, self.variance


class RewardComponents(Detector):
    """One of several reward functions is dead, or drowns the others; or none of them gives a value.

    What it sees: `reward_mean`, and the mean and spread of each reward function (`rewards/<function>/mean`, `/std`).
    Why it matters: a function that returns None, or the same for every completion, is not trained for; one whose spread is
    many times that of the others is all that is trained for.
    When it fires: critical when no function gave a value, or the total is None or NaN, in `patience` logs in a row. Info when
    one of several has been stuck at one value of zero or below since the start for `dead` logs, or has not given
    a single value in as many. A warning when one makes up more than `dominance` of the variance of the weighted sum for
    `10` logs, while another one varies, has not been learnt and does not improve.
    What to do: run the function on a few completions by hand; set `reward_weights`.
    False alarms: functions for one of several tasks return None on the other tasks' batches; a format reward that is always
    earned is constant above zero; penalties that are never due are constant at zero, and known by their names only. A
    correctness reward of 2 beside format rewards of 0.5 makes up 0.94 of the variance by design. Dominance is not judged where
    the total is not the weighted sum of the parts.
    Sources: TRL issue 5298; rldoctor's levels of 0.7 and 0.9 were raised here, because such designs reach them; two public
    runs on GSM8K have format rewards of 0 in every log.

    Args:
        dead: Logs from the start in which a function shows no life.
        patience: Logs in a row without any reward.
        dominance: Share of the variance.
    """

    code = "reward_components"
    title = "Reward functions"
    watches = ("reward_mean",)
    only_watched = True
    needs = "the reward, and for most of its rules the mean and spread of each of several reward functions"
    advice = (
        "Call the reward function by hand on a few logged completions and compare: None or the same value for all means a "
        "parsing error or a form that no completion has. Balance scales with reward_weights, or with "
        "multi_objective_aggregation='normalize_then_sum'."
    )
    cooldown = 30

    def __init__(self, *, dead: int = 30, patience: int = 5, dominance: float = 0.98) -> None:
        self.dead = number_parameter(self.code, "dead", dead, low=2, whole=True)
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self.dominance = number_parameter(self.code, "dominance", dominance, low=0.5, high=1.0)
        self._names = RewardFunctions()
        self._functions: list[_Function] = []
        self._weights: list[float] | None = None
        self._blank = 0  # logs in a row without any reward
        self._adds = 0  # logs in a row in which the total is the weighted sum
        self._dominated = 0

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Notes the weights of the reward functions."""
        self._weights = weights_of(arguments)

    def judge(self, event: Event) -> Answer:
        """Takes each function's values in, then looks for the worst."""
        metrics = event.metrics
        if "reward_mean" not in metrics:
            return ABSENT
        total = metrics["reward_mean"]
        if len(metrics) not in self._names.shapes and self._names.learn(metrics):
            self._functions += [_Function(mean) for mean in self._names.means[len(self._functions):]]
        functions = self._functions
        if len(functions) < 2 and total is not None and -_HUGE < total < _HUGE:
            # TRL 0.23 makes 0 of a batch that nobody judged.
            mean = metrics.get(functions[0].mean, total) if functions else total
            if mean is not None and mean == mean:
                self._blank = 0
                return FINE
        weights = self._weights
        if weights is not None and len(weights) != len(functions):
            weights = None
        there = known = 0
        size = weighted = 0.0
        for index, function in enumerate(functions):
            mean = metrics.get(function.mean)
            if mean is not None and -_HUGE < mean < _HUGE:
                there += 1
                known += 1
                function.add(mean, metrics.get(function.std))
                part = mean if weights is None else mean * weights[index]
                weighted += part
                size += abs(part)
            elif mean is None or mean != mean:
                there += function.mean in metrics
                if not function.count:
                    function.blank += function.mean in metrics
        if total is None or total != total or (there and not known):
            self._blank += 1
            self._adds = 0
            return self._without_reward(total) if self._blank >= self.patience else WARMING
        self._blank = 0
        if not -_HUGE < total < _HUGE:
            return WARMING
        if len(functions) < 2:
            return FINE
        # Sums over samples that a function did not judge, penalties and normalisation make it something else.
        adds = known == len(functions) and abs(weighted - total) <= 0.02 * size + 1e-9
        self._adds = self._adds + 1 if adds else 0
        if self._adds >= _SEEN and (answer := self._drowned(weights)):
            return answer
        for function in functions:
            if function.constant >= self.dead or function.blank >= self.dead:
                answer = self._lifeless(function)
                if answer is not None:
                    return answer
        return FINE

    def _without_reward(self, total: float | None) -> Finding:
        message = (
            f"reward_mean is {number(total)} and no reward function has given a value in {self._blank} logs in a row: "
            "there is nothing to learn from."
        )
        return Finding("reward_mean", total, None, message, Severity.CRITICAL, {"logs": self._blank})

    def _lifeless(self, function: _Function) -> Finding | None:
        if function.blank >= self.dead and not function.count:
            message = f"{function.mean} has been None or NaN in all of {function.blank} logs: it judges no completion."
            return Finding(function.mean, None, None, message, Severity.INFO, {"logs": function.blank})
        penalty = any(word in function.mean.lower() for word in _PENALTIES)
        if function.constant < self.dead or function.value > 0.0 or penalty:
            return None
        message = f"{function.mean} has been {number(function.value)} for every completion of {function.constant} logs."
        return Finding(function.mean, function.value, None, message, Severity.INFO, {"logs": function.constant})

    def _drowned(self, weights: list[float] | None) -> Finding | None:
        functions = self._functions
        largest = whole = 0.0
        loud = functions[0]
        for index, function in enumerate(functions):
            weight = 1.0 if weights is None else weights[index]
            variance = weight * weight * function.variance
            whole += variance
            if variance > largest:
                largest, loud = variance, function
        if not whole < math.inf or largest <= self.dominance * whole:
            self._dominated = 0
            return None
        for index, function in enumerate(functions):
            if function is loud or function.count < _SEEN or (weights is not None and weights[index] == 0.0):
                continue
            early = function.early_variance
            # Constant, learnt (its spread is gone) or being learnt for all that: then it is not drowned.
            if 0.0 < 0.25 * early <= function.variance and function.level <= function.early_mean + 0.5 * math.sqrt(early):
                self._dominated += 1
                if self._dominated < _LASTING:
                    return None
                message = (
                    f"{loud.mean} makes up {100 * largest / whole:.1f} % of the variance of the reward: its spread is "
                    f"{number(math.sqrt(loud.variance))} where that of {RewardFunctions.short(function.mean)} is "
                    f"{number(math.sqrt(function.variance))}, which does not improve."
                )
                evidence = {"share": largest / whole, "drowned": RewardFunctions.short(function.mean)}
                return Finding(loud.mean, loud.level, None, message, Severity.WARNING, evidence)
        self._dominated = 0
        return None

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Dead and drowned functions, none at all, and healthy mixtures."""
        def row(correct: float, spread: float, form: float, form_spread: float, scale: float = 1.0) -> dict[str, float]:
            return {
                "reward_mean": scale * correct + form,
                "rewards/correct/mean": scale * correct, "rewards/correct/std": scale * spread,
                "rewards/format/mean": form, "rewards/format/std": form_spread,
            }

        def wave(step: int) -> float:
            return 0.3 + 0.05 * (step % 4)

        yield Example("a form that no completion has", [row(wave(step), 0.3, 0.0, 0.0) for step in range(50)], [30])
        yield Example("one drowns the other", [row(wave(step), 0.3, 0.2 + 0.01 * (step % 3), 0.2, 30.0)
                                               for step in range(80)], [29])
        nothing = {"reward_mean": None, "rewards/f/mean": None, "rewards/f/std": None, "frac_zero_std": 0.0}
        yield Example("no reward", [{"reward_mean": 1.0, "rewards/f/mean": 1.0}] * 9 + [nothing] * 9, [14])  # type: ignore[list-item]
        saturated = [row(wave(step), 0.3, 1.0, 0.0) for step in range(200)]
        yield Example("a form that all completions have", saturated, [])
        learnt = [row(wave(step), 0.3, min(1.0, step / 30), max(0.0, 0.3 - step / 100), 30.0) for step in range(200)]
        yield Example("a form that is learnt beside a louder one", learnt, [])
        one, other = {"rewards/a/mean": 0.5, "rewards/b/mean": math.nan}, {"rewards/a/mean": None, "rewards/b/mean": 0.5}
        tasks = [{"reward_mean": 0.5, **(one if step % 7 else other)} for step in range(200)]
        yield Example("two tasks, a function each", tasks, [])  # type: ignore[arg-type]
        yield Example("one function", [{"reward_mean": 0.0, "rewards/f/mean": 0.0, "rewards/f/std": 0.0}] * 99, [])
