"""Real TRL trainers on tiny CPU models built in code: the fixture shop of the test suite.

Nothing is mocked and nothing is downloaded. A trainer costs about a tenth of a second to build and a few
hundredths per step, so tests can afford to train. Works on TRL 0.23 through 1.x:

    zoo.trainer("grpo", tmp_path, callbacks=[recorder], max_steps=6).train()
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import importlib
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # trl.experimental, imported on demand below, warns
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

FAMILIES: tuple[str, ...] = (
    "sft",
    "dpo",
    "kto",
    "reward",
    "grpo",
    "rloo",
    "ppo",
    "rldk_ppo",  # rldk's own, on every TRL
    "orpo",
    "cpo",
    "online_dpo",
)

RewardFunc = Callable[..., list[float]]

_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_PAD, _BOS, _EOS, _UNK = range(len(_SPECIALS))
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
_VOCAB_SIZE = len(_SPECIALS) + len(_ALPHABET)


def tokenizer() -> PreTrainedTokenizerFast:
    """Builds a character-level tokenizer for lower-case text.

    Returns:
        A fast tokenizer with pad, bos, eos and unk tokens and no chat template.
    """
    vocab = {token: index for index, token in enumerate((*_SPECIALS, *_ALPHABET))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()  # without it, decoding puts a space between characters
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        # TRL 0.23 GRPO and RLOO raise on the token_type_ids of the default list.
        model_input_names=["input_ids", "attention_mask"],
    )


def _llama(cls: type, seed: int, **config: Any) -> Any:
    """A seeded two-layer llama of a few thousand weights; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(
            LlamaConfig(
                vocab_size=_VOCAB_SIZE,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.2,  # at the default 0.02 so small a model is uniform, and never moves
                tie_word_embeddings=False,
                pad_token_id=_PAD,
                bos_token_id=_BOS,
                eos_token_id=_EOS,
                **config,
            )
        )


def causal_lm(seed: int = 0, eos_bias: float = 0.0) -> LlamaForCausalLM:
    """Builds a tiny random llama language model.

    Args:
        seed: Seed of the weights. The caller's random state does not change.
        eos_bias: About the logit of EOS, where other tokens have about 0. A text ends at each token with a
            probability near 1 in 50 at 0, 1 in 5 to 8 at 2, and never at -100.

    Returns:
        The model, on the CPU, in float32.
    """
    model = _llama(LlamaForCausalLM, seed)
    # Llama's head has no bias to set, and reference models are rebuilt from saved weights by class name, so
    # the bias has to live in stock weights: one constant channel, the only one that the head's EOS row reads.
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        channel = model.model(torch.arange(_VOCAB_SIZE)[:, None]).last_hidden_state[..., 0]
        if eos_bias and channel.mean().abs() < channel.std() / 2:
            return causal_lm(seed + 1000, eos_bias)  # in this model the channel is not constant enough to carry a bias
        model.lm_head.weight[_EOS] = 0.0
        model.lm_head.weight[_EOS, 0] = eos_bias / channel.mean()
    return model


def sequence_classifier(seed: int = 0) -> LlamaForSequenceClassification:
    """Builds a tiny random llama with one output: a reward or value model.

    Args:
        seed: Seed of the weights. The caller's random state does not change.

    Returns:
        The model, on the CPU, in float32.
    """
    return _llama(LlamaForSequenceClassification, seed, num_labels=1)


def length(completions: list[str], **_: Any) -> list[float]:
    """Rewards completions close to six characters: more is better would teach a policy to ramble."""
    return [1 - abs(len(text) - 6) / 6 for text in completions]


def vowels(completions: list[str], **_: Any) -> list[float]:
    """Rewards the share of vowels in a completion."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in completions]


def _rows(columns: tuple[str, ...], count: int, seed: int) -> datasets.Dataset:
    """Sentences with a right and a wrong ending, as the columns that one family reads."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        prompt = f"the {draw.choice(('cat', 'dog', 'old man', 'hen'))} "
        good = f"sat on {draw.choice(('a mat', 'the box', 'a log'))}."
        bad = "".join(draw.sample(good, len(good)))
        row = {"prompt": prompt, "chosen": good, "rejected": bad, "text": prompt + good}
        row |= {"completion": bad if index % 2 else good, "label": index % 2 == 0}
        row |= {"input_ids": tokenizer()(prompt)["input_ids"]} if "input_ids" in columns else {}
        rows.append({name: row[name] for name in columns})
    return datasets.Dataset.from_list(rows)


@dataclasses.dataclass(frozen=True)
class _Family:
    """What sets one family's fixture apart from the others."""

    prefix: str  # of the class names in TRL
    columns: tuple[str, ...]
    config: dict[str, Any]
    evaluates: bool = True
    rewards: tuple[RewardFunc, ...] = ()
    eos_bias: float = 0.0
    padding_side: str = "right"


_PAIR = ("prompt", "chosen", "rejected")
_GROUPS = {
    "learning_rate": 5e-4,
    "beta": 0.04,  # at GRPO's default of 0 no kl is logged
    "num_generations": 4,
    "max_completion_length": 12,
    "per_device_train_batch_size": 8,
}
_TABLE = {
    "sft": _Family("SFT", ("text",), {"learning_rate": 3e-3}),
    "dpo": _Family("DPO", _PAIR, {"learning_rate": 1e-3}),
    "kto": _Family("KTO", ("prompt", "completion", "label"), {"learning_rate": 1e-3}),
    "reward": _Family("Reward", ("chosen", "rejected"), {"learning_rate": 1e-3}),
    "grpo": _Family("GRPO", ("prompt",), _GROUPS, rewards=(length, vowels), eos_bias=2.0),
    "rloo": _Family("RLOO", ("prompt",), _GROUPS, rewards=(length, vowels), eos_bias=2.0),
    "ppo": _Family(
        "PPO",
        ("input_ids",),  # its loader turns every column into a tensor
        {
            "learning_rate": 3e-4,
            "response_length": 12,
            "stop_token": "eos",
            "missing_eos_penalty": 1.0,  # or the random reward model teaches it to ramble
            "temperature": 1.0,
            "num_ppo_epochs": 2,
            # Together these make TRL average over slots that stay zero: val/ratio is about 0.5, not 1.
            "num_mini_batches": 2,
            "gradient_accumulation_steps": 2,
            "num_sample_generations": 0,  # needs an eval set
        },
        evaluates=False,
        eos_bias=2.0,
        padding_side="left",
    ),
    "rldk_ppo": _Family(
        "PPO",
        ("prompt",),
        {
            "learning_rate": 3e-4,
            "response_length": 12,
            "stop_token": "eos",
            "temperature": 1.0,
            "num_ppo_epochs": 2,
            "num_mini_batches": 2,
            "gradient_accumulation_steps": 2,
        },
        rewards=(length, vowels),
        eos_bias=2.0,
        padding_side="left",
    ),
    "orpo": _Family("ORPO", _PAIR, {"learning_rate": 1e-3, "remove_unused_columns": False}),
    "cpo": _Family("CPO", _PAIR, {"learning_rate": 1e-3, "remove_unused_columns": False}),
    "online_dpo": _Family(
        "OnlineDPO",
        ("prompt",),
        {"learning_rate": 3e-4, "max_new_tokens": 12},
        evaluates=False,  # it cannot evaluate on prompts alone
        rewards=(length,),
        eos_bias=2.0,
    ),
}


@functools.cache
def _find(family: str) -> tuple[type, type] | None:
    if family == "rldk_ppo":
        from rldk.ppo import PPOConfig, PPOTrainer

        return PPOTrainer, PPOConfig
    import trl

    names = [_TABLE[family].prefix + suffix for suffix in ("Trainer", "Config")]
    homes = [trl]
    try:
        homes.append(importlib.import_module(f"trl.experimental.{family}"))
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("trl."):  # TRL has it, but one of its requirements is missing
            raise
    for home in homes:
        if all(hasattr(home, name) for name in names):
            return getattr(home, names[0]), getattr(home, names[1])
    return None


def has(family: str) -> bool:
    """Tells whether the installed TRL ships a family's trainer, at top level or as experimental."""
    return _find(family) is not None


def classes(family: str) -> tuple[type, type]:
    """Finds a family's classes in the installed TRL, at top level first.

    Args:
        family: One of `FAMILIES`.

    Returns:
        The trainer class and its config class.

    Raises:
        LookupError: The installed TRL has no such trainer.
    """
    found = _find(family)
    if found is None:
        raise LookupError(f"the installed TRL has no trainer for {family!r}: ask has() first")
    return found


def trainer(
    family: str,
    output_dir: str | os.PathLike[str],
    *,
    callbacks: Iterable[transformers.TrainerCallback] = (),
    max_steps: int = 6,
    seed: int = 0,
    reward_funcs: RewardFunc | list[RewardFunc] | None = None,
    model: Any = None,
    **config: Any,
) -> Any:
    """Builds a family's trainer on a tiny healthy run: logs every step, evaluates and saves every third.

    Args:
        family: One of `FAMILIES`.
        output_dir: Where checkpoints go. `base_model`, the untrained model, is put there too.
        callbacks: Callbacks of the trainer.
        max_steps: Steps to train; for PPO, updates.
        seed: Seed of the weights and of the run. The data are always the same.
        reward_funcs: For GRPO and RLOO in place of `length` and `vowels`, for online DPO of `length`.
        model: In place of the family's own tiny model.
        **config: Fields of the family's config class; any other name goes to the trainer itself
            (`ref_model`, `train_dataset`, `peft_config`, ...).

    Returns:
        A trainer ready for `.train()`.

    Raises:
        LookupError: The installed TRL has no such trainer.
    """
    trainer_class, config_class = classes(family)
    kind = _TABLE[family]
    text = tokenizer()
    text.padding_side = kind.padding_side
    if model is None:
        model = sequence_classifier(seed) if family == "reward" else causal_lm(seed, kind.eos_bias)
    if isinstance(model, transformers.PreTrainedModel):
        # Several trainers reload the reference model from the path that the model names.
        base = Path(output_dir) / "base_model"
        model.save_pretrained(base)
        model.config._name_or_path = str(base)

    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    settings = {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": max_steps,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps" if kind.evaluates else "no",
        "eval_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,  # TRL 1.x turns it on, which only costs time here
        "dataloader_pin_memory": False,  # warns without an accelerator
        "disable_tqdm": True,
        **kind.config,
        **{name: value for name, value in config.items() if name in fields},
    }
    parts = {
        "model": model,
        "processing_class": text,
        "callbacks": list(callbacks),
        "train_dataset": _rows(kind.columns, 32, seed=1),
    }
    if settings["eval_strategy"] != "no":
        parts["eval_dataset"] = _rows(kind.columns, 4, seed=2)
    if kind.rewards or reward_funcs is not None:
        parts["reward_funcs"] = list(kind.rewards) if reward_funcs is None else reward_funcs
    if family == "ppo":
        # PPO collects garbage a dozen times per update; keep that from walking all of torch each time.
        gc.collect()
        gc.freeze()
        batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        settings.setdefault("total_episodes", max_steps * batch)  # PPO counts in these and ignores max_steps
        parts["ref_model"] = copy.deepcopy(model)
        parts["reward_model"] = sequence_classifier(seed + 1)
        parts["value_model"] = sequence_classifier(seed + 2)
    parts |= {name: value for name, value in config.items() if name not in fields}
    return trainer_class(args=config_class(**settings), **parts)
