"""GRPO: groups without a signal, policies that run away, rewards that are gamed."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch

from tests import zoo

from ._base import Run, Scenario
from ._writer import HAPPY, At, Clock, happy, happy_share, is_tidy, tidy, train_groups, writer

# The step after which a fault acts that sets in. 12 rows have been logged by then at logging_steps=5.
ONSET = 60
STEPS = {1: 70, 5: 150}
_SETS_IN = {1: 110, 5: 220}
LONG = {1: 160, 5: 320}


# ------------------------------------------------------------------------------------------------- healthy


def _healthy(run: Run) -> None:
    train_groups(run, happy)


def _two_rewards_healthy(run: Run) -> None:
    train_groups(run, [happy, tidy])


def _on_random(run: Run, **config: Any) -> None:
    # The writer is sure of most letters, which then cannot be clipped; a random policy is sure of none.
    model = zoo.causal_lm(run.seed, eos_bias=2.0)
    train_groups(
        run,
        [zoo.length, zoo.vowels],
        model=model,
        **{"num_iterations": 4, "learning_rate": 7e-4, "beta": 0.1, **config},
    )


def _reused_batches_healthy(run: Run) -> None:
    _on_random(run)


# -------------------------------------------------------------------------------------- rewards without signal


def one_for_all(completions: list[str], **_: Any) -> list[float]:
    """A reward function that scores everything alike."""
    return [1.0] * len(completions)


def of_the_prompt(prompts: list[str], **_: Any) -> list[float]:
    """A reward function that scores the prompt where it means the completion.

    Whole numbers, of which a group's mean is exact: what rounding leaves of thirds is scaled up to a small gradient.
    """
    return [float(crc32(prompt.encode()) % 100) for prompt in prompts]


def _constant(run: Run) -> None:
    train_groups(run, one_for_all)


def _group_constant(run: Run) -> None:
    train_groups(run, of_the_prompt, scale_rewards="batch")


def _none(run: Run) -> None:
    clock = Clock()

    def graded(completions: list[str], **_: Any) -> list[float | None]:
        return [None] * len(completions) if clock.step >= ONSET else happy(completions)

    train_groups(run, graded, callbacks=(clock,))


def _zero_temperature(run: Run) -> None:
    train_groups(run, happy, temperature=1e-4)


# ------------------------------------------------------------------------------------------------- length


def _no_eos(run: Run) -> None:
    train_groups(run, happy, model=writer(run.seed, stops=False))


def happy_count(text: str) -> int:
    """The number of happy words in a text, run together or not."""
    return sum(text.count(word) for word in HAPPY)


def _truncation_sets_in(run: Run) -> None:
    clock = Clock()

    def score(completions: list[str], **_: Any) -> list[float]:
        # A reward that is changed in mid-run, from the share of happy words to their number.
        return [float(happy_count(text)) for text in completions] if clock.step >= ONSET else happy(completions)

    train_groups(run, score, callbacks=(clock,))


def characters(completions: list[str], **_: Any) -> list[float]:
    """Rewards length alone."""
    return [len(text) / 10 for text in completions]


def _length_hack(run: Run) -> None:
    train_groups(run, characters, max_completion_length=32)


def shortness(completions: list[str], **_: Any) -> list[float]:
    """Rewards brevity."""
    return [-len(text) / 10 for text in completions]


def _length_collapse(run: Run) -> None:
    train_groups(run, [shortness, tidy], reward_weights=[1.0, 0.0], learning_rate=2e-3)


# ------------------------------------------------------------------------------------------------- policy


def fun_count(completions: list[str], **_: Any) -> list[float]:
    """How often the policy says fun: a proxy of what is wanted, and one that is full at the cap."""
    return [float(text.count("fun")) for text in completions]


def _entropy_collapse(run: Run) -> None:
    train_groups(run, fun_count, learning_rate=1e-3, beta=1e-3)


def letter_u(completions: list[str], **_: Any) -> list[float]:
    """The share of one letter: what pays best is no word."""
    return [text.count("u") / max(1, len(text)) for text in completions]


# The warm-up leaves some rows with the KL divergence that the run would have at a sane rate.
HOT = {"learning_rate": 5e-3, "beta": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 60}


def _kl_explosion(run: Run) -> None:
    train_groups(run, letter_u, **HOT)


def _decay(optimizer: Any, **_: Any) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 60.0


def _entropy_explosion(run: Run) -> None:
    train_groups(run, happy, callbacks=(At(ONSET, _decay),))


def _noise(model: torch.nn.Module, **_: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(0.1 * weight.std() * torch.randn_like(weight))


def _reward_collapse(run: Run) -> None:
    train_groups(run, happy, callbacks=(At(ONSET, _noise, always=True),))


def _clip(run: Run) -> None:
    _on_random(run, learning_rate=1e-2, epsilon=0.05)


def _poison(model: torch.nn.Module, **_: Any) -> None:
    with torch.no_grad():
        next(model.parameters())[5, 3] = float("nan")


# Generation from NaN weights raises, so rows with NaN exist only while a batch is reused: steps 58 to 60 here.
_NAN_AT = 57


def _nan_weight(run: Run) -> None:
    _on_random(run, callbacks=(At(_NAN_AT, _poison),))


# ------------------------------------------------------------------------------------------------- gamed rewards


def happy_and_tidy(completions: list[str], **_: Any) -> list[float]:
    """What is really wanted: happy words in the right form."""
    return [happy_share(text) * is_tidy(text) for text in completions]


def _proxy_hack(run: Run) -> None:
    train_groups(run, [fun_count, happy_and_tidy], reward_weights=[1.0, 0.0])


def in_points(completions: list[str], **_: Any) -> list[float]:
    """A length of twelve characters, on a scale of tens beside rewards between 0 and 1."""
    return [-2.0 * abs(len(text) - 12) for text in completions]


def _dominant(run: Run) -> None:
    train_groups(run, [in_points, happy])


def format_bonus(completions: list[str], **_: Any) -> list[float]:
    """A bonus for a form that no completion ever has."""
    return [float("<answer>" in text) for text in completions]


def _dead(run: Run) -> None:
    train_groups(run, [happy, format_bonus])


def fault(
    name: str, train: Any, about: str, codes: str, twin: str = "grpo_healthy", *, late: bool = False, **more: Any
) -> Scenario:
    """A faulty scenario; `late` for a fault that sets in at `ONSET`."""
    settings = {"steps": _SETS_IN if late else STEPS, "onset": ONSET if late else 0, **more}
    return Scenario(name, name.split("_")[0], about, train, codes=frozenset(codes.split()), twin=twin, **settings)


NO_SIGNAL = "degenerate_groups zero_gradient"
# What a policy that is destroyed shows whichever way it went.
_DESTROYED = "kl_divergence reward_collapse degenerate_groups zero_gradient truncation length_drift"
RUNAWAY = "kl_divergence entropy_collapse truncation length_drift " + NO_SIGNAL

SCENARIOS = [
    Scenario("grpo_healthy", "grpo", "Learns to write happy words.", _healthy, _SETS_IN),
    Scenario("grpo_two_rewards_healthy", "grpo", "Learns happy words and form.", _two_rewards_healthy, STEPS),
    Scenario("grpo_reused_batches_healthy", "grpo", "Uses each batch four times.", _reused_batches_healthy, LONG),
    fault("grpo_constant_reward", _constant, "The reward is 1 for everything.", NO_SIGNAL),
    fault(
        "grpo_group_constant_batch_scale",
        _group_constant,
        "The reward depends on the prompt alone, and batch scaling hides that from frac_reward_zero_std.",
        NO_SIGNAL,
    ),
    fault(
        "grpo_none_reward",
        _none,
        "The reward function returns None from step 60 on.",
        "non_finite reward_components " + NO_SIGNAL,
        late=True,
    ),
    fault("grpo_no_eos", _no_eos, "The policy was never taught to stop.", "truncation"),
    fault(
        "grpo_truncation_sets_in",
        _truncation_sets_in,
        "From step 60 on the reward counts words in place of their share: texts grow to the cap.",
        "truncation length_drift",
        late=True,
        held_out=True,
    ),
    fault(
        "grpo_entropy_collapse",
        _entropy_collapse,
        "The policy comes to say one word and nothing else, until every sample is the same.",
        "entropy_collapse kl_divergence truncation length_drift " + NO_SIGNAL,
        steps=LONG,
    ),
    fault(
        "grpo_entropy_explosion",
        _entropy_explosion,
        "Weight decay, far too strong from step 60 on, makes the policy forget.",
        "entropy_explosion " + _DESTROYED,
        late=True,
        held_out=True,
    ),
    fault(
        "grpo_kl_explosion",
        _kl_explosion,
        "A hot policy, hardly held back, learns to write no words.",
        RUNAWAY,
        steps=LONG,
    ),
    fault(
        "grpo_reward_collapse",
        _reward_collapse,
        "From step 60 on, every step adds noise to the weights of a policy that had learned its task.",
        "entropy_explosion " + _DESTROYED,
        late=True,
    ),
    fault("grpo_length_hack", _length_hack, "The reward is the length.", "length_drift truncation"),
    fault(
        "grpo_proxy_hack",
        _proxy_hack,
        "The reward counts one word; an unweighted score of what is wanted falls as that count rises.",
        "reward_divergence length_drift truncation",
        "grpo_two_rewards_healthy",
    ),
    fault(
        "grpo_dominant_component",
        _dominant,
        "One of two rewards is on a scale of tens and drowns the other.",
        "reward_components length_drift",
        "grpo_two_rewards_healthy",
        held_out=True,
    ),
    fault(
        "grpo_dead_component",
        _dead,
        "One of two rewards is 0 for ever.",
        "reward_components",
        "grpo_two_rewards_healthy",
    ),
    fault(
        "grpo_clip",
        _clip,
        "Each batch is used four times at far too high a rate with a narrow clip range.",
        "clip_fraction ratio_blowup kl_divergence",
        "grpo_reused_batches_healthy",
    ),
    fault(
        "grpo_zero_temperature_like",
        _zero_temperature,
        "At a temperature of 1e-4 all completions of a group are the same.",
        "gradient_arguments " + NO_SIGNAL,
        held_out=True,
    ),
    fault(
        "grpo_nan_weight",
        _nan_weight,
        "A weight becomes NaN; three steps later, generation from it ends the run.",
        "non_finite zero_loss",
        "grpo_reused_batches_healthy",
        onset=_NAN_AT,
    ),
    fault(
        "grpo_length_collapse",
        _length_collapse,
        "The reward is brevity: texts shrink to nothing while an unweighted score of their form falls.",
        "length_drift reward_divergence",
        "grpo_two_rewards_healthy",
        held_out=True,
    ),
]
