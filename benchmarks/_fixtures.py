"""What the benchmarks record: GRPO's own keys, real arguments, a real state, and the floor beneath it all."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Hooks", "event_line", "floor_1", "logs_of_grpo"]

# What GRPOTrainer of TRL 1.16 logs with one reward function, 25 metrics: what each is about in a healthy run.
_LEVELS = {
    "loss": 0.02, "grad_norm": 0.6, "learning_rate": 1e-6, "num_tokens": 0.0, "completions/mean_length": 120.0,
    "completions/min_length": 20.0, "completions/max_length": 250.0, "completions/clipped_ratio": 0.03,
    "completions/mean_terminated_length": 118.0, "completions/min_terminated_length": 20.0,
    "completions/max_terminated_length": 240.0, "rewards/length/mean": 0.5, "rewards/length/std": 0.2, "reward": 0.5,
    "reward_std": 0.2, "frac_reward_zero_std": 0.1, "kl": 0.01, "entropy": 0.4, "clip_ratio/low_mean": 0.002,
    "clip_ratio/low_min": 0.0, "clip_ratio/high_mean": 0.003, "clip_ratio/high_max": 0.01,
    "clip_ratio/region_mean": 0.005, "step_time": 1.0, "epoch": 0.5,
}  # fmt: skip

def logs_of_grpo(count: int = 64, seed: int = 0) -> list[dict[str, float]]:
    """Log calls of a healthy run: each value within a fifth of its level."""
    rng = random.Random(seed)
    return [
        {key: level * rng.uniform(0.8, 1.2) for key, level in _LEVELS.items()} | {"num_tokens": 1000.0 * (row + 1)}
        for row in range(count)
    ]


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
