"""RLOO: three of GRPO's faults, in the trainer that reads them from other metrics."""

from __future__ import annotations

from ._base import Run, Scenario
from ._writer import happy, train_groups, writer
from .grpo import HOT, LONG, NO_SIGNAL, RUNAWAY, fault, letter_u, one_for_all


def _healthy(run: Run) -> None:
    train_groups(run, happy, family="rloo")


def _constant(run: Run) -> None:
    train_groups(run, one_for_all, family="rloo")


def _no_eos(run: Run) -> None:
    train_groups(run, happy, family="rloo", model=writer(run.seed, stops=False))


def _kl_explosion(run: Run) -> None:
    train_groups(run, letter_u, family="rloo", **HOT)


SCENARIOS = [
    Scenario("rloo_healthy", "rloo", "Learns to write happy words.", _healthy, LONG),
    fault(
        "rloo_constant_reward",
        _constant,
        "The reward is 1 for everything.",
        NO_SIGNAL,
        "rloo_healthy",
        held_out=True,
    ),
    fault("rloo_no_eos", _no_eos, "The policy was never taught to stop.", "truncation", "rloo_healthy", held_out=True),
    fault(
        "rloo_kl_explosion",
        _kl_explosion,
        "A hot policy, hardly held back, learns to write no words.",
        RUNAWAY,
        "rloo_healthy",
        steps=LONG,
    ),
]
