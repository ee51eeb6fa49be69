"""The two trainers on one task: the same models, prompts, reward and arguments."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rldk.ppo import PPOConfig, PPOTrainer
from tests import zoo

__all__ = ["KINDS", "SIZES", "Size", "Vowels", "letters", "never_padding", "steps_of_an_update", "trainer"]

# TRL's trainer, which needs a value model; ours with that same model; ours with a value head on the policy.
KINDS = ("trl", "separate", "shared")


@dataclass(frozen=True)
class Size:
    """Of models and batches.

    Attributes:
        hidden: Size of a state.
        layers: Of each model.
        vocabulary: Tokens.
        prompt: Tokens of each prompt.
        response: Tokens of each response, all of which are as long as that.
        batch: Prompts of an update, which are one mini-batch.
        epochs: Passes over a rollout.
    """

    hidden: int
    layers: int
    vocabulary: int
    prompt: int
    response: int
    batch: int
    epochs: int = 4


SIZES = {
    "tiny": Size(16, 2, 32, 8, 12, 16),
    "middle": Size(256, 4, 8192, 16, 64, 16),
}


class Vowels(nn.Module):
    """A reward model that is a rule: the share of the response's places that hold a vowel.

    Args:
        prompt: Tokens of each prompt, padding included.
        response: Places of a response.
    """

    base_model_prefix = "backbone"

    def __init__(self, prompt: int, response: int) -> None:
        super().__init__()
        self.score = nn.Identity()
        self.backbone = _Counted(zoo.tokenizer().convert_tokens_to_ids(list("aeiou")), prompt, response)


class _Counted(nn.Module):
    def __init__(self, wanted: list[int], prompt: int, response: int) -> None:
        super().__init__()
        self.register_buffer("wanted", torch.tensor(wanted))
        self.prompt, self.response = prompt, response

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """The share so far, at each place: (B, S, 1)."""
        hits = (torch.isin(input_ids, self.wanted) & attention_mask.bool()).float()
        hits[:, : self.prompt] = 0
        return SimpleNamespace(hidden_states=[(hits.cumsum(dim=1) / self.response).unsqueeze(-1)])


def never_padding(model: Any, eos_bias: float = 0.0) -> Any:
    """Takes the pad token out of a policy's reach: TRL would take one that was sampled for padding.

    Args:
        model: The policy, which is changed.
        eos_bias: Added to the logit of EOS.
    """
    head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[model.config.pad_token_id] = -100.0
        head.bias[model.config.eos_token_id] = eos_bias
    model.lm_head = head
    return model


def letters(length: int, count: int = 64, seed: int = 0) -> datasets.Dataset:
    """Prompts of random letters, all of one length."""
    draw, text = random.Random(seed), zoo.tokenizer()
    rows = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=length)) for _ in range(count)]
    return datasets.Dataset.from_list([{"input_ids": text(row)["input_ids"]} for row in rows])


def trainer(kind: str, folder: str, parts: dict[str, Any], settings: dict[str, Any], updates: int, seed: int = 0) -> Any:
    """Builds one of `KINDS`.

    Args:
        kind: Which.
        folder: Of its output.
        parts: `model`, `ref_model`, `reward_model`, `value_model` and `train_dataset`.
        settings: Arguments that both know, a batch being one mini-batch.
        updates: How many.
        seed: Of sampling.
    """
    text = zoo.tokenizer()
    text.padding_side = "left"
    trainer_class, config_class = zoo.classes("ppo") if kind == "trl" else (PPOTrainer, PPOConfig)
    settings = {
        "output_dir": folder, "seed": seed, "total_episodes": updates * settings["per_device_train_batch_size"],
        # Both learn at one rate, and neither clips gradients: TRL cannot.
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "num_mini_batches": 1, "gradient_accumulation_steps": 1,
        "logging_steps": 1 if kind == "trl" else settings["num_ppo_epochs"], "num_sample_generations": 0,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "disable_tqdm": True, **settings,
    }  # fmt: skip
    if kind == "shared":
        parts = {**parts, "value_model": None}
    return trainer_class(args=config_class(**settings), processing_class=text, **parts)


def steps_of_an_update(trainer: Any) -> int:
    """How often `on_step_end` comes in an update: TRL's step is an update, ours an optimizer step."""
    return trainer.schedule.steps if isinstance(trainer, PPOTrainer) else 1


def sized(size: Size, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Models, prompts and arguments of a size; a reward model of the policy's own size."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=4 * size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=1,
    )
    policy = LlamaForCausalLM(config)
    parts = {
        "model": policy, "ref_model": copy.deepcopy(policy), "reward_model": LlamaForSequenceClassification(config),
        "value_model": LlamaForSequenceClassification(config), "train_dataset": letters(size.prompt),
    }
    settings = {
        "per_device_train_batch_size": size.batch, "num_ppo_epochs": size.epochs, "response_length": size.response,
        "learning_rate": 1e-5, "temperature": 1.0,
    }
    return parts, settings
