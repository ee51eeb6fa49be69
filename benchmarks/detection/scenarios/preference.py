"""DPO, KTO and Reward: faults of pairs, of references and of training, and their healthy twins."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import datasets
import torch

from tests import zoo

from ._base import Run, Scenario
from ._supervised import At, Language, add_noise, fit, optimizer_with, poison, pretrained

__all__ = ["SCENARIOS"]

_BATCH = 8
_REWARD_BATCH = 16  # with labels that are partly wrong, smaller ones jump about
_DPO_RATE, _KTO_RATE, _REWARD_RATE = 1e-3, 1e-3, 1e-3
_ONSET = 100
_DEAD_FROM = 50
_STEPS = {1: 150, 5: 250}


def _rows(run: Run, batch: int = _BATCH) -> int:
    """As many as the run trains on: no row is seen twice, so nothing can be learnt by heart."""
    return run.steps * batch


def _dpo(run: Run, **config: Any) -> Any:
    settings = {"learning_rate": _DPO_RATE, "per_device_train_batch_size": _BATCH, **config}
    settings.setdefault("train_dataset", Language(run.seed).pairs(_rows(run)))
    return fit("dpo", run, **settings)


def _kto(run: Run, **config: Any) -> Any:
    settings = {"learning_rate": _KTO_RATE, "per_device_train_batch_size": _BATCH, **config}
    settings.setdefault("train_dataset", Language(run.seed).labelled(_rows(run)))
    return fit("kto", run, **settings)


def _reward(run: Run, *, flipped: float = 0.15, **config: Any) -> Any:
    """Some labels are wrong, as in life: without them the loss falls to nothing, where any pair is a spike."""
    settings = {"learning_rate": _REWARD_RATE, "per_device_train_batch_size": _REWARD_BATCH, **config}
    if "train_dataset" not in settings:
        settings["train_dataset"] = Language(run.seed).pairs(_rows(run, _REWARD_BATCH), flipped=flipped, prompts=False)
    return fit("reward", run, **settings)


def _dpo_identical(run: Run) -> Any:
    return _dpo(run, train_dataset=Language(run.seed).pairs(_rows(run), tied=1.0))


def _dpo_random(run: Run) -> Any:
    """A third of the pairs have no difference: a tie counts as wrong in TRL's accuracy."""
    return _dpo(run, train_dataset=Language(run.seed).pairs(_rows(run), flipped=0.5, tied=0.33))


def _dpo_shared_reference(run: Run) -> Any:
    """Another object around the same tensors: TRL compares the objects only."""
    model, reference = zoo.causal_lm(run.seed), zoo.causal_lm(run.seed)
    reference.load_state_dict(model.state_dict(), assign=True)
    return _dpo(run, model=model, ref_model=reference)


def _pretrained(run: Run) -> torch.nn.Module:
    return pretrained(run.seed, Language(run.seed).text(400, "before")["text"])


def _one_word_apart(run: Run) -> datasets.Dataset:
    """Pairs of right sentences that differ in the last word, of which the earlier in the alphabet is preferred."""
    draw = random.Random(run.seed)
    language = Language(run.seed)
    rows = []
    for prompt, good, _ in language.sentences(_rows(run)):
        start = good.rpartition(" ")[0]
        better, worse = sorted(draw.sample(language.places, 2))
        rows.append({"prompt": prompt, "chosen": f"{start} {better}.", "rejected": f"{start} {worse}."})
    return datasets.Dataset.from_list(rows)


def _dpo_displacement(run: Run) -> Any:
    return _dpo(run, model=_pretrained(run), train_dataset=_one_word_apart(run), learning_rate=1e-2)


def _dpo_pretrained_healthy(run: Run) -> Any:
    return _dpo(run, model=_pretrained(run), train_dataset=_one_word_apart(run), learning_rate=4e-5)


def _dpo_hot_lr(run: Run) -> Any:
    return _dpo(run, learning_rate=500 * _DPO_RATE)


def _dpo_nan(run: Run) -> Any:
    return _dpo(run, injuries=[At(_ONSET, poison)])


def _dpo_stale_optimizer(run: Run) -> Any:
    """The optimizer holds the tensors of a model that was made anew since."""
    model = zoo.causal_lm(run.seed)
    others = zoo.causal_lm(run.seed)
    return _dpo(run, model=model, optimizers=optimizer_with(others.parameters(), _KTO_RATE, lambda step: 1.0))


def _kto_warmup_too_long(run: Run) -> Any:
    return _kto(run, warmup_steps=10 * run.steps)


def _kto_one_sided(run: Run) -> Any:
    return _kto(run, train_dataset=Language(run.seed).labelled(_rows(run), undesirable=2 / 64))


def _kto_nan(run: Run) -> Any:
    return _kto(run, injuries=[At(_ONSET, poison)])


def _kto_lr_dies(run: Run) -> Any:
    """The schedule falls to 0 at once, as where a plateau is mistaken for the end."""
    model = zoo.causal_lm(run.seed)
    schedule = optimizer_with(model.parameters(), _KTO_RATE, lambda step: min(1.0, step / 10) * (step < _DEAD_FROM))
    return _kto(run, model=model, optimizers=schedule)


def _reward_random_labels(run: Run) -> Any:
    return _reward(run, flipped=0.5)


def _reward_nan(run: Run) -> Any:
    return _reward(run, injuries=[At(_ONSET, poison)])


def _reward_damaged(run: Run) -> Any:
    return _reward(run, injuries=[At(_ONSET, add_noise(3.0, run.seed))])


def _reward_evaluated(run: Run, *, rows: int, flipped: float) -> Any:
    """Evaluated often, on fresh pairs whose labels have the same share of errors."""
    language = Language(run.seed)
    return _reward(
        run,
        train_dataset=language.pairs(rows, flipped=flipped, prompts=False),
        eval_dataset=language.pairs(32, "eval", flipped=flipped, prompts=False),
        eval_strategy="steps",
        eval_steps=10,
    )


def _reward_evals_healthy(run: Run) -> Any:
    return _reward_evaluated(run, rows=_rows(run, _REWARD_BATCH), flipped=0.15)


def _reward_overfit(run: Run) -> Any:
    return _reward_evaluated(run, rows=16, flipped=0.5)


def _scenario(name: str, about: str, train: Callable[[Run], Any], *codes: str, **more: Any) -> Scenario:
    family = name.partition("_")[0]
    more = {"steps": _STEPS, "twin": f"{family}_healthy" if codes else "", **more}
    return Scenario(name, family, about, train, codes=frozenset(codes), **more)


SCENARIOS = [
    _scenario("dpo_healthy", "Right endings against scrambled ones, fresh pairs all along.", _dpo),
    _scenario(
        "dpo_pretrained_healthy", "A trained policy, pairs that are one word apart, a small learning rate.",
        _dpo_pretrained_healthy,
    ),
    _scenario("kto_healthy", "As many desirable rows as undesirable ones.", _kto),
    _scenario("reward_healthy", "Fresh pairs all along, 15 % of them mislabelled.", _reward),
    _scenario("reward_evals_healthy", "Fresh pairs, 15 % of them mislabelled, with evaluations.", _reward_evals_healthy),
    _scenario("dpo_identical", "Chosen and rejected are the same.", _dpo_identical, "preference_signal", "zero_gradient"),
    _scenario("dpo_random", "Pairs in random order, a third of them ties.", _dpo_random, "preference_signal"),
    _scenario(
        "dpo_shared_reference", "The reference's tensors are the policy's.", _dpo_shared_reference,
        "shared_reference", "preference_signal",
    ),
    _scenario(
        "dpo_displacement", "Pairs one word apart at a high learning rate: the chosen answers grow unlikely too.",
        _dpo_displacement, "likelihood_displacement", twin="dpo_pretrained_healthy",
    ),
    _scenario(
        "dpo_hot_lr", "A learning rate 500 times too high.", _dpo_hot_lr,
        "loss_spike", "gradient_norm", "non_finite", "zero_loss", "likelihood_displacement", held_out=True,
    ),
    _scenario("dpo_nan", "One weight becomes NaN in the middle.", _dpo_nan, "non_finite", "zero_loss", onset=_ONSET),
    _scenario(
        "dpo_stale_optimizer", "The optimizer holds other tensors than the model's.", _dpo_stale_optimizer,
        "frozen_parameters", "preference_signal", held_out=True,
    ),
    _scenario(
        "kto_warmup_too_long", "A warm-up ten times as long as the run.", _kto_warmup_too_long,
        "learning_rate", held_out=True,
    ),
    _scenario("kto_one_sided", "62 desirable rows for 2 undesirable ones.", _kto_one_sided, "kto_imbalance"),
    _scenario(
        "kto_nan", "One weight becomes NaN in the middle.", _kto_nan,
        "non_finite", "zero_loss", onset=_ONSET, held_out=True,
    ),
    _scenario(
        "kto_lr_dies", "The learning rate falls to 0 at a third of the run.", _kto_lr_dies,
        "learning_rate", onset=_DEAD_FROM, held_out=True,
    ),
    _scenario(
        "reward_nan", "One weight becomes NaN in the middle.", _reward_nan,
        "non_finite", "zero_loss", onset=_ONSET, held_out=True,
    ),
    _scenario(
        "reward_random_labels", "Labels by the toss of a coin, fresh pairs all along.", _reward_random_labels,
        "preference_signal",
    ),
    _scenario(
        "reward_damaged", "All weights are disturbed in the middle.", _reward_damaged,
        "loss_spike", "gradient_norm", "preference_signal", onset=_ONSET, held_out=True,
    ),
    _scenario(
        "reward_overfit", "Sixteen pairs with random labels learnt by heart.", _reward_overfit,
        "overfit", twin="reward_evals_healthy",
    ),
]
