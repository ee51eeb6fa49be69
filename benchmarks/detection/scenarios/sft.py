"""SFT: faults that people really have, and the runs that they would have been without them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import datasets
import torch

from tests import zoo

from ._base import Run, Scenario
from ._supervised import At, Batches, Language, add_noise, fit, optimizer_with, poison

__all__ = ["SCENARIOS"]

_RATE = 1e-2
_ONSET = 100  # 20 logs at every fifth step: what is learnt before the fault is enough to miss it
_DEAD_FROM = 50
_STEPS = {1: 160, 5: 300}
_ROWS = 1200  # no row is seen twice
_GARBAGE_STEPS = 5  # one whole window of logging_steps=5, which would else be diluted


def _sft(run: Run, **config: Any) -> Any:
    """The healthy run, or one with something in it replaced."""
    language = Language(run.seed)
    settings = {
        "learning_rate": _RATE,
        "eval_strategy": "steps",
        "eval_steps": 25,
        "train_dataset": language.text(_ROWS),
        "eval_dataset": language.text(16, "eval"),
        **config,
    }
    return fit("sft", run, **settings)


def _nan_weight(run: Run) -> Any:
    return _sft(run, injuries=[At(_ONSET, poison)])


def _hot_lr(run: Run) -> Any:
    return _sft(run, learning_rate=300 * _RATE)


def _cosine(steps: int) -> Callable[[int], float]:
    """The healthy run's schedule: ten steps of warm-up, then down to 0 and there to stay."""
    return lambda step: min(1.0, step / 10) * (1 + math.cos(math.pi * min(1.0, max(0, step - 10) / (steps - 10)))) / 2


def _scheduled(run: Run, factor: Callable[[int], float]) -> Any:
    model = zoo.causal_lm(run.seed)
    return _sft(run, model=model, optimizers=optimizer_with(model.parameters(), _RATE, factor))


def _lr_zero(run: Run) -> Any:
    return _scheduled(run, lambda step: 0.0)


def _lr_dies(run: Run) -> Any:
    """The schedule was made for a third of the steps, as where the steps of one process are taken for those of all."""
    return _scheduled(run, _cosine(_DEAD_FROM))


def _warmup_too_long(run: Run) -> Any:
    return _sft(run, warmup_steps=10 * run.steps)


def _frozen(run: Run) -> Any:
    model = zoo.causal_lm(run.seed)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    return _sft(run, model=model)


def _stale_optimizer(run: Run) -> Any:
    """The optimizer was built before the model was made anew: it steps tensors that nobody uses."""
    model = zoo.causal_lm(run.seed)
    before = copy.deepcopy(model)
    return _sft(run, model=model, optimizers=optimizer_with(before.parameters(), _RATE, _cosine(run.steps)))


def _overfit(run: Run) -> Any:
    """Four rows, and the other rows of the language to be judged by."""
    language = Language(run.seed)
    return _sft(run, train_dataset=language.text(4), eval_dataset=language.text(32, "eval"), eval_steps=10)


def _tokenized(run: Run, *, ends: bool) -> Any:
    """Rows that were tokenized by the user: TRL adds the end of the text only to those that it tokenizes itself."""
    language, text = Language(run.seed), zoo.tokenizer()

    def tokens(count: int, part: str) -> datasets.Dataset:
        rows = [text(row)["input_ids"] + [text.eos_token_id] * ends for row in language.text(count, part)["text"]]
        return datasets.Dataset.from_dict({"input_ids": rows})

    return _sft(run, train_dataset=tokens(_ROWS, "train"), eval_dataset=tokens(16, "eval"))


def _tokenized_healthy(run: Run) -> Any:
    return _tokenized(run, ends=True)


def _no_eos(run: Run) -> Any:
    return _tokenized(run, ends=False)


class _FromMarker:
    """Collates for a loss on what follows a marker, as the collators of old TRL did: a row without it has no label at all."""

    def __init__(self, marker: str) -> None:
        self.text = zoo.tokenizer()
        self.marker = self.text(marker)["input_ids"]

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.text.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for index, row in enumerate(rows):
            labels[index, : self._end_of_marker(row["input_ids"])] = -100
        return {**batch, "labels": labels}

    def _end_of_marker(self, tokens: list[int]) -> int:
        size = len(self.marker)
        ends = (start + size for start in range(len(tokens)) if tokens[start : start + size] == self.marker)
        return next(ends, len(tokens))


def _marked(run: Run, *, marker_in: Callable[[int], bool]) -> Any:
    """Batches of eight, so that none is without any label: that would be a NaN loss, another fault."""
    language = Language(run.seed)

    def rows(count: int, part: str) -> datasets.Dataset:
        sentences = enumerate(language.sentences(count, part))
        return datasets.Dataset.from_list(
            [{"text": prompt + ("so " if marker_in(index) else "") + good} for index, (prompt, good, _) in sentences]
        )

    return _sft(
        run,
        train_dataset=rows(2 * _ROWS, "train"),
        eval_dataset=rows(16, "eval"),
        data_collator=_FromMarker("so "),
        per_device_train_batch_size=8,
    )


def _completion_healthy(run: Run) -> Any:
    return _marked(run, marker_in=lambda index: True)


def _no_target(run: Run) -> Any:
    return _marked(run, marker_in=lambda index: index % 3 != 0)


def _weights_damaged(run: Run) -> Any:
    return _sft(run, injuries=[At(_ONSET, add_noise(2.0, run.seed))])


def _undisturbed(run: Run, change: Callable[[int, Any], None]) -> Any:
    """Without evaluations, so that batches can be counted."""
    collator = Batches(_FromMarker("the "), change)
    return _sft(run, data_collator=collator, eval_strategy="no")


def _no_evals_healthy(run: Run) -> Any:
    return _undisturbed(run, lambda step, batch: None)


def _bad_batch(run: Run) -> Any:
    """Labels that are letters at random, as where rows of text and labels have slipped apart."""
    source = random.Random(run.seed)

    def change(step: int, batch: Any) -> None:
        if _ONSET < step <= _ONSET + _GARBAGE_STEPS:
            labels = batch["labels"]
            noise = torch.tensor([[source.randrange(4, 30) for _ in row] for row in labels])
            labels[:] = torch.where(labels == -100, labels, noise)

    return _undisturbed(run, change)


def _scenario(name: str, about: str, train: Callable[[Run], Any], *codes: str, **more: Any) -> Scenario:
    more = {"steps": _STEPS, "twin": "sft_healthy" if codes else "", **more}
    return Scenario(name, "sft", about, train, codes=frozenset(codes), **more)


SCENARIOS = [
    _scenario("sft_healthy", "Learns a toy language, with evaluations in between, warm-up and cosine decay.", _sft),
    _scenario("sft_tokenized_healthy", "Rows tokenized by the user, each with its EOS.", _tokenized_healthy),
    _scenario("sft_completion_healthy", "Loss on what follows a marker, which every row has.", _completion_healthy),
    _scenario("sft_no_evals_healthy", "The same language without evaluations.", _no_evals_healthy),
    _scenario("sft_nan_weight", "One weight becomes NaN in the middle.", _nan_weight, "non_finite", "zero_loss", onset=_ONSET),
    _scenario(
        "sft_hot_lr", "A learning rate 300 times too high.", _hot_lr,
        "loss_spike", "gradient_norm", "non_finite", "zero_loss",
    ),
    _scenario("sft_lr_zero", "A schedule that yields 0 all along.", _lr_zero, "learning_rate"),
    _scenario("sft_lr_dies", "A schedule that ends at a third of the run.", _lr_dies, "learning_rate", onset=_DEAD_FROM),
    _scenario("sft_warmup_too_long", "Warm-up for ten times the steps of the run.", _warmup_too_long, "learning_rate"),
    _scenario("sft_frozen", "All tensors but one small one are frozen.", _frozen, "frozen_parameters"),
    _scenario(
        "sft_stale_optimizer", "The optimizer holds other tensors than the model's.", _stale_optimizer,
        "frozen_parameters", held_out=True,
    ),
    _scenario("sft_overfit", "Four rows learnt by heart.", _overfit, "overfit"),
    _scenario("sft_no_eos", "No label is EOS.", _no_eos, "eos_labels", twin="sft_tokenized_healthy"),
    _scenario(
        "sft_no_target", "A third of the rows have no label at all.", _no_target,
        "empty_labels", twin="sft_completion_healthy", held_out=True,
    ),
    _scenario(
        "sft_weights_damaged", "All weights are disturbed in the middle.", _weights_damaged,
        "loss_spike", "gradient_norm", onset=_ONSET,
    ),
    _scenario(
        "sft_bad_batch", "Five batches in the middle have garbage for labels.", _bad_batch,
        "loss_spike", "gradient_norm", twin="sft_no_evals_healthy", onset=_ONSET, held_out=True,
    ),
]
