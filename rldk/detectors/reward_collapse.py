"""A reward that had risen and is lost again."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

# Beyond this a reward is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
# Weights of a log: in the level of now, in the level whose best is remembered, in the spread.
_FAST, _SLOW, _SPREAD = 0.3, 0.1, 0.05
_WARMUP = 15


class RewardCollapse(Detector):
    """The reward has lost what the run had gained, and does not come back.

    What it sees: `reward_mean`, or `reward_penalised` where that is not logged.
    Why it matters: from there on the run makes the policy worse; the best checkpoint lies behind it.
    When it fires: the reward's fast mean lies below its best level by more than three times its noise (a robust deviation of
    single logs) and either at least `lost` of the gain is gone for `patience` logs, or at least 60 % of it for 25 logs. Where
    there was no real gain to lose (less than twice the noise), it takes a fall by six times the noise and by half of the
    best level itself, for 25 logs. Not while the reward is coming back: by a quarter of the fall from its lowest.
    What to do: go back to the best checkpoint; lower the learning rate or strengthen the pull towards the reference.
    False alarms: harder data in a curriculum costs a part of the gain, and the reward comes back; both are waited for. A
    noisy reward has a wide spread and needs a larger fall.
    Sources: ms-swift issue 6550 (KL jumps, all rewards fall), Search-R1 issue 88, ZeroSearch issue 23; the numbers are chosen
    here.

    Args:
        lost: Share of the gain that must be gone for the quick alarm.
        patience: Logs in a row for which it must be gone.
    """

    code = "reward_collapse"
    title = "Reward collapse"
    watches = ("reward_mean", "reward_penalised")
    only_watched = True
    needs = "a reward for 15 logs at least"
    advice = (
        "Stop and resume from the checkpoint of the best reward with a lower learning_rate, a higher beta (PPO: kl_coef) or a "
        "lower max_grad_norm; look at kl_mean and entropy_mean before the fall. If the data got harder on purpose, wait."
    )
    weights_are_sound = False
    cooldown = 20

    def __init__(self, *, lost: float = 0.9, patience: int = 8) -> None:
        self.lost = number_parameter(self.code, "lost", lost, low=0.1, high=10.0)
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self._count = 0
        self._plain = False  # reward_mean has been seen: reward_penalised is then passed over
        self._start = 0.0
        self._fast = 0.0
        self._slow = 0.0
        self._best = 0.0
        self._best_step = 0
        self._spread = 0.0
        self._lowest = 0.0
        self._deep = 0  # logs in a row with nearly all of the gain gone
        self._half = 0  # logs in a row with more than half of it gone
        self._open = False

    def judge(self, event: Event) -> Answer:
        """Follows the level, its best and its noise."""
        metrics = event.metrics
        name = "reward_mean"
        value = metrics.get(name)
        if value is not None:
            self._plain = True
        else:
            if self._plain or "reward_mean" in metrics:
                return ABSENT
            name = "reward_penalised"
            value = metrics.get(name)
            if value is None:
                return ABSENT
        if not -_HUGE < value < _HUGE:
            return WARMING
        self._count = count = self._count + 1
        if count <= _WARMUP:
            return self._warm(value, event.step)
        spread, best = self._spread, self._best
        off = value - self._fast
        self._fast = fast = self._fast + _FAST * off
        drop = best - fast
        if drop <= 3.0 * spread and not self._open:
            # At its level: only here does the noise get known better, or a fall would hide itself in it.
            # A rise is taken in whole, for it hides nothing.
            off = (1.1 * off if off > 0.0 else -max(1.1 * off, -3.0 * spread - 1e-12)) - spread
            # A sparse reward has quiet times that say little of its noise: it is forgotten slower than it is learnt.
            self._spread = spread + (_SPREAD if off > 0.0 else 0.2 * _SPREAD) * off
            self._slow = slow = self._slow + _SLOW * (value - self._slow)
            if slow > best:
                self._best = slow
                self._best_step = event.step
            self._deep = self._half = 0
            self._lowest = fast
            return FINE
        self._slow += _SLOW * (value - self._slow)
        return self._fallen(name, value, drop, event)

    def _warm(self, value: float, step: int) -> Answer:
        count = self._count
        if count == 1:
            self._fast = self._slow = value
        else:
            self._spread += (1.1 * abs(value - self._fast) - self._spread) / (count - 1)
            self._fast += (value - self._fast) * max(_FAST, 1.0 / count)
            self._slow += (value - self._slow) * max(_SLOW, 1.0 / count)
        if count <= 5:
            self._start = self._slow
        if count == 5 or (count > 5 and self._slow > self._best):
            self._best = self._slow
            self._best_step = step
        self._lowest = self._fast
        return WARMING

    def _fallen(self, name: str, value: float, drop: float, event: Event) -> Answer:
        fast, spread = self._fast, self._spread
        self._lowest = min(self._lowest, fast)
        gain = self._best - self._start
        real = gain > 2.0 * spread and gain > 0.0
        share = drop / gain if real else 0.0
        returning = fast - self._lowest > 0.25 * (self._best - self._lowest)
        if self._open:
            if drop > 3.0 * spread and (share > 0.4 if real else drop > 0.4 * abs(self._best)):
                return self._finding(name, value, drop, share, event)
            self._open = False
            self._deep = self._half = 0
            return FINE
        if real:
            self._deep = self._deep + 1 if share >= self.lost else 0
            self._half = self._half + 1 if share >= 0.6 else 0
        else:
            bad = drop > 6.0 * spread and drop > 0.5 * abs(self._best)
            self._half = self._half + 1 if bad else 0
        if not returning and (self._deep >= self.patience or self._half >= 25):
            self._open = True
            return self._finding(name, value, drop, share, event)
        return FINE

    def _finding(self, name: str, value: float, drop: float, share: float, event: Event) -> Finding:
        part = f", which is {100 * share:.0f} % of all it had gained" if share else ""
        message = (
            f"{name} has fallen to a level of {number(self._fast)} from its best of {number(self._best)} at step "
            f"{self._best_step}{part}, and stays there."
        )
        evidence = {"best": self._best, "best_step": self._best_step, "start": self._start, "noise": self._spread}
        return Finding(name, value, self._best - 3.0 * self._spread, message, Severity.CRITICAL, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A collapse, a curriculum, noise, and a slow decline that is none."""
        def noise(step: int) -> float:
            return ((step * 2654435761 >> 7) % 1000) / 1000 - 0.5  # even over [-0.5, 0.5), and the same each time

        rise = [{"reward_mean": min(0.8, 0.2 + step / 100) + 0.1 * noise(step)} for step in range(100)]
        yield Example("collapse", [*rise, *[{"reward_mean": 0.15 + 0.1 * noise(step)} for step in range(40)]], [112])
        harder = [{"reward_mean": min(0.8, 0.4 + step / 60) + 0.1 * noise(step)} for step in range(100)]
        yield Example("a curriculum", [*rise, *harder, *harder], [])
        much = [{"reward_mean": min(0.5, 0.2 + step / 200) + noise(step)} for step in range(600)]
        yield Example("a noisy reward", much, [])
        coin = [{"reward_mean": 1.0 if (step * 2654435761 >> 9) % 10 < 2 else 0.0} for step in range(600)]
        yield Example("a batch of one with a sparse reward", coin, [])
        yield Example("a reward that never changes", [{"reward_mean": 0.5}] * 200, [])
