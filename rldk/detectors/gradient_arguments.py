"""Arguments with which no gradient can come."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ._base import ABSENT, FINE, Answer, Detector, Example, Finding

_GREEDY_BELOW = 0.05
_GROUPS = frozenset({"grpo", "rloo"})
_REFERENCE = frozenset({"dpo", "kto"})


class GradientArguments(Detector):
    """The trainer's arguments leave nothing to learn from.

    What it sees: the trainer's arguments, when training begins.
    Why it matters: with greedy sampling all completions of a prompt are the same and get the same reward, so that all
    advantages are 0; the run goes on and looks calm. It can be known before the first step.
    When it fires: GRPO and RLOO: `temperature` below 0.05, `top_k` of 1 or `do_sample=False` in `generation_kwargs`,
    `num_generations` below 2, all `reward_weights` 0, `learning_rate` 0: critical. `epsilon` (and `epsilon_high`) 0
    with `num_iterations` above 1: every change of the policy is clipped: warning. PPO: `learning_rate` 0. DPO and KTO:
    `beta` 0: critical.
    What to do: the message names the argument and its value.
    False alarms: none known: each of them is a number with which there is no signal, whatever the data.
    Sources: TRL's source: the loss and the advantages of the trainers named; a temperature of 0.05 sharpens odds of 2
    to 1 to a million to one.
    """

    code = "gradient_arguments"
    title = "Arguments that leave no gradient"
    watches = ("trainable_frac",)
    needs = "the trainer's arguments: a run recorded by the callback"
    advice = "Set temperature near 1, num_generations to 4 or more, and learning_rate, beta and reward_weights above 0."
    phases = frozenset({"setup"})

    def __init__(self) -> None:
        self._arguments: Mapping[str, Any] = {}

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Keeps the arguments until the set-up is judged."""
        self._arguments = arguments

    def judge(self, event: Event) -> Answer:
        """Judges the arguments as those of the event's trainer."""
        arguments, family = self._arguments, event.model_info.get("trainer")
        share = event.metrics.get("trainable_frac")
        if share is None:
            return ABSENT
        if family is None and "num_generations" in arguments:
            family = "grpo"  # or RLOO, which is judged alike
        blockers = list(_blockers(family, arguments))
        if not blockers:
            return FINE
        first, reason, severity = max(blockers, key=lambda item: item[2].rank)
        others = f" So do: {', '.join(name for name, _, _ in blockers if name != first)}." if len(blockers) > 1 else ""
        message = f"{first} is {arguments.get(first)!r}: {reason}.{others}"
        evidence = {name: arguments.get(name) for name, _, _ in blockers}
        return Finding("grad_norm", None, None, message, severity, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Greedy sampling; a calm but sound choice; no arguments."""
        start = [{"trainable_frac": 1.0}]
        sound = {"temperature": 0.7, "num_generations": 4, "learning_rate": 1e-6, "epsilon": 0.2, "num_iterations": 1, "beta": 0.0}
        yield Example("greedy", start, [1], {**sound, "temperature": 0.001})
        yield Example("one completion a group", start, [1], {**sound, "num_generations": 1})
        yield Example("no weight on any reward", start, [1], {**sound, "reward_weights": [0.0, 0.0]})
        yield Example("sound, with beta 0 and a cautious temperature", start, [], sound)
        yield Example("no arguments known", start, [])


def _blockers(family: str | None, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str, Severity]]:
    """The arguments that leave no gradient: name, why, how bad."""
    critical = Severity.CRITICAL

    def at(name: str) -> float:
        """The number, or NaN, which no comparison below is true of."""
        value = _number(arguments.get(name))
        return math.nan if value is None else value

    if (family in _GROUPS or family == "ppo") and at("learning_rate") == 0.0:
        yield "learning_rate", "no weight will change, whatever grad_norm is", critical
    if family in _GROUPS:
        same = "all completions of a prompt will be the same, and grad_norm 0 or noise"
        if at("temperature") < _GREEDY_BELOW:
            yield "temperature", same, critical
        if at("top_k") == 1:
            yield "top_k", same, critical
        sampling = arguments.get("generation_kwargs")
        if isinstance(sampling, Mapping) and (sampling.get("do_sample") is False or sampling.get("top_k") == 1):
            yield "generation_kwargs", same, critical
        if at("num_generations") < 2:
            yield "num_generations", "a completion alone in its group has no advantage, and grad_norm will be 0", critical
        weights = arguments.get("reward_weights")
        if isinstance(weights, (list, tuple)) and weights and all(_number(item) == 0.0 for item in weights):
            yield "reward_weights", "the reward is 0 for every completion, and grad_norm will be 0", critical
        high = _number(arguments.get("epsilon_high"))
        if at("epsilon") == 0.0 and not high and at("num_iterations") > 1:
            yield "epsilon", "every change of the policy is clipped, and grad_norm falls with each pass", Severity.WARNING
    elif family in _REFERENCE and at("beta") == 0.0:
        losses = arguments.get("loss_type")
        if "sft" not in (losses if isinstance(losses, (list, tuple)) else (losses,)):
            yield "beta", "the loss does not depend on the policy, and grad_norm will be 0", critical


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
