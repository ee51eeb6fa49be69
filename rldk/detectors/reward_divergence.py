"""The reward that is trained on rises while one that is not falls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._rewards import RewardFunctions, weights_of

# Beyond this a reward is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
_EVAL = "eval_reward_mean"
# Logs in a row in which a part must be missing from the total before it is taken for held out.
_LEFT_OUT = 10


class _Series:
    """A reward's level, its best, and the noise of single values.

    The noise is the mean difference of neighbours (0.886 of it is the standard deviation of a normal law), which a trend
    hardly enters.
    """

    __slots__ = (
        "alpha", "best", "best_step", "count", "falling", "highest", "last", "level", "lowest", "noise", "proxy_at_best",
        "warmup",
    )

    def __init__(self, alpha: float, warmup: int) -> None:
        self.alpha = alpha
        self.warmup = warmup
        self.count = 0
        self.level = self.last = self.noise = 0.0
        self.best = self.highest = -_HUGE
        self.lowest = _HUGE
        self.best_step = 0
        self.proxy_at_best = 0.0
        self.falling = 0

    def add(self, value: float) -> None:
        """Takes a finite value in."""
        self.count = count = self.count + 1
        if count > 1:
            self.noise += (0.886 * abs(value - self.last) - self.noise) * max(self.alpha * 0.5, 1.0 / (count - 1))
        self.last = value
        self.level += (value - self.level) * max(self.alpha, 1.0 / count)

    def mark(self, step: int, proxy: float) -> float:
        """Remembers the best, and where the proxy stood then; returns how far the level lies below it."""
        level = self.level
        if self.count < self.warmup:
            return 0.0
        if level > self.highest:
            self.highest = level
        if level < self.lowest:
            self.lowest = level
        if level > self.best:
            self.best, self.best_step, self.proxy_at_best = level, step, proxy
        return self.best - level


class RewardDivergence(Detector):
    """The training reward goes on rising while a held-out one falls clearly below its best.

    What it sees: `reward_mean`, and a reward that is not trained on: `eval_reward_mean`, or a reward function with a weight of
    zero in `reward_weights` (found by the arguments, or by its being left out of the total).
    Why it matters: what rises is then the proxy, not what it stands for: the policy games the reward or fits the training
    prompts.
    When it fires: the held-out level lies `share` below its best (in terms of the best, or of its own range if that is
    wider), by more than its noise can explain, for two evaluations or 10 logs in a row, while the training reward stands
    clearly higher than at that best. Critical at twice `share`.
    What to do: read completions; go back to the best held-out checkpoint; cap the proxy or pull harder towards the
    reference.
    False alarms: a held-out reward that falls together with the training reward is a collapse, not a divergence, and left
    to others. Few evaluations are noisy: 2.5 standard deviations are asked for.
    Sources: Gao et al. 2210.10760; Soup issue 286 (proxy 1.85 to 3.84, strict accuracy 0.90 to 0.22); levels of 0.15 and 0.30
    as in rldoctor. Published work finds that such signals audit hacking rather than predict it.

    Args:
        share: How far below its best the held-out reward must be.
    """

    code = "reward_divergence"
    title = "Reward against held-out reward"
    watches = ("reward_mean",)
    needs = (
        "a reward that is not trained on: an eval_dataset with eval_strategy='steps', or a second reward function with "
        "a weight of 0 in reward_weights"
    )
    advice = (
        "Read completions from before and after: the policy may be gaming the reward. Go back to the checkpoint of the best "
        "held-out reward, cap or repair the reward function, and raise beta."
    )
    phases = frozenset({"train", "eval"})

    def __init__(self, *, share: float = 0.15) -> None:
        self.share = number_parameter(self.code, "share", share, low=0.01, high=1.0)
        self._names = RewardFunctions()
        self._weights: list[float] | None = None
        self._proxy = _Series(0.1, 1)
        self._eval = _Series(0.5, 2)
        self._held: dict[str, _Series] = {}
        self._left_out: dict[str, int] = {}
        self._adds_up = 0  # logs in a row in which all functions have their part in the total

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Notes the weights of the reward functions."""
        self._weights = weights_of(arguments)

    def judge(self, event: Event) -> Answer:
        """Takes the training reward in, and each reward that is not trained on."""
        metrics = event.metrics
        total = metrics.get("reward_mean")
        answer: Answer = ABSENT
        if total is not None and -_HUGE < total < _HUGE:
            self._proxy.add(total)
            names = self._names
            if len(metrics) not in names.shapes:
                names.learn(metrics)
            # Once the parts have added up for long, they are looked at every 16th log only.
            if len(names.means) > 1 and (self._adds_up < 30 or not self._proxy.count % 16):
                for name in self._held_out(metrics, total):
                    answer = _worse(answer, self._compare(name, metrics[name], event.step))  # type: ignore[arg-type]
        value = metrics.get(_EVAL)
        if value is not None:
            answer = _worse(answer, self._compare(_EVAL, value, event.step))
        return answer

    def _held_out(self, metrics: Mapping[str, float | int | None], total: float) -> list[str]:
        """Names of the functions that have a finite value here and no part in the total."""
        means = self._names.means
        weights = self._weights
        finite = [name for name in means if (value := metrics.get(name)) is not None and -_HUGE < value < _HUGE]
        if weights is not None and len(weights) == len(means):
            return [name for name in finite if weights[means.index(name)] == 0.0]
        if weights is not None or len(finite) < 2:
            return []
        size = whole = 0.0
        for name in finite:
            value = metrics[name] or 0.0
            whole += value
            size += abs(value)
        slack = 0.01 * size + 1e-9
        excess = whole - total
        if -slack <= excess <= slack:
            self._adds_up += 1
            if self._left_out:
                self._left_out = {name: count - 5 for name, count in self._left_out.items() if count > 5}
            else:
                return []
        else:
            self._adds_up = 0
        counts = self._left_out
        for name in finite:
            part = metrics[name] or 0.0
            if abs(part) > slack and abs(excess - part) <= slack:
                counts[name] = min(20, counts.get(name, 0) + 1)
            elif abs(part) > slack and name in counts:
                counts[name] = max(0, counts[name] - 5)
        return [name for name in finite if counts.get(name, 0) >= _LEFT_OUT]

    def _compare(self, name: str, value: float, step: int) -> Answer:
        if not -_HUGE < value < _HUGE:
            return WARMING
        proxy = self._proxy
        evaluated = name == _EVAL
        series = self._eval if evaluated else self._held.setdefault(name, _Series(0.15, 5))
        series.add(value)
        drop = series.mark(step, proxy.level)
        if series.count < (3 if evaluated else 15) or proxy.count < 5:
            return WARMING
        share = drop / (max(abs(series.best), series.highest - series.lowest) or 1.0)
        rise = proxy.level - series.proxy_at_best
        diverges = share >= self.share and drop > (2.5 if evaluated else 1.5) * series.noise
        if not (diverges and rise > 0.5 * proxy.noise and rise > 0.0):
            # Half of the way back ends it.
            series.falling = series.falling - 1 if series.falling > 0 and share > 0.5 * self.share and rise > 0.0 else 0
            lasting = series.falling > 0 and series.falling >= (2 if evaluated else 10)
        else:
            series.falling = min(series.falling + 1, 20)
            lasting = series.falling >= (2 if evaluated else 10)
        if not lasting:
            return FINE
        message = (
            f"{name} has fallen to a level of {number(series.level)} from its best of {number(series.best)} at step "
            f"{series.best_step}, while reward_mean rose from {number(series.proxy_at_best)} to {number(proxy.level)}."
        )
        evidence = {
            "best": series.best, "best_step": series.best_step, "fall_share": share, "noise": series.noise,
            "reward_at_best": series.proxy_at_best, "reward_now": proxy.level,
        }
        severity = Severity.CRITICAL if share >= 2 * self.share else Severity.WARNING
        return Finding(name, value, series.best * (1.0 - self.share), message, severity, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A gamed reward by evaluation and by a function of weight zero; healthy runs with both."""
        proxy = [0.2 + 0.004 * step + 0.02 * (step % 3) for step in range(200)]
        held = [0.4 + 0.002 * step if step < 60 else max(0.4, 0.52 - 0.006 * (step - 60)) for step in range(200)]

        def evaluated(rewards: list[float], scores: list[float]) -> list[dict[str, float]]:
            return [
                {"reward_mean": reward, **({_EVAL: score} if step % 10 == 9 else {})}
                for step, (reward, score) in enumerate(zip(rewards, scores, strict=True))
            ]

        def beside(rewards: list[float], scores: list[float]) -> list[dict[str, float]]:
            return [
                {"reward_mean": reward, "rewards/share/mean": reward, "rewards/kinds/mean": score}
                for reward, score in zip(rewards, scores, strict=True)
            ]

        yield Example("evaluation falls", evaluated(proxy, held), [100])
        yield Example("the real aim falls", beside(proxy, held), [90])
        yield Example("both rise", evaluated(proxy, proxy), [])
        noisy = [0.5 + 0.2 * (((step * 2654435761 >> 7) % 1000) / 1000 - 0.5) for step in range(200)]
        yield Example("a noisy evaluation", evaluated(proxy, noisy), [])
        yield Example("a noisy aim", beside(proxy, noisy), [])
        yield Example("both fall", beside(held, held), [])
        trade = [{"reward_mean": a + b, "rewards/a/mean": a, "rewards/b/mean": b}
                 for a, b in zip(proxy, held, strict=True)]
        yield Example("parts of one total", trade, [])


def _worse(one: Answer, other: Answer) -> Answer:
    if isinstance(one, Finding):
        return other if isinstance(other, Finding) and other.severity.rank > one.severity.rank else one
    if isinstance(other, Finding) or one is ABSENT or other is FINE:
        return other
    return one
