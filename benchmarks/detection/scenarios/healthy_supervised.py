"""Healthy runs that are hard to judge: noisy, converged, bumpy by design, or run in two halves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import datasets
from transformers import TrainerCallback

from ._base import Run, Scenario
from ._supervised import Language, fit, pretrained

__all__ = ["SCENARIOS"]

_RATE = 5e-3


def _sft(run: Run, *, words: int = 8, batch: int = 4, rows: int | None = None, **config: Any) -> Any:
    settings = {"learning_rate": _RATE, "per_device_train_batch_size": batch, **config}
    settings.setdefault("train_dataset", Language(run.seed, words).text(rows or run.steps * batch))
    return fit("sft", run, **settings)


def _batch_one(run: Run) -> Any:
    return _sft(run, batch=1, learning_rate=3e-3)


def _large_batch(run: Run) -> Any:
    return _sft(run, batch=32, rows=32 * 200)


def _floor(run: Run) -> Any:
    """A small language, all of it learnt in the first fifth of the run; the rest goes on at the floor."""
    return _sft(run, words=3, rows=400, lr_scheduler_type="constant_with_warmup", learning_rate=3e-3)


def _evaluated(run: Run) -> Any:
    evaluation = Language(run.seed, 8).text(24, "eval")
    return _sft(run, eval_dataset=evaluation, eval_strategy="steps", eval_steps=10)


def _curriculum(run: Run) -> Any:
    """Of eight rows one may have a rare word, from the middle on every one may: streamed, so that the order holds."""
    count = run.steps * 8
    easy, hard = (Language(run.seed, words).text(count)["text"] for words in (5, 8))
    rows = [(hard if index % 8 == 0 or index >= count // 2 else easy)[index] for index in range(count)]
    stream = datasets.Dataset.from_dict({"text": rows}).to_iterable_dataset()
    return _sft(run, batch=8, train_dataset=stream, lr_scheduler_type="constant_with_warmup")


def _constant_rate(run: Run) -> Any:
    return _sft(run, lr_scheduler_type="constant", warmup_steps=0, learning_rate=3e-3)


def _restarts(run: Run) -> Any:
    return _sft(run, lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 4})


class _Interrupt(TrainerCallback):
    """Saves and stops, as a job does whose time is up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the first half."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def _resumed(run: Run) -> Any:
    """Both halves go to the same callbacks, in one process; a recorder may take them for one run or for two."""
    half = run.steps // 2
    _sft(run, injuries=[_Interrupt(half)])
    return _sft(run, resume=str(run.output_dir / f"checkpoint-{half}"))


def _lora(run: Run) -> Any:
    """A trained base learns another language through an adapter."""
    from peft import LoraConfig

    model = pretrained(run.seed, Language(run.seed + 1000, 8).text(400)["text"])
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return _sft(run, model=model, peft_config=adapter)


def _dpo(run: Run, *, batch: int, **config: Any) -> Any:
    pairs = Language(run.seed, 8).pairs(run.steps * batch, flipped=0.1)
    return fit("dpo", run, train_dataset=pairs, per_device_train_batch_size=batch, **config)


def _dpo_long(run: Run) -> Any:
    return _dpo(run, batch=8, beta=0.1, learning_rate=3e-5)


def _dpo_small_batch(run: Run) -> Any:
    return _dpo(run, batch=2, learning_rate=3e-5)


def _kto_long(run: Run) -> Any:
    rows = Language(run.seed, 8).labelled(run.steps * 4)
    return fit("kto", run, train_dataset=rows, per_device_train_batch_size=4, learning_rate=3e-4)


def _reward_noisy(run: Run) -> Any:
    pairs = Language(run.seed, 8).pairs(run.steps * 8, flipped=0.15, prompts=False)
    return fit("reward", run, train_dataset=pairs, per_device_train_batch_size=8, learning_rate=2e-4)


def _scenario(name: str, about: str, train: Callable[[Run], Any], every_step: int, every_fifth: int) -> Scenario:
    steps = {every: count for every, count in ((1, every_step), (5, every_fifth)) if count}
    return Scenario(f"{name}_healthy", name.partition("_")[0], about, train, steps)


SCENARIOS = [
    _scenario("sft_batch_one", "One row a step for 2,000 steps: the loss jumps about.", _batch_one, 2000, 2500),
    _scenario("sft_large_batch", "Batches of 32: the loss hardly varies, so that small things stand out.", _large_batch, 800, 1000),
    _scenario("sft_floor", "Converges early and goes on at the floor of its loss.", _floor, 1500, 2500),
    _scenario("sft_many_evals", "Evaluated every ten steps.", _evaluated, 1000, 1500),
    _scenario("sft_curriculum", "Harder rows from the middle on: the loss rises, as it should.", _curriculum, 1200, 2000),
    _scenario("sft_constant_rate", "A constant learning rate, no warm-up.", _constant_rate, 1500, 2000),
    _scenario("sft_restarts", "The learning rate falls to 0 and starts again, four times.", _restarts, 1500, 2000),
    _scenario("sft_resumed", "Interrupted at half and resumed from its checkpoint.", _resumed, 1200, 2000),
    _scenario("dpo_long", "A small learning rate, beta 0.1, a tenth of the pairs mislabelled.", _dpo_long, 1000, 1000),
    _scenario("dpo_small_batch", "Two pairs a step: accuracies of 0, 0.5 and 1.", _dpo_small_batch, 1500, 1500),
    _scenario("kto_long", "As many desirable as undesirable rows, four a step.", _kto_long, 1200, 1200),
    _scenario("reward_noisy", "Eight pairs a step, 15 % of them mislabelled.", _reward_noisy, 2000, 2500),
]
if importlib.util.find_spec("peft"):
    SCENARIOS.append(_scenario("sft_lora", "A LoRA adapter on a trained base, in fp32.", _lora, 1500, 2000))
