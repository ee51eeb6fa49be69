"""One trainer in a process of its own, which trains an update whenever it is told to: `python -m benchmarks.ppo.contestant`.

It answers on standard output, a line of JSON each time: first the memory that it had before there was a model, then the
seconds of each update, and at the end its peak. The first update, which warms up, is made unasked.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from transformers import TrainerCallback

from .._measure import peak_memory, resident_memory
from .contest import SIZES, sized, steps_of_an_update, trainer

__all__ = ["main"]


class _Turns(TrainerCallback):
    """Waits for a line on standard input before each update; ends the run if there is none."""

    def __init__(self, answers: Any, steps: int) -> None:
        self._answers, self._steps = answers, steps
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._steps:
            return
        _say(self._answers, {"seconds": time.perf_counter() - self._began})
        if not sys.stdin.readline().strip():
            _say(self._answers, {"peak": peak_memory()})
            os._exit(0)
        self._began = time.perf_counter()


def _say(answers: Any, answer: dict[str, float]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main(kind: str, size: str) -> None:
    """Trains one of `contest.KINDS` on one of `contest.SIZES` for as long as it is told to."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TRL prints is no answer
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # TRL collects garbage several times an update: not all of torch with it
    before = resident_memory()
    parts, settings = sized(SIZES[size])
    with tempfile.TemporaryDirectory() as folder:
        one = trainer(kind, folder, parts, settings, updates=10_000)
        del parts
        one.add_callback(_Turns(answers, steps_of_an_update(one)))
        _say(answers, {"before": before})
        one.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
