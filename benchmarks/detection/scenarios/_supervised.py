"""What the supervised scenarios share: a seeded toy language, its rows by family, and ways to injure a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from tests import zoo

from ._base import Run

__all__ = ["At", "Batches", "Language", "add_noise", "fit", "optimizer_with", "poison", "pretrained"]

_ADJECTIVES = ("old", "red", "big", "shy", "wet", "odd", "sad", "tame", "grey", "calm")
_NOUNS = ("cat", "dog", "hen", "man", "fox", "girl", "crow", "bear", "horse", "snake", "child", "goat")
_VERBS = ("sat", "slept", "ran", "hid", "stood", "sang", "fell", "jumped")
_PLACES = ("mat", "box", "log", "hill", "roof", "bridge", "field", "barrel", "stone", "wagon")


class Language:
    """Sentences of one seed: another seed has other words in it, so other losses all the way.

    Args:
        seed: Of the words and of all rows.
        words: Words of each kind; fewer have a lower floor of the loss, and are among those of a larger language.
    """

    def __init__(self, seed: int, words: int = 4) -> None:
        self.seed = seed
        draw = random.Random(seed)
        self._kinds = [draw.sample(kind, len(kind))[:words] for kind in (_ADJECTIVES, _NOUNS, _VERBS, _PLACES)]
        self.places = self._kinds[-1]

    def sentences(self, count: int, part: str = "train") -> list[tuple[str, str, str]]:
        """Prompts, their right endings, and wrong ones with the same letters; another part has other rows."""
        draw = random.Random(f"{self.seed} {part}")
        rows = []
        for _ in range(count):
            adjective, noun, verb, place = (draw.choice(kind) for kind in self._kinds)
            good = f"{verb} on the {place}."
            rows.append((f"the {adjective} {noun} ", good, "".join(draw.sample(good, len(good)))))
        return rows

    def text(self, count: int, part: str = "train") -> datasets.Dataset:
        """Rows for SFT."""
        return datasets.Dataset.from_list([{"text": prompt + good} for prompt, good, _ in self.sentences(count, part)])

    def pairs(
        self, count: int, part: str = "train", *, flipped: float = 0.0, tied: float = 0.0, prompts: bool = True
    ) -> datasets.Dataset:
        """Rows for DPO, or without prompts for Reward; a share of them with the labels swapped, a share with no difference."""
        draw = random.Random(f"{self.seed} {part} labels")
        rows = []
        for prompt, good, bad in self.sentences(count, part):
            chosen, rejected = (bad, good) if draw.random() < flipped else (good, bad)
            rejected = chosen if draw.random() < tied else rejected
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            rows.append(row if prompts else {"chosen": prompt + chosen, "rejected": prompt + rejected})
        return datasets.Dataset.from_list(rows)

    def labelled(self, count: int, part: str = "train", *, undesirable: float = 0.5) -> datasets.Dataset:
        """Rows for KTO, every so many of them undesirable."""
        every = round(1 / undesirable)
        rows = []
        for index, (prompt, good, bad) in enumerate(self.sentences(count, part)):
            label = index % every != 0
            rows.append({"prompt": prompt, "completion": good if label else bad, "label": label})
        return datasets.Dataset.from_list(rows)


def fit(
    family: str, run: Run, *, injuries: Iterable[TrainerCallback] = (), resume: str | None = None, **config: Any
) -> Any:
    """Trains the zoo's trainer with warm-up, cosine decay and no checkpoints, and returns it.

    The injuries come after the recorder's callbacks, which so see each hook as it was before them. `resume` is the
    checkpoint to go on from.
    """
    settings = {
        "logging_steps": run.logging_steps,
        "save_strategy": "no",
        "eval_strategy": "no",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        **config,
    }
    trainer = zoo.trainer(
        family,
        run.output_dir,
        callbacks=[*run.callbacks, *injuries],
        max_steps=run.steps,
        seed=run.seed,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class At(TrainerCallback):
    """Does something to the model once, after a step and all its logs, before the next.

    Args:
        step: The last step that is as it should be.
        action: Given the model.
    """

    def __init__(self, step: int, action: Callable[[torch.nn.Module], None]) -> None:
        self.step = step
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **_: Any) -> None:
        """Begins the step after `step`."""
        if state.global_step == self.step:
            self.action(model)


class Batches:
    """A collator that hands each training batch, with the step that it is for, to a function.

    It counts calls, so it is right only where no evaluation and no gradient accumulation come in between. A batch is
    collated one step ahead of its use.

    Args:
        collator: What makes the batch.
        change: Given the step and the batch; changes the batch in place, or waits, or keeps something.
    """

    def __init__(self, collator: Callable[[Any], Any], change: Callable[[int, Any], None]) -> None:
        self.collator = collator
        self.change = change
        self.step = 0

    def __call__(self, rows: Any) -> Any:
        """Collates the batch of the next step."""
        self.step += 1
        batch = self.collator(rows)
        self.change(self.step, batch)
        return batch


def poison(model: torch.nn.Module) -> None:
    """One weight becomes NaN."""
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = torch.nan


def add_noise(scale: float, seed: int) -> Callable[[torch.nn.Module], None]:
    """Makes a function that adds noise to every weight, `scale` times the spread of its matrix."""

    def action(model: torch.nn.Module) -> None:
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight += torch.randn(weight.shape, generator=source) * (scale * weight.std())

    return action


def optimizer_with(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, factor: Callable[[int], float]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """What the trainer would build, with the caller's own parameters or schedule in it."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def pretrained(seed: int, texts: list[str], steps: int = 150, learning_rate: float = 1e-2) -> torch.nn.Module:
    """The zoo's language model after a short training on texts, so that it has something to lose."""
    model, tokenizer = zoo.causal_lm(seed), zoo.tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    draw = random.Random(seed)
    for _ in range(steps):
        batch = tokenizer([text + "</s>" for text in draw.sample(texts, 16)], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
