"""The same inside a real training loop, where every cache is cold by the time a hook is called.

In each step one of the three is called, in turns, and the time inside its hooks is measured. So each meets the caches
as the training step left them, and steps per second, which vary more than rldk costs, are not needed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig

from rldk import EventWriterCallback, RLDKCallback

from ._fixtures import floor_1, logs_of_grpo
from ._measure import percentile
from ._rows import Row

__all__ = ["rows"]

_WARM_UP = 30


class _Floor(TrainerCallback):
    """Floor 1 as a callback."""

    def __init__(self, path: Path, events: list[dict[str, Any]]) -> None:
        self._write = floor_1(path, events)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write()


class _Turns(TrainerCallback):
    """Passes each step's hooks on to one of several callbacks, and notes how long it took."""

    def __init__(self, subjects: dict[str, TrainerCallback]) -> None:
        self._subjects = list(subjects.values())
        self.times: list[list[float]] = [[] for _ in subjects]
        self._turn, self._spent = 0, 0.0

    def _timed(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        hook(*args, **kwargs)
        self._spent += time.perf_counter() - began

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        for subject in self._subjects:
            subject.on_train_begin(*args, **kwargs)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._turn, self._spent = (self._turn + 1) % len(self._subjects), 0.0
        self._timed(self._subjects[self._turn].on_step_begin, *args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._timed(self._subjects[self._turn].on_step_end, *args, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "train_runtime" in kwargs["logs"]:
            return  # the summary at the end is no step
        self._timed(self._subjects[self._turn].on_log, args, state, control, **kwargs)
        self.times[self._turn].append(self._spent)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        for subject in self._subjects:
            subject.on_train_end(*args, **kwargs)


class _Trainer(Trainer):
    """Adds its own metrics to each log, as TRL's trainers do, so that an event has 25."""

    more: list[dict[str, float]] = []

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        more = self.more[self.state.global_step % len(self.more)] if "loss" in logs else {}
        super().log({**more, **logs}, *args, **kwargs)


def _train(folder: Path, steps: int, subjects: dict[str, TrainerCallback]) -> dict[str, list[float]]:
    """Trains a small model and returns the seconds a step that each subject took."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 400, (64, 32))]
    args = GRPOConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, num_generations=2, report_to="none", logging_steps=1,
        max_steps=steps, per_device_train_batch_size=8, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False,
    )
    turns = _Turns(subjects)
    trainer = _Trainer(model=model, args=args, train_dataset=rows, callbacks=[turns])
    trainer.remove_callback(PrinterCallback)
    trainer.more = logs_of_grpo()
    trainer.train()
    return {name: times[_WARM_UP // len(subjects):] for name, times in zip(subjects, turns.times)}


def rows(quick: bool) -> Iterator[Row]:
    """Time inside the hooks of a step, by callback, and how far the slow steps are from the usual one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = folder / "sample_events.jsonl"
        _train(folder, 64, {"light": EventWriterCallback(sample)})
        events = [orjson.loads(line) for line in sample.read_bytes().splitlines()]
        times = _train(folder, 240 if quick else 2400, {
            "floor": _Floor(folder / "floor.jsonl", events),
            "light": EventWriterCallback(folder / "light_events.jsonl"),
            "full": RLDKCallback(folder / "full"),
        })
    medians = {subject: statistics.median(values) for subject, values in times.items()}
    tails = {subject: percentile(values, 0.99) for subject, values in times.items()}
    floor = medians["floor"]
    for subject, name in (("light", "EventWriterCallback"), ("full", "RLDKCallback")):
        measured = f"{medians[subject] * 1e6:.0f} us, floor 1 {floor * 1e6:.0f} us"
        yield Row(f"{name}, in a Trainer step", measured, medians[subject] / floor, "x floor 1", 3.0, 1.5)
    measured = f"{tails['full'] * 1e6:.0f} us, floor 1 {tails['floor'] * 1e6:.0f} us"
    yield Row("RLDKCallback, in a Trainer step, p99", measured, tails["full"] / medians["full"], "x median", None, 3.0)
