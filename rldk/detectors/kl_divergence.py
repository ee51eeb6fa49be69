"""KL divergence that runs away from the reference, or above the user's threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Example, Finding
from ._stats import Baseline, Progress, Surge
from ._threshold import ThresholdDetector

# Beyond this a value is a mistake of its own, and would drown the statistics.
_HUGE = 1e100
# Tokens that a divergence summed over the sequence is divided by where the length is not known.
_TOKENS = {"ppo": 30.0, "online_dpo": 64.0, "kto": 100.0}
_PER_TOKEN = frozenset({"grpo", "rloo"})
_UNKNOWN_TOKENS = 30.0
# Nats a token below which nothing is said.
_PRESENT = 0.1
# Far from the reference: a share of the entropy that the policy began with, within bounds in nats a token; the upper one
# where no entropy is logged.
_ENTROPY_SHARE, _FAR_LEAST, _FAR_MOST = 0.4, 0.15, 1.0
_A_STEP = 0.07  # of the way there, as fast as a sound run goes at most
_START = 60  # steps of a run during which the divergence is held against the speed of a sound start


class KLDivergence(ThresholdDetector):
    """The policy runs away from the reference.

    What it sees: `kl_mean` in the trainer's own unit (nats a token in GRPO and RLOO, nats a sequence in PPO, OnlineDPO and
    KTO), and `reward_mean`. What is summed over a sequence is divided by the configured length of a response (30 in PPO, 64
    in OnlineDPO, 100 in KTO where that is not known).
    Why it matters: far from the reference the reward no longer measures what it was made for, and the text decays.
    When it fires: "far" is 0.4 of the entropy that the policy began with, from 0.15 to 1 nat a token, 1 where no entropy
    is logged. Of the median of the last three logs: beyond far within the first steps of a run, at more than 0.07 of it a
    step; beyond far and 0.3 for 10 logs while the reward is below its start or has lost half of its gain, critical (where
    none is logged: twice far, a warning); above 0.1 and ten times the level of logs 6 to 25 for 5 logs with such a reward;
    beyond 4 times far and 1 nat for 5 logs, critical. A single log above 1 nat that is 15 times the level and 5
    robust deviations out. Given a `threshold`, only: `kl_mean` above it.
    What to do: raise `beta` (GRPO, RLOO) or `kl_coef` (PPO); lower `learning_rate`; go back to a checkpoint before it.
    False alarms: a level alone says little: healthy GRPO and RLOO runs of tiny models reach 2.5 nats a token within 100
    steps while the reward rises to its best (measured), so a level is judged with the reward or by its speed. `beta=0`
    logs no divergence.
    Sources: Gao et al. 2022 (arXiv 2210.10760) for reward against divergence; open-r1 issue 257, ms-swift issue 6550; a
    public GRPO run on MBPP with jumps from 0.4 to 197. The speed was measured on runs of tiny models: sound ones are far
    at step 30 or later, those with a learning rate ten times too high by step 15.
    """

    code = "kl_divergence"
    title = "KL divergence too high"
    watches = ("kl_mean",)
    only_watched = True
    needs = "a divergence from the reference; GRPO logs none at its default beta=0"
    advice = (
        "Raise beta (GRPO, RLOO, OnlineDPO) or kl_coef (PPO), or lower learning_rate; resume from a checkpoint before "
        "the jump."
    )
    cooldown = 20

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__(threshold=threshold)
        self._tokens: float | None = None
        self._limit = 0.0  # what is far, once the first log has said
        self._surge = Surge()
        self._baseline = Baseline()
        self._reward = Progress()
        self._last = (0.0, 0.0)
        self._count = 0
        self._lost = 0
        self._far = 0
        self._grown = 0
        self._exit: float | None = None  # an open episode ends below this

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Learns the length of a response, for divergences that are summed over it."""
        for name in ("response_length", "max_new_tokens"):
            length = arguments.get(name)
            if isinstance(length, (int, float)) and 1 <= length < 1e9:
                self._tokens = float(length)

    def calibrated(self, event: Event) -> Answer:
        """Takes the median of three logs, and holds it against speed, own level, and the reward."""
        metrics = event.metrics
        raw = metrics.get("kl_mean")
        if raw is None:
            return ABSENT
        if not -_HUGE < raw < _HUGE:
            return WARMING
        reward = metrics.get("reward_mean")
        if reward is not None and -_HUGE < reward < _HUGE:
            self._reward.add(reward)
        if self._limit == 0.0:
            entropy = metrics.get("entropy_mean")
            known = entropy is not None and 0.0 < entropy < _HUGE
            self._limit = min(_FAR_MOST, max(_FAR_LEAST, _ENTROPY_SHARE * entropy)) if known else _FAR_MOST  # type: ignore[operator]
        family = event.model_info.get("trainer")
        if family in _PER_TOKEN:
            value, tokens = raw, 1.0
        else:
            tokens = self._length(family)
            value = raw / tokens
        self._count = count = self._count + 1
        older, old = self._last
        self._last = (old, value)
        if count < 3:
            level = min(old, value) if count == 2 else 0.0
        elif older > old:
            level = old if old > value else value if value < older else older
        else:
            level = older if older > value else value if value < old else old
        found = self._spike(value, count, family)
        if level > _PRESENT:
            state = self._judge_level(level, event.step)
            if state is not None:
                text, severity, limit = state
                message = f"kl_mean is {number(raw)}{self._unit(family, tokens)}: {text}."
                evidence = {"level_nats_per_token": level, "baseline": self._baseline.value}
                return Finding("kl_mean", raw, limit * tokens, message, severity, evidence)
        else:
            self._lost = self._far = self._grown = 0
            self._exit = None
        if found is not None:
            message = f"kl_mean jumps to {number(raw)}{self._unit(family, tokens)}, from {number(found * tokens)}."
            return Finding("kl_mean", raw, max(1.0, 15 * found) * tokens, message, Severity.WARNING, {"before": found * tokens})
        return FINE if count > 2 else WARMING

    def _length(self, family: Any) -> float:
        if self._tokens is not None and family != "kto":
            return self._tokens
        return _TOKENS.get(family, _UNKNOWN_TOKENS)

    @staticmethod
    def _unit(family: Any, tokens: float) -> str:
        if tokens == 1.0:
            return " nats a token"
        return f" nats a sequence of up to {tokens:g} tokens" if family in _TOKENS else ""

    def _spike(self, value: float, count: int, family: Any) -> float | None:
        """The level before, if this value jumps out of it."""
        surge = self._surge
        # A divergence starts at zero, and k1 estimates pass below it: the floor keeps logarithms of noise out.
        logarithm = math.log(value) if value > 1e-3 else -6.9
        before = surge.centre
        jumps = (
            value > 1.0
            and count > 15
            and family != "kto"  # clamped at zero, so that it jumps by nature
            and logarithm - before > 2.708  # 15 times
            and logarithm - before > 5.0 * surge.spread
        )
        surge.add(logarithm)
        self._baseline.add(value)
        return math.exp(before) if jumps else None

    def _judge_level(self, level: float, step: int) -> tuple[str, Severity, float] | None:
        far = self._limit
        lost = max(1.0, 4.0 * far)
        reward = self._reward
        known = reward.count >= 5
        self._lost = self._lost + 1 if level > lost else 0
        self._far = self._far + 1 if level > (max(0.3, far) if known else 2.0 * far) else 0
        baseline = self._baseline.value
        own = 10.0 * max(baseline, 0.01) if baseline is not None else math.inf
        self._grown = self._grown + 1 if level > own and (known or level > 0.5) else 0
        if self._lost >= 5:
            self._exit = 0.7 * lost
            return f"the median of three logs is above {number(lost)} nats a token, {self._lost} times in a row", Severity.CRITICAL, lost
        if self._exit is None and far < level > far * _A_STEP * step and step <= _START:
            self._exit = 0.7 * far
            return f"{number(level)} nats a token after {step} steps, too fast for a sound start", Severity.WARNING, far
        worse = known and (reward.start - reward.fast > 2.0 * reward.noise or (reward.risen and reward.fallen(0.5)))
        if (self._far >= 10 or self._grown >= 5) and (worse or not known):
            without = " while the reward falls" if known else ""
            if self._far >= 10:
                self._exit = 0.7 * far
                severity = Severity.CRITICAL if known else Severity.WARNING
                return f"the median of three logs is above {number(far)} nats a token, {self._far} times in a row{without}", severity, far
            self._exit = 0.7 * own
            return f"ten times its early level of {number(baseline)} nats a token{without}", Severity.WARNING, own
        if self._exit is not None:
            if level > self._exit:
                return f"still at {number(level)} nats a token", Severity.WARNING, self._exit
            self._exit = None
        return None

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Without a known trainer a divergence is taken to be summed over 30 tokens."""
        wave = [0.9, 1.1, 1.0, 1.2, 0.8]
        slow = [{"kl_mean": 0.3 * step * wave[step % 5], "reward_mean": 0.01 * step} for step in range(150)]
        yield Example("grows while the reward rises", slow, [])
        yield Example("stays at a high level of its own", [{"kl_mean": 11.0 * wave[step % 5]} for step in range(200)], [])
        yield Example("too fast a start", [{"kl_mean": 6.0 * step, "reward_mean": 0.05 * step} for step in range(30)], [8])
        flat = [{"kl_mean": 2.0 * wave[step % 5], "reward_mean": wave[step % 5]} for step in range(60)]
        away = [{"kl_mean": min(45.0, 2.0 + 5.0 * step) * wave[step % 5], "reward_mean": wave[step % 5]} for step in range(60)]
        yield Example("away without a gain", flat + away, [67])
        jump = [{"kl_mean": 190.0, "reward_mean": 1.0}]
        yield Example("a jump of one log", flat + jump + flat, [61])
