"""What the benchmarks record: GRPO's own keys, real arguments, a real state, and the floor beneath it all."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson

__all__ = ["ARMED", "Hooks", "event_line", "floor_1", "logs_of_grpo"]

# What GRPOTrainer of TRL 1.16 logs with one reward function: 25 metrics.
_KEYS = (
    "loss", "grad_norm", "learning_rate", "num_tokens", "completions/mean_length", "completions/min_length",
    "completions/max_length", "completions/clipped_ratio", "completions/mean_terminated_length",
    "completions/min_terminated_length", "completions/max_terminated_length", "rewards/length/mean",
    "rewards/length/std", "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio/low_mean",
    "clip_ratio/low_min", "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean", "step_time", "epoch",
)
# All four that wait for a number, at numbers that healthy values stay below.
ARMED = {"kl_divergence": 1.0, "clip_fraction": 1.0, "gradient_norm": 1.0, "memory_usage": 1.0}


def logs_of_grpo(count: int = 64, seed: int = 0) -> list[dict[str, float]]:
    """Log calls of a healthy run."""
    rng = random.Random(seed)
    return [{key: rng.random() for key in _KEYS} | {"num_tokens": 1000.0 * (row + 1)} for row in range(count)]


def floor_1(path: Path, events: list[dict[str, Any]]) -> Callable[[], object]:
    """Floor 1: an event that is already there, serialised and written by one call of the system."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    source = cycle(events)

    def call() -> None:
        os.write(file, orjson.dumps(next(source)) + b"\n")

    return call


def event_line(path: Path) -> dict[str, Any]:
    """The last event of a stream, as the dictionary that it is."""
    return orjson.loads(path.read_bytes().splitlines()[-1])


class Hooks:
    """A callback driven as a trainer drives it, with real arguments, state and control.

    Args:
        callback: The callback.
        folder: The trainer's output folder.
        whole_step: Whether a step is all its hooks, or `on_log` alone.
    """

    def __init__(self, callback: Any, folder: Path, *, whole_step: bool) -> None:
        from transformers import TrainerControl, TrainerState
        from trl import GRPOConfig

        self.callback = callback
        self.args = GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, num_generations=2, report_to="none", logging_steps=1
        )
        self.state = TrainerState(max_steps=10**9)
        self.control = TrainerControl()
        self.logs = logs_of_grpo()
        self._source = cycle(self.logs)
        self.step = self._whole_step if whole_step else self._log
        callback.on_train_begin(self.args, self.state, self.control)

    def _log(self) -> None:
        self.state.global_step += 1
        self.callback.on_log(self.args, self.state, self.control, logs=next(self._source))

    def _whole_step(self) -> None:
        callback, args, state, control = self.callback, self.args, self.state, self.control
        callback.on_step_begin(args, state, control)
        state.global_step += 1
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs=next(self._source))

    def end(self) -> None:
        """Ends the run as a trainer does that has come to its last step."""
        self.state.max_steps = self.state.global_step
        self.callback.on_train_end(self.args, self.state, self.control)
