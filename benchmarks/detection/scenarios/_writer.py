"""What the online scenarios share: a tiny policy that can write, rewards for what it writes, ways to disturb it.

The policy is trained for a second on texts such as `sad fun wet.` before it meets TRL. Rewards then rise as they do in
life: by choice among words that it knows, at a low KL divergence, with completions that end by themselves.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import datasets
import torch
from transformers import LlamaForCausalLM, TrainerCallback

from tests import zoo

from ._base import Run

HAPPY = ("fun", "joy", "sun")
SAD = ("sad", "wet", "ill", "dim")
# Of completions, in tokens. Texts of one to three words have at most 13.
CAP = 20


def prompts(seed: int, count: int = 64) -> list[str]:
    """Openings of sentences, drawn anew for each seed."""
    draw = random.Random(seed)
    who = ("cat", "dog", "hen", "fox", "kid", "bee", "old cat", "old dog", "red hen", "big fox")
    return [f"the {draw.choice(who)} is {draw.choice(('so', 'not', 'now', 'all'))} " for _ in range(count)]


@cache
def _taught(seed: int, stops: bool) -> LlamaForCausalLM:
    draw = random.Random(1000 + seed)
    text = zoo.tokenizer()
    model = zoo.causal_lm(seed)
    steps = 220
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # The zoo's model reads its EOS logit from one fixed channel; this one learns when to stop.
        torch.manual_seed(seed)
        model.lm_head.weight[text.eos_token_id].normal_(std=0.2)
    for _ in range(steps):
        rows = []
        for prompt in prompts(draw.randrange(10**6), 16):
            words = [draw.choice(HAPPY if draw.random() < 0.35 else SAD) for _ in range(draw.randint(1, 3))]
            end = text.eos_token if stops else " " + " ".join(draw.choices(HAPPY + SAD, k=6))
            rows.append(prompt + " ".join(words) + "." + end)
        batch = text(rows, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    optimizer.zero_grad(set_to_none=True)
    return model


def writer(seed: int, stops: bool = True) -> LlamaForCausalLM:
    """A fresh copy of the policy that a seed starts from.

    Args:
        seed: Of the weights and of the texts it learned.
        stops: Whether those texts ended in EOS. Where they did not, the policy does not know how to end.
    """
    return copy.deepcopy(_taught(seed, stops))


def train_groups(
    run: Run,
    rewards: Callable | list[Callable],
    *,
    family: str = "grpo",
    callbacks: tuple[TrainerCallback, ...] = (),
    **config: Any,
) -> Any:
    """Trains GRPO or RLOO on the writer; `config` is as of `zoo.trainer`."""
    settings = {
        "model": writer(run.seed),
        "learning_rate": 4e-4,
        "beta": 0.05,
        "num_generations": 8,  # with four, most groups are degenerate once half of the task is learned
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
        "max_completion_length": CAP,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": run.logging_steps,
        "train_dataset": datasets.Dataset.from_dict({"prompt": prompts(run.seed)}),
        "max_steps": run.steps,
        **config,
    }
    resume = settings.pop("resume_from_checkpoint", None)
    trainer = zoo.trainer(
        family,
        run.output_dir,
        callbacks=[*callbacks, *run.callbacks],
        seed=run.seed,
        reward_funcs=rewards,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def happy_share(text: str) -> float:
    """The share of happy words among the words of a text."""
    words = text.strip(" .").split()
    return sum(word in HAPPY for word in words) / max(1, len(words))


def is_tidy(text: str) -> bool:
    """Whether a text is one to three known words and a full stop."""
    words = text[:-1].split(" ")
    return text.endswith(".") and 1 <= len(words) <= 3 and all(word in HAPPY + SAD for word in words)


def happy(completions: list[str], **_: Any) -> list[float]:
    """Rewards happy words."""
    return [happy_share(text) for text in completions]


def tidy(completions: list[str], **_: Any) -> list[float]:
    """Rewards the right form."""
    return [float(is_tidy(text)) for text in completions]


class Clock(TrainerCallback):
    """Knows the number of steps done, for reward functions: TRL 0.23 does not tell them."""

    def __init__(self) -> None:
        self.step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follows the run."""
        self.step = state.global_step


class At(TrainerCallback):
    """Does something to the trainer's parts at the end of step `first`, or of all steps from there on."""

    def __init__(self, first: int, act: Callable[..., None], always: bool = False) -> None:
        self.first, self.act, self.always = first, act, always

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Follows the run."""
        if state.global_step == self.first or (self.always and state.global_step > self.first):
            self.act(**parts)
