"""Healthy GRPO, RLOO and PPO runs that look as if something were wrong with them."""

from __future__ import annotations

import random
from typing import Any

from ._base import Run, Scenario
from ._writer import HAPPY, Clock, happy, happy_share, is_tidy, tidy, train_groups
from .ppo import Rule, train_ppo

_FALLING_RATE = {"lr_scheduler_type": "linear", "warmup_steps": 20}
_HALF = 250  # of the steps of the curriculum


def _noisy(run: Run, family: str) -> None:
    draw = random.Random(run.seed)

    def score(completions: list[str], **_: Any) -> list[float]:
        # As by a small judge that is asked once: two such scores of one text differ by a third.
        return [happy_share(text) + draw.gauss(0, 0.25) for text in completions]

    train_groups(
        run, score, family=family, num_generations=4, per_device_train_batch_size=8, learning_rate=2e-4, **_FALLING_RATE
    )


def _grpo_long_noisy(run: Run) -> None:
    _noisy(run, "grpo")


def _rloo_long_noisy(run: Run) -> None:
    _noisy(run, "rloo")


def _sparse(run: Run) -> None:
    def solved(completions: list[str], **_: Any) -> list[float]:
        return [float(is_tidy(text) and text.startswith("joy")) for text in completions]

    # Few of the first samples score: of the groups of eight, about two in five have no winner.
    train_groups(run, solved, learning_rate=1.5e-4, beta=0.1, **_FALLING_RATE)


def _solved(run: Run) -> None:
    train_groups(run, happy, learning_rate=3e-4)


def enough(completions: list[str], **_: Any) -> list[float]:
    """Rewards happy words, three at most and in the right form: a better answer is a longer one."""
    return [is_tidy(text) * sum(word in HAPPY for word in text[:-1].split()) / 3 for text in completions]


def _lengths_grow(run: Run) -> None:
    # `tidy` and `happy` have no weight: they only show that the longer texts are better ones.
    train_groups(run, [enough, tidy, happy], reward_weights=[1.0, 0.0, 0.0], learning_rate=2e-4, **_FALLING_RATE)


def _curriculum(run: Run) -> None:
    clock = Clock()

    def graded(completions: list[str], **_: Any) -> list[float]:
        # In the second half, a text of one word loses a fifth of a point.
        toll = 0.2 if clock.step >= _HALF else 0.0
        return [happy_share(text) - toll * (" " not in text.strip()) for text in completions]

    train_groups(run, graded, callbacks=(clock,), learning_rate=2e-4)


def _two_iterations(run: Run) -> None:
    train_groups(run, happy, num_iterations=2, epsilon=0.02, learning_rate=4e-4, **_FALLING_RATE)


def _no_reference(run: Run) -> None:
    train_groups(run, happy, beta=0.0, learning_rate=1.5e-4, **_FALLING_RATE)


def _sequence_level(run: Run) -> None:
    # Ratios of whole texts move less than those of tokens: GSPO clips them at a thousandth, and more of them.
    train_groups(
        run, happy, importance_sampling_level="sequence", num_iterations=2, epsilon=4e-3, learning_rate=2e-4,
        **_FALLING_RATE,
    )  # fmt: skip


def _evaluations(run: Run) -> None:
    train_groups(run, happy, learning_rate=2e-4, eval_strategy="steps", eval_steps=25, per_device_eval_batch_size=16)


def _resumed(run: Run) -> None:
    first = Run(run.output_dir, run.seed, run.logging_steps, 100)
    schedule = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 100, "learning_rate": 2e-4}
    train_groups(first, happy, **schedule)
    train_groups(run, happy, resume_from_checkpoint=str(run.output_dir / "checkpoint-100"), **schedule)


def _ppo_long(run: Run) -> None:
    train_ppo(run, reward_model=Rule(scale=1.0), learning_rate=5e-5, lr_scheduler_type="linear")


def _ppo_mini_batches(run: Run) -> None:
    # TRL then averages over slots that stay zero: `val/ratio` reads 0.5.
    train_ppo(run, learning_rate=5e-5, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_mini_batches=2)


def _scenario(name: str, train: Any, about: str, steps: int, trainer: str = "grpo") -> Scenario:
    return Scenario(name, trainer, about, train, {1: steps, 5: steps})


SCENARIOS = [
    _scenario("grpo_long_noisy", _grpo_long_noisy, "Two groups of four a step, scored by a noisy judge.", 600),
    _scenario("rloo_long_noisy", _rloo_long_noisy, "Two groups of four a step, scored by a noisy judge.", 600, "rloo"),
    _scenario("grpo_sparse", _sparse, "Two groups in five have no winner at first; then the task is learned.", 500),
    _scenario("grpo_solved", _solved, "Learns its task to the last: groups are alike because all are right.", 400),
    _scenario("grpo_lengths_grow", _lengths_grow, "Better answers are longer; two unweighted scores agree.", 500),
    _scenario("grpo_curriculum", _curriculum, "Gets harder in mid-run: the reward falls a little and recovers.", 500),
    _scenario("grpo_two_iterations", _two_iterations, "Uses each batch twice, with a little clipping.", 500),
    _scenario("grpo_no_reference", _no_reference, "Beta is 0: no KL divergence is logged.", 400),
    _scenario("grpo_sequence_level", _sequence_level, "Clips ratios of whole sequences, by design often.", 400),
    _scenario("grpo_evaluations", _evaluations, "Evaluates every 25 steps.", 300),
    _scenario("grpo_resumed", _resumed, "Resumed from step 100; only the second part is recorded.", 400),
    _scenario("ppo_long", _ppo_long, "300 updates with a falling learning rate.", 300, "ppo"),
    _scenario("ppo_mini_batches", _ppo_mini_batches, "Statistics of which TRL leaves half at zero.", 150, "ppo"),
]
