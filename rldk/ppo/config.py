"""The arguments of `rldk.ppo.PPOTrainer`: TRL 1.12's names and defaults, and what transformers' Trainer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..exceptions import ConfigurationError

__all__ = ["PPOConfig", "Schedule"]


def _arg(default: Any, help: str) -> Any:  # the key that transformers' HfArgumentParser shows
    return field(default=default, metadata={"help": help})


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]  # transformers' base class is untyped on some versions
    """Arguments of PPO training; everything in `transformers.TrainingArguments` besides.

    One *update* is a rollout of `per_device_train_batch_size * gradient_accumulation_steps` prompts a process, and
    `num_ppo_epochs` passes over it, each cut into `num_mini_batches` mini-batches. Every mini-batch is one optimizer
    step, so an update is `num_ppo_epochs * num_mini_batches` steps of `logging_steps`, `save_steps`, `eval_steps`,
    `warmup_steps` and `max_steps`. A mini-batch that does not fit `per_device_train_batch_size` is accumulated.

    Defaults that differ from `TrainingArguments`: `learning_rate` 3e-6, `logging_steps` 10, `gradient_checkpointing`
    True, `bf16` where a GPU supports it and `fp16` is not set, `remove_unused_columns` False (reward functions are
    given the other columns).

    Attributes:
        total_episodes: Completions to sample in all; rounded up to whole updates. Wins over `max_steps` and
            `num_train_epochs`, which is in passes over the prompts. Default: neither.
        num_ppo_epochs: Passes over each rollout (Schulman 2017, K). Default 4.
        num_mini_batches: Optimizer steps in a pass; must divide the rollout. Default 1.
        response_length: Most tokens of a response. Default 53.
        temperature: Of sampling, and of the probabilities that are trained. Default 0.7.
        stop_token: `"eos"` ends a response at the tokenizer's EOS; None lets each run to `response_length`.
        stop_token_id: The same with any token; not together with `stop_token`.
        missing_eos_penalty: Taken off the score of a response without EOS. Default: nothing.
        kl_coef: Weight of the KL penalty for each token (Ziegler 2019, beta). Default 0.05.
        kl_estimator: `"k1"`, unbiased, or `"k3"`, unbiased with less variance and never negative (Schulman 2020).
        kl_target: Nats a sequence that `kl_coef` is adapted to hold (Ziegler 2019, section 2.2). Default: it is fixed.
        kl_adaptation: Gain of that controller an update (Ziegler 2019, K_beta). Default 0.1.
        gamma: Discount. Default 1.
        lam: Decay of generalised advantage estimation. Default 0.95.
        cliprange: Clip of the probability ratio (Schulman 2017, epsilon). Default 0.2.
        cliprange_value: Clip of the change of a value, in units of the reward. Default 0.2.
        vf_coef: Weight of the value loss. Default 0.1.
        whiten_rewards: Divide the rewards of a rollout by their deviation, keeping the mean. Default False.
        reward_weights: Weights of the reward functions; default 1 each.
        local_rollout_forward_batch_size: Rows of a forward pass without gradient, and of a call to `generate`.
        num_sample_generations: How often in the run a few completions are written to the log (INFO). Default 10.
        model_adapter_name: Adapter to train, if the policy has several.
        ref_adapter_name: Adapter that is the reference policy, if it is one.
        dataset_num_proc: Taken for TRL's sake: prompts are tokenised when they are needed.
        ds3_gather_for_generation: Taken for TRL's sake: DeepSpeed is not supported.
        sft_model_path: For scripts that read it; the trainer does not.
        reward_model_path: For scripts that read it; the trainer does not.
        batch_size: Computed, as are the five after it: prompts of an update over all processes.
        local_batch_size: Prompts of an update in this process.
        micro_batch_size: Rows of a forward pass with gradient over all processes.
        mini_batch_size: Rows of an optimizer step over all processes.
        local_mini_batch_size: Rows of an optimizer step in this process.
        num_total_batches: Updates of the run.
    """

    learning_rate: float = _arg(3e-6, "Initial learning rate.")
    logging_steps: float = _arg(10, "Optimizer steps between logs; a share of the run if below 1.")
    gradient_checkpointing: bool | None = _arg(None, "Recompute activations in the backward pass. Default: true.")
    bf16: bool | None = _arg(None, "bfloat16 mixed precision. Default: where a GPU supports it and fp16 is not set.")
    remove_unused_columns: bool | None = _arg(False, "Reward functions are given the dataset's other columns.")

    total_episodes: int | None = _arg(None, "Completions to sample in all.")
    num_ppo_epochs: int = _arg(4, "Passes over each rollout.")
    num_mini_batches: int = _arg(1, "Optimizer steps in a pass.")
    response_length: int = _arg(53, "Most tokens of a response.")
    temperature: float = _arg(0.7, "Temperature of sampling.")
    stop_token: str | None = _arg(None, "'eos' ends a response at the tokenizer's EOS.")
    stop_token_id: int | None = _arg(None, "Token that ends a response.")
    missing_eos_penalty: float | None = _arg(None, "Taken off the score of a response without EOS.")
    kl_coef: float = _arg(0.05, "Weight of the KL penalty.")
    kl_estimator: str = _arg("k1", "Estimator of the KL divergence: k1 or k3.")
    kl_target: float | None = _arg(None, "KL in nats a sequence that kl_coef is adapted to hold.")
    kl_adaptation: float = _arg(0.1, "Gain of the KL controller an update.")
    gamma: float = _arg(1.0, "Discount.")
    lam: float = _arg(0.95, "Decay of generalised advantage estimation.")
    cliprange: float = _arg(0.2, "Clip of the probability ratio.")
    cliprange_value: float = _arg(0.2, "Clip of the change of a value.")
    vf_coef: float = _arg(0.1, "Weight of the value loss.")
    whiten_rewards: bool = _arg(False, "Divide rewards by their deviation.")
    reward_weights: list[float] | None = _arg(None, "Weights of the reward functions.")  # noqa: RUF009  # not a list
    local_rollout_forward_batch_size: int = _arg(64, "Rows of a forward pass without gradient.")
    num_sample_generations: int = _arg(10, "How often in the run a few completions are logged.")
    model_adapter_name: str | None = _arg(None, "Adapter to train.")
    ref_adapter_name: str | None = _arg(None, "Adapter that is the reference.")
    dataset_num_proc: int | None = _arg(None, "Not used.")
    ds3_gather_for_generation: bool = _arg(True, "Not used.")
    sft_model_path: str | None = _arg(None, "Not read by the trainer.")
    reward_model_path: str | None = _arg(None, "Not read by the trainer.")
    batch_size: int | None = _arg(None, "Computed.")
    local_batch_size: int | None = _arg(None, "Computed.")
    micro_batch_size: int | None = _arg(None, "Computed.")
    mini_batch_size: int | None = _arg(None, "Computed.")
    local_mini_batch_size: int | None = _arg(None, "Computed.")
    num_total_batches: int | None = _arg(None, "Computed.")

    def __post_init__(self) -> None:
        """Checks what can be checked without a model.

        Raises:
            ConfigurationError: For a value that PPO cannot work with; it names the argument.
        """
        if self.bf16 is None:
            gpu = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = gpu and not self.fp16
        # The default, under the name that the installed transformers does not call deprecated.
        names = [name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(self, name)]
        if all(getattr(self, name) is None for name in names):
            setattr(self, names[0], True)
        super().__post_init__()
        for name in (
            "per_device_train_batch_size", "gradient_accumulation_steps", "num_ppo_epochs", "num_mini_batches", "response_length", "temperature", "local_rollout_forward_batch_size",
            "kl_adaptation",
        ):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("kl_coef", "cliprange", "cliprange_value", "vf_coef", "missing_eos_penalty", "stop_token_id"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigurationError(f"{name} must not be negative, not {value!r}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}")
        for name in ("total_episodes", "kl_target"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be above 0 or None, not {value!r}")
        if self.kl_estimator not in ("k1", "k3"):
            raise ConfigurationError(f"kl_estimator must be 'k1' or 'k3', not {self.kl_estimator!r}")
        if self.stop_token not in (None, "eos"):
            raise ConfigurationError(f"stop_token must be 'eos' or None, not {self.stop_token!r}; stop_token_id takes any token")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ConfigurationError("stop_token and stop_token_id are both set: give one")


@dataclass(frozen=True)
class Schedule:
    """How an update is cut up: numbers of rows in this process, and of steps.

    Attributes:
        rollout: Prompts of an update.
        mini_batch: Rows of an optimizer step.
        micro_batch: Rows of a forward pass with gradient: the most that fit `per_device_train_batch_size` and divide
            the mini-batch.
        epochs: Passes over a rollout.
        updates_per_epoch: Updates in a pass over the prompts.
    """

    rollout: int
    mini_batch: int
    micro_batch: int
    epochs: int
    updates_per_epoch: int

    @classmethod
    def of(cls, args: PPOConfig, prompts: int) -> Schedule:
        """Works it out of the arguments and the number of prompts.

        Raises:
            ConfigurationError: If there is no prompt, or the mini-batches do not divide the rollout.
        """
        if prompts == 0:
            raise ConfigurationError("train_dataset is empty")
        rollout = args.local_batch_size or args.per_device_train_batch_size * args.gradient_accumulation_steps
        if rollout % args.num_mini_batches:
            raise ConfigurationError(
                f"num_mini_batches={args.num_mini_batches} does not divide the {rollout} prompts of a rollout "
                "(per_device_train_batch_size * gradient_accumulation_steps)"
            )
        mini = rollout // args.num_mini_batches
        micro = next(rows for rows in range(min(mini, args.per_device_train_batch_size), 0, -1) if mini % rows == 0)
        return cls(rollout, mini, micro, args.num_ppo_epochs, max(1, prompts // (rollout * args.world_size)))

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.mini_batch // self.micro_batch

    @property
    def steps(self) -> int:
        """Optimizer steps of an update."""
        return self.epochs * (self.rollout // self.mini_batch)

    @property
    def micro_steps(self) -> int:
        """Forward passes with gradient of an update."""
        return self.steps * self.accumulation

    def written_to(self, args: PPOConfig) -> None:
        """Fills in the computed arguments; `gradient_accumulation_steps` becomes that of an optimizer step."""
        world = args.world_size
        args.local_batch_size, args.batch_size = self.rollout, self.rollout * world
        args.local_mini_batch_size, args.mini_batch_size = self.mini_batch, self.mini_batch * world
        args.micro_batch_size = self.micro_batch * world
        args.gradient_accumulation_steps = self.accumulation
        if args.total_episodes is not None:
            args.max_steps = -(-args.total_episodes // args.batch_size) * self.steps
        elif args.max_steps <= 0:
            args.max_steps = -1
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.updates_per_epoch * self.steps)
        args.num_total_batches = max(1, -(-steps // self.steps))
