"""What a scenario is: a real TRL run on a tiny model, with a fault in it or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["Run", "Scenario"]


@dataclass(frozen=True)
class Run:
    """One recording of a scenario.

    Attributes:
        output_dir: An empty folder for the trainer's files.
        seed: Seed of the weights, the data and the training: another seed is another run in everything but its nature.
        logging_steps: As of the trainer's arguments; 1 or 5 (PPO logs every update whatever it is).
        steps: Steps to train.
        callbacks: The recorder's callbacks, to be given to the trainer.
    """

    output_dir: Path
    seed: int
    logging_steps: int
    steps: int
    callbacks: tuple[TrainerCallback, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A kind of run.

    Attributes:
        name: Lower case with underscores, the trainer's family first: `sft_nan_weight`.
        trainer: The family, as `tests.zoo` and rldk's vocabulary name it.
        about: One sentence: what is wrong in it, or what makes a healthy run of this kind hard to judge.
        train: Builds the real trainer and trains it; returns when training ends. An exception that the fault itself
            causes (generation from NaN weights) ends the run as it would in life.
        steps: Steps to train, by `logging_steps`.
        codes: Codes of detectors that name the fault rightly; empty for a healthy run.
        twin: The healthy scenario that differs from this one by the fault alone; empty for healthy ones.
        onset: The step after which the fault acts; alarms up to it are false. 0 for a fault that is there from the start.
        held_out: Whether the fault was never looked at while rules were tuned.
        thresholds: Given to rldk (`alert_thresholds`) because a benchmark cannot wait as long as the default does; said
            in the report.
    """

    name: str
    trainer: str
    about: str
    train: Callable[[Run], Any]
    steps: dict[int, int]
    codes: frozenset[str] = frozenset()
    twin: str = ""
    onset: int = 0
    held_out: bool = False
    thresholds: dict[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong in it."""
        return not self.codes
