"""What goes wrong around the training: memory, pace, and a step that does not end. On SFT, since it is cheap."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from tests import zoo

from ._base import Run, Scenario
from ._supervised import Batches, Language, fit

__all__ = ["SCENARIOS"]

_ONSET = 100
_AHEAD = 1  # the loader collates the batch of the next step before this step begins
_STEPS = {1: 320, 5: 320}  # about 15 s, so that what samples once a second has something to see
_PACE = 0.030  # seconds that a batch takes to be made: an even pace, which bare steps of some ms do not have
_SLOW_PACE = 0.120
_KEPT_BYTES = 3_000_000
_STALL = 4.0


class _Padding:
    """Collates whole texts, as TRL's own collator does; here, so that it can be wrapped on every version."""

    def __init__(self) -> None:
        self.text = zoo.tokenizer()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pads the rows; padding is no label."""
        batch = self.text.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


class _Stall(TrainerCallback):
    """Waits once, long, as a callback does that writes to a disk or a server which does not answer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the step after the onset."""
        if state.global_step == _ONSET + 1:
            time.sleep(_STALL)


def _paced(run: Run, *, slow_from: int | None = None, keep: bool = False, **config: Any) -> Any:
    kept = []

    def change(step: int, batch: Any) -> None:
        slow = slow_from is not None and step > slow_from + _AHEAD
        time.sleep(_SLOW_PACE if slow else _PACE)
        if keep:
            kept.append(torch.ones(_KEPT_BYTES // 4))  # written to: memory that is only reserved is not resident

    return fit(
        "sft",
        run,
        learning_rate=1e-2,
        train_dataset=Language(run.seed).text(4 * run.steps),
        data_collator=Batches(_Padding(), change),
        **config,
    )


def _memory_growth(run: Run) -> Any:
    return _paced(run, keep=True)


def _throughput_loss(run: Run) -> Any:
    return _paced(run, slow_from=_ONSET)


def _stall(run: Run) -> Any:
    return _paced(run, injuries=[_Stall()])


# The defaults wait for a minute and five; these runs last a quarter of one.
_IMPATIENT = {"stall": {"floor": 1.0}, "throughput": {"seconds": 5.0}}

SCENARIOS = [
    Scenario(
        "sft_paced_healthy", "sft", "An even pace that the loader of batches sets.", _paced, _STEPS, thresholds=_IMPATIENT
    ),
    Scenario(
        "sft_memory_growth", "sft", "A collator keeps a tensor of 3 MB for each batch.", _memory_growth, _STEPS,
        frozenset({"memory_usage"}), "sft_paced_healthy",
    ),
    Scenario(
        "sft_throughput_loss", "sft", "From a third of the run on, steps take three times as long.", _throughput_loss,
        {1: 240, 5: 240}, frozenset({"throughput"}), "sft_paced_healthy", _ONSET, thresholds=_IMPATIENT,
    ),
    Scenario(
        "sft_stall", "sft", "One step takes four seconds, where others take a twentieth of one.", _stall,
        # What is said while it lasts is said at the step before.
        {1: 160, 5: 160}, frozenset({"stall"}), "sft_paced_healthy", _ONSET - 1, thresholds=_IMPATIENT,
    ),
]
