"""TRL's PPO, run and overheard, with rldk's models beside it to say the same again."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from typing import Any

import torch
import zoo
from ppo_tap import Tap, Update
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks.ppo.contest import never_padding
from rldk.ppo.config import Schedule
from rldk.ppo.losses import PolicyLoss, ValueLoss, policy_loss, value_loss
from rldk.ppo.models import Outputs, PolicyAndValue
from rldk.ppo.rollout import Experience, MicroBatch, Rollout, finished

PAD = zoo.tokenizer().pad_token_id
EOS = zoo.tokenizer().eos_token_id

# What a run has beside the settings of `overheard`. `eos_bias`, `shared` and `gpt2` are of the fixture, the rest is
# TRL's.
CASES: dict[str, dict[str, Any]] = {
    "ends early": {},
    "full length": {"stop_token": None, "missing_eos_penalty": None, "eos_bias": -100.0},
    "some without EOS": {"eos_bias": 0.5},
    "k3": {"kl_estimator": "k3"},
    "whitened rewards": {"whiten_rewards": True},
    "discounted, warm": {"gamma": 0.9, "lam": 0.7, "temperature": 0.7, "vf_coef": 0.5},
    "two mini-batches": {"num_mini_batches": 2},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "accumulated, full length": {
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "stop_token": None, "eos_bias": -100.0,
    },
    "one backbone for both": {"shared": True},
    "absolute positions": {"gpt2": True},  # llama's are relative: what it says does not tell where a prompt begins
}  # fmt: skip
WHOLE_PASS = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 4}  # 4 times 8 prompts of 32


def where_trl_has_ppo(test):
    """Lets pytest see a test only where the installed TRL has PPO; `test_trl_has_ppo_up_to_1_12` holds that it does."""
    return test if zoo.has("ppo") else None


@dataclasses.dataclass
class Run:
    """What TRL said, and rldk's models to say it again."""

    updates: list[Update]
    args: Any
    model: PolicyAndValue
    ref_model: Any
    reward_model: Any

    def load(self, weights: dict[str, Tensor]) -> None:
        """Puts the weights that TRL's models had into rldk's."""
        own = {name: weight for name, weight in weights.items() if name in self.model.state_dict()}
        if self.model.value_head is not None:
            for part in ("weight", "bias"):
                own[f"value_head.linear.{part}"] = weights[f"value_model.v_head.summary.{part}"]
        self.model.load_state_dict(own, strict=True)

    def masks(self, update: Update) -> tuple[Tensor, Tensor]:
        """Where responses have tokens, and the mask of the whole texts, by rldk's rules."""
        mask, _ = finished(update.rollout["responses"], EOS if self.args.stop_token else None)
        prompts = update.rollout["query_responses"][:, : update.context_length] != PAD
        return mask, torch.cat([prompts, mask], dim=1).long()

    def experience(self, update: Update) -> Experience:
        """Rldk's reading of TRL's rollout, with TRL's order of the rows."""
        told, args = update.rollout, self.args
        mask, attention = self.masks(update)
        rollout = Rollout(
            told["query_responses"], attention, mask, told["logprobs"], told["ref_logprobs"], told["values"], told["scores"]
        )
        experience = Experience.of(
            rollout, epochs=args.num_ppo_epochs, kl_coef=args.kl_coef, kl_estimator=args.kl_estimator, gamma=args.gamma,
            lam=args.lam, whiten_rewards=args.whiten_rewards,
        )
        order = torch.cat([one.rows for one in update.passes]).reshape(args.num_ppo_epochs, -1)
        return dataclasses.replace(experience, order=order)

    def judged(self, micro: MicroBatch) -> tuple[Outputs, PolicyLoss, ValueLoss]:
        """What rldk's models say of some rows, and its losses."""
        args = self.args
        out = self.model(micro.input_ids, micro.attention_mask, micro.mask.shape[1], args.temperature)
        policy = policy_loss(out.logprobs, micro.logprobs, micro.advantages, micro.mask, args.cliprange)
        return out, policy, value_loss(out.values, micro.values, micro.returns, micro.value_mask, args.cliprange_value)

    @property
    def schedule(self) -> Schedule:
        args = self.args
        micro = min(args.local_mini_batch_size, args.per_device_train_batch_size)
        return Schedule(args.local_batch_size, args.local_mini_batch_size, micro, args.num_ppo_epochs, 1)


@functools.cache
def overheard(case: str, seed: int) -> Run:
    """Two updates of TRL's, fast enough that ratios and values are clipped in later passes."""
    settings = {
        "max_steps": 2, "num_ppo_epochs": 3, "num_mini_batches": 1, "gradient_accumulation_steps": 1, "kl_coef": 0.2,
        "per_device_train_batch_size": 8, "local_rollout_forward_batch_size": 4, "learning_rate": 2e-3, "eos_bias": 2.0,
        "save_strategy": "no", "shared": False, "gpt2": False,
        **CASES.get(case, WHOLE_PASS),
    }
    shared, bias = settings.pop("shared"), settings.pop("eos_bias")
    if settings.pop("gpt2"):
        policy = never_padding(gpt2(GPT2LMHeadModel, seed), bias)
        value_model, reward_model = (gpt2(GPT2ForSequenceClassification, seed + number) for number in (2, 1))
    else:
        policy = never_padding(zoo.causal_lm(seed, bias))
        value_model, reward_model = zoo.sequence_classifier(seed + 2), zoo.sequence_classifier(seed + 1)
    if shared:
        value_model = with_value_head(policy)
    ref_model = blurred(policy, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = zoo.trainer(
            "ppo", folder, seed=seed, model=policy, value_model=value_model, reward_model=reward_model, ref_model=ref_model,
            **settings,
        )
        tap = Tap(trainer)
        trainer.train()
    model = PolicyAndValue(copy.deepcopy(policy), None if shared else copy.deepcopy(value_model))
    return Run(tap.updates, trainer.args, model, ref_model, reward_model)


def blurred(model: Any, seed: int) -> Any:
    """A reference policy that differs a little: else the KL of the first update is 0."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lm_head" not in name:
                weight += 0.02 * torch.randn_like(weight)
    return model


def gpt2(cls: Any, seed: int) -> Any:
    """A tiny model whose positions are absolute."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(
            GPT2Config(
                vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2, num_labels=1,
                tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
            )
        )  # fmt: skip


def with_value_head(policy: Any) -> Any:
    """TRL's value head on the policy's own backbone, with what its trainer needs of it (see the facts in docs)."""
    import trl

    home = trl if hasattr(trl, "AutoModelForCausalLMWithValueHead") else __import__("trl.experimental.ppo", fromlist=["_"])
    model = home.AutoModelForCausalLMWithValueHead.from_pretrained(policy)
    model.base_model_prefix, model.score = "pretrained_model", model.v_head
    return model
