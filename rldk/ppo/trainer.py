"""PPO for language models on transformers' Trainer.

The Trainer's loop is kept: it draws batches, accumulates, clips, steps, logs, evaluates, saves and calls every hook.
A batch is the prompts of a whole update, drawn once for each forward pass with gradient; `_prepare_inputs` samples
responses when an update begins and hands out the micro-batches of the rollout after that. So `global_step` counts
optimizer steps.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GenerationConfig, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..exceptions import ConfigurationError
from ._checks import check_data, check_parts
from ._sampler import UpdateSampler, unchanged
from ._statistics import Averages, mean_of, response_table, rollout_metrics
from .config import PPOConfig, Schedule
from .losses import adapted_kl_coef, explained_variance, policy_loss, value_loss
from .models import (
    PolicyAndValue,
    check_apart,
    choose_adapters,
    freeze,
    frozen_copy,
    judge_tokens,
    only_these_settings,
    without_dropout,
)
from .prompts import encode
from .rollout import Experience, MicroBatch, Rollout, finished
from .scoring import RewardFunctions, RewardModel, Scorer, Scores

__all__ = ["PPOTrainer"]

logger = logging.getLogger("rldk")

_STATE_FOLDER = "ppo_state"  # in a checkpoint: apart from the weights


class PPOTrainer(Trainer):  # type: ignore[misc]  # transformers' base class is untyped on some versions
    """Proximal policy optimisation of a language model against a reward model or reward functions.

    It logs TRL's names for PPO, averaged over the tokens and responses that were there, besides `loss`, `grad_norm`,
    `val/explained_variance`, `completions/*`, `rewards/<function>/*` and `num_tokens`. What is of a rollout
    (`objective/*`, `completions/*`, `rewards/*`) is logged with the first log after it.

    Args:
        args: The arguments; TRL's own `PPOConfig` must be converted (`create_ppo_trainer` does).
        processing_class: The policy's tokenizer.
        model: The policy: a causal language model, a PEFT model of one, or a path to load one from.
        ref_model: The reference policy, which is frozen. None: the policy without its adapter if it has one, else a
            copy of it.
        reward_model: A sequence classifier with one output, which is frozen; or `reward_funcs`.
        train_dataset: Rows with prompts in `prompt`, `messages`, `query`, `text` or `input_ids`.
        value_model: The critic: a model with `score`, trained beside the policy. None puts a value head on the
            policy's own backbone.
        data_collator: Not used: prompts are padded when they are tokenised.
        eval_dataset: Prompts to be answered and scored at evaluations, always from the same random state.
        optimizers: An optimizer and a scheduler, in place of those that `args` describe.
        callbacks: Callbacks.
        peft_config: An adapter to put on the policy.
        reward_funcs: One or several functions in GRPO's calling convention (`scoring.RewardFunctions`).
        reward_processing_class: The reward model's tokenizer, where it is not the policy's.

    Raises:
        ConfigurationError: Before anything is trained, for what cannot work; it names the argument.
    """

    _tag_names = ["rldk", "ppo"]
    _name = "PPO"
    model: Any  # a `PolicyAndValue`

    def __init__(
        self,
        args: PPOConfig,
        processing_class: Any,
        model: Any,
        ref_model: Any | None = None,
        reward_model: Any | None = None,
        train_dataset: Any = None,
        value_model: Any | None = None,
        data_collator: Any | None = None,
        eval_dataset: Any | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[Any] | None = None,
        peft_config: Any | None = None,
        *,
        reward_funcs: Any | None = None,
        reward_processing_class: Any | None = None,
    ) -> None:
        check_parts(args, model, ref_model, reward_model, reward_funcs, value_model, train_dataset)
        args = copy.copy(args)  # the computed arguments are this trainer's own
        if args.gradient_checkpointing:  # transformers below 5 chose the reentrant kind, which DDP and adapters do not bear
            args.gradient_checkpointing_kwargs = {"use_reentrant": False, **(args.gradient_checkpointing_kwargs or {})}
        self.schedule = Schedule.of(args, len(train_dataset))
        self.schedule.written_to(args)
        if args.n_gpu > 1:
            raise ConfigurationError(
                f"this process sees {args.n_gpu} GPUs: start with `accelerate launch` or torchrun, or set CUDA_VISIBLE_DEVICES=0"
            )
        if processing_class is None or processing_class.eos_token_id is None:
            raise ConfigurationError("processing_class has no eos_token: set tokenizer.eos_token")
        check_data(args, processing_class, train_dataset, eval_dataset)

        if isinstance(model, str):
            model = AutoModelForCausalLM.from_pretrained(model)
        if peft_config is not None:
            from peft import get_peft_model  # here, since PEFT is an extra

            if hasattr(model, "peft_config"):
                raise ConfigurationError("peft_config is given, but model already has an adapter")
            model = get_peft_model(model, peft_config, adapter_name=args.model_adapter_name or "default")
        has_adapter = hasattr(model, "peft_config") and hasattr(model, "disable_adapter")
        choose_adapters(model, args.model_adapter_name, args.ref_adapter_name)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigurationError("model has no parameter that is trained; PeftModel.from_pretrained takes is_trainable=True")
        if ref_model is None and not has_adapter:
            ref_model = frozen_copy(model)
        check_apart({"model": model, "value_model": value_model}, {"ref_model": ref_model, "reward_model": reward_model})
        without_dropout(model, ref_model, reward_model, value_model)
        self.ref_model = None if ref_model is None else freeze(ref_model)
        self.reward_model = None if reward_model is None else freeze(reward_model)
        self.scorer: Scorer
        if reward_funcs is not None:
            self.scorer = RewardFunctions(reward_funcs, args.reward_weights, processing_class)
        else:
            self.scorer = RewardModel(
                reward_model, args.local_rollout_forward_batch_size, processing_class, reward_processing_class
            )

        self.eos_token_id = processing_class.eos_token_id
        self.stop_token_id = self.eos_token_id if args.stop_token == "eos" else args.stop_token_id
        self.pad_token_id = self.eos_token_id if processing_class.pad_token_id is None else processing_class.pad_token_id
        self._eval_table: list[Tensor] = []  # of the batches of an evaluation
        self._eval_parts: list[str] = []
        self._begin(args)

        super().__init__(
            model=PolicyAndValue(model, value_model), args=args, data_collator=unchanged, train_dataset=train_dataset,
            eval_dataset=eval_dataset, processing_class=processing_class, callbacks=callbacks, optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer then divides the loss by the accumulation steps
        if str(self.accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ConfigurationError(f"rldk.ppo trains in one process or under DDP, not {self.accelerator.distributed_type}")
        for frozen in (self.ref_model, self.reward_model):
            if frozen is not None:
                frozen.to(self.accelerator.device)

    def _begin(self, args: PPOConfig) -> None:
        """Puts PPO's own state to that of a run that begins."""
        self.kl_coef = args.kl_coef
        self.episode = 0
        self.update = 0
        self._micro_steps = 0  # forward passes with gradient since the start of the run
        self._experience: Experience | None = None
        self._totals = Averages()
        self._rollouts: list[dict[str, float]] = []  # what is to be logged of those since the last log
        self._episodes_before = 0
        self._began: float | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `Trainer.train`; the run depends on `seed`, and not on what was drawn before it."""
        self._begin(self.args)
        # Two processes that draw the same numbers would give the same answers to the same prompt.
        set_seed(self.args.seed, device_specific=True)
        return super().train(*args, **kwargs)

    # Prompts

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of an update's prompts, each as often as an update has forward passes with gradient."""
        schedule = self.schedule
        steps_per_epoch = schedule.updates_per_epoch * schedule.steps
        sampler = UpdateSampler(
            len(self.train_dataset), schedule.rollout * self.args.world_size, schedule.micro_steps, self.args.seed,
            lambda: self.state.global_step // steps_per_epoch,
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset, batch_size=schedule.rollout, sampler=sampler, collate_fn=unchanged,
            num_workers=self.args.dataloader_num_workers,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> DataLoader[Any]:
        """Batches of `per_device_eval_batch_size` prompts, in order."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ConfigurationError("an evaluation needs an eval_dataset")
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=self.args.eval_batch_size, collate_fn=unchanged)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    # Rollouts

    def _prepare_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> MicroBatch:
        """The next micro-batch; at the start of an update its prompts are answered first."""
        index = self._micro_steps % self.schedule.micro_steps
        if index == 0 or self._experience is None:  # None: resumed from a checkpoint without the rollout
            self._experience = self._collect(inputs)
        self._micro_steps += 1
        return self._experience.micro_batch(index, self.schedule)

    def _collect(self, rows: Sequence[Mapping[str, Any]]) -> Experience:
        """Samples an update's rollout and notes what is to be logged of it."""
        args = self.args
        if self._began is None:
            self._began = time.perf_counter()
        rollout, scores, ended = self._rollout(rows)
        if not bool(scores.total.isfinite().all()):
            self._complain(scores)
        experience = Experience.of(
            rollout, epochs=args.num_ppo_epochs, kl_coef=self.kl_coef, kl_estimator=args.kl_estimator, gamma=args.gamma,
            lam=args.lam, whiten_rewards=args.whiten_rewards,
        )
        # The only place at which an update waits for the device.
        table = self.accelerator.gather(self._table(experience, rollout, scores, ended)).cpu()
        metrics = self._metrics_of(table, scores.parts)
        explained = explained_variance(experience.values, experience.returns, experience.value_mask)
        explained = self.accelerator.gather(explained.reshape(1)).mean().item()
        if not math.isnan(explained):  # the returns vary
            metrics["val/explained_variance"] = explained
        self.episode += args.batch_size
        self.update += 1
        self.state.num_input_tokens_seen += int(metrics.pop("tokens"))
        if args.kl_target is not None:
            metrics["objective/kl_coef"] = self.kl_coef
            self.kl_coef = adapted_kl_coef(self.kl_coef, metrics["objective/kl"], args.kl_target, args.kl_adaptation)
        self._rollouts.append(metrics)
        every = max(1, args.num_total_batches // args.num_sample_generations) if args.num_sample_generations > 0 else 0
        if every and (self.update - 1) % every == 0 and self.accelerator.is_main_process:
            self._show(rollout)
        return experience

    @torch.no_grad()
    def _rollout(self, rows: Sequence[Mapping[str, Any]], values: bool = True) -> tuple[Rollout, Scores, Tensor]:
        """Answers prompts and has the answers judged by all models.

        Returns:
            The rollout; the scores, before penalties; and (B,), True where a response has its stop token.
        """
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        prompts = encode(rows, self.processing_class, self.pad_token_id, self.accelerator.device)
        with _evaluating(model), self.accelerator.autocast():
            responses = self._generate(model.policy, prompts.input_ids, prompts.attention_mask)
            mask, ended = finished(responses, self.stop_token_id)
            responses = torch.where(mask, responses, self.pad_token_id)
            ids = torch.cat([prompts.input_ids, responses], dim=1)
            attention = torch.cat([prompts.attention_mask, mask.long()], dim=1)
            length, size = responses.shape[1], args.local_rollout_forward_batch_size
            judged = []
            for at in range(0, len(ids), size):
                batch = (ids[at : at + size], attention[at : at + size], length, args.temperature)
                own = model(*batch, value=values, entropy=False)
                judged.append((own.logprobs, own.values, self._reference(model, batch)))
            scores = self.scorer(rows, prompts, responses, mask, self.state)
        logprobs, old_values, ref_logprobs = (torch.cat(parts) for parts in zip(*judged, strict=True))
        total = scores.total
        total = torch.where(total.isfinite(), total, torch.nan)  # left out of the training
        if args.missing_eos_penalty is not None:
            has_eos = ((responses == self.eos_token_id) & mask).any(dim=1)
            total = torch.where(has_eos, total, total - args.missing_eos_penalty)
        return Rollout(ids, attention, mask, logprobs, ref_logprobs, old_values, total), scores, ended

    def _generate(self, policy: Any, ids: Tensor, attention: Tensor) -> Tensor:
        """Samples responses, (B, T), in batches of `local_rollout_forward_batch_size`."""
        args, size = self.args, self.args.local_rollout_forward_batch_size
        settings = GenerationConfig(
            max_new_tokens=args.response_length, temperature=args.temperature, top_k=0, top_p=1.0, do_sample=True,
            eos_token_id=self.stop_token_id, pad_token_id=self.pad_token_id, use_cache=True,
        )
        parts = []
        with only_these_settings(policy, settings):
            for at in range(0, len(ids), size):
                out = policy.generate(
                    input_ids=ids[at : at + size], attention_mask=attention[at : at + size], generation_config=settings
                )
                parts.append(out[:, ids.shape[1] :])
        length = max(part.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part, (0, length - part.shape[1]), value=self.pad_token_id) for part in parts]
        return torch.cat(padded)

    def _reference(self, model: PolicyAndValue, batch: tuple[Tensor, Tensor, int, float]) -> Tensor:
        """Log-probabilities of the reference policy."""
        if self.ref_model is not None:
            return judge_tokens(self.ref_model, *batch, with_entropy=False)[0]
        with model.reference(self.args.ref_adapter_name) as policy:
            return judge_tokens(policy, *batch, with_entropy=False)[0]

    def _table(self, experience: Experience, rollout: Rollout, scores: Scores, ended: Tensor) -> Tensor:
        eos = (rollout.input_ids[:, -rollout.mask.shape[1] :] == self.eos_token_id) & rollout.mask
        return response_table(experience, rollout, scores, ended, eos)

    def _metrics_of(self, table: Tensor, parts: Iterable[str]) -> dict[str, float]:
        metrics = rollout_metrics(table, parts, self.kl_coef)
        if self.stop_token_id is None:
            del metrics["completions/clipped_ratio"]  # each response is as long as it was to be
        return metrics

    def _complain(self, scores: Scores) -> None:
        """Responses without a score: an error in the first rollout, a warning and no training on them later."""
        bad = (~scores.total.isfinite()).nonzero().flatten().tolist()
        source = "reward_model" if self.reward_model is not None else f"reward_funcs ({', '.join(scores.parts)})"
        text = f"{source} gave no finite score for {len(bad)} of {len(scores.total)} responses (the first is number {bad[0]})"
        if self.update == 0:
            raise ConfigurationError(text)
        logger.warning("rldk: %s at step %d; they are left out of the training", text, self.state.global_step)

    def _show(self, rollout: Rollout) -> None:
        """Writes a few completions to the log."""
        length = rollout.mask.shape[1]
        for row in range(min(3, len(rollout.scores))):
            ids, real = rollout.input_ids[row], rollout.attention_mask[row].bool()
            prompt = self.processing_class.decode(ids[:-length][real[:-length]], skip_special_tokens=True)
            answer = self.processing_class.decode(ids[-length:][real[-length:]])
            logger.info("update %d, score %.3g: %r -> %r", self.update, float(rollout.scores[row]), prompt[-200:], answer[:500])

    # The loss

    def compute_loss(
        self, model: Any, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Policy loss plus `vf_coef` times value loss, each a mean over the tokens of the whole mini-batch."""
        args = self.args
        out = model(inputs.input_ids, inputs.attention_mask, inputs.mask.shape[1], args.temperature)
        policy = policy_loss(out.logprobs, inputs.logprobs, inputs.advantages, inputs.mask, args.cliprange)
        value = value_loss(out.values, inputs.values, inputs.returns, inputs.value_mask, args.cliprange_value)
        with torch.no_grad():
            entropy = (out.entropy * inputs.mask).sum()
            self._totals.add(policy, value, entropy, inputs.mask.sum(), inputs.value_mask.sum())
        # Means over the mini-batch: the Trainer divides by the number of its micro-batches, so that is put back.
        loss: Tensor = policy.loss / inputs.tokens + args.vf_coef * value.loss / inputs.states
        return loss * self.schedule.accumulation

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured since the log before to a training log."""
        if "loss" in logs and self._totals:
            logs = {**logs, **self._totals.metrics(self.accelerator), **mean_of(self._rollouts)}
            if self._began is not None:
                logs["eps"] = int((self.episode - self._episodes_before) / (time.perf_counter() - self._began))
            logs["episode"] = self.episode
            logs["num_tokens"] = self.state.num_input_tokens_seen
            if "learning_rate" in logs:
                logs["lr"] = logs["learning_rate"]
            self._totals, self._rollouts = Averages(), []
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Answers and scores a batch of evaluation prompts; there is no loss."""
        rollout, scores, ended = self._rollout(inputs, values=False)
        experience = Experience.of(
            rollout, epochs=1, kl_coef=self.kl_coef, kl_estimator=self.args.kl_estimator, gamma=1.0, lam=1.0
        )
        table = self.accelerator.gather_for_metrics(self._table(experience, rollout, scores, ended)).cpu()
        self._eval_table.append(table)
        self._eval_parts = list(scores.parts)
        return None, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the scores of the answers to the metrics; training's random state is left as it was."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._eval_table = []
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed + self.accelerator.process_index)
            output = super().evaluation_loop(*args, **kwargs)
        if self._eval_table:
            metrics = self._metrics_of(torch.cat(self._eval_table), self._eval_parts)
            del metrics["tokens"]
            output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
            self._eval_table = []
        return output

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        """Saves the policy as a model of its own, and the critic beside it."""
        folder = output_dir or self.args.output_dir
        with self._policy_alone() as part:
            super()._save(folder, None)
        if self.args.should_save:  # transformers 5 comes here in every process
            part.save_value(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any | None = None) -> None:
        with self._policy_alone() as part:
            super()._load_from_checkpoint(resume_from_checkpoint)
        part.load_value(resume_from_checkpoint)

    @contextmanager
    def _policy_alone(self) -> Iterator[PolicyAndValue]:
        """While it lasts, the policy is the Trainer's model, which then knows how to save and load it."""
        whole = self.model
        part: PolicyAndValue = self.accelerator.unwrap_model(whole)
        self.model = part.policy
        try:
            yield part
        finally:
            self.model = whole

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Also saves what PPO itself is in the middle of, for each process."""
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir) / _STATE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        rank = self.accelerator.process_index
        state = {
            "kl_coef": self.kl_coef, "episode": self.episode, "update": self.update, "micro_steps": self._micro_steps,
            "schedule": self._plan(), "temperature": self.args.temperature, "rollouts": self._rollouts, "totals": self._totals.state(),
        }
        (folder / f"state_{rank}.json").write_text(json.dumps(state), encoding="utf-8")
        if self._experience is not None and self._micro_steps % self.schedule.micro_steps:
            self._experience.save(folder / f"rollout_{rank}.safetensors")

    def _plan(self) -> dict[str, int]:
        """What a run and its continuation must have in common."""
        return {**vars(self.schedule), "processes": self.args.world_size}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder, rank = Path(checkpoint) / _STATE_FOLDER, self.accelerator.process_index
        path = folder / f"state_{rank}.json"
        if not path.is_file():
            logger.warning("rldk: %s has no state of PPO for process %d: a new rollout begins at once", checkpoint, rank)
            # Of the checkpoint and not of `self.state`, which transformers 4 restores after this.
            steps = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
            self._micro_steps = steps * self.schedule.accumulation
            self.update = steps // self.schedule.steps
            self.episode = self._episodes_before = self.update * self.args.batch_size
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["schedule"] != self._plan():
            raise ConfigurationError(
                f"the checkpoint was made with other batch sizes: {state['schedule']}, these are {self._plan()}"
            )
        if self.args.kl_target is not None:  # else it is an argument, which may be another than it was
            self.kl_coef = state["kl_coef"]
        self.episode, self.update = state["episode"], state["update"]
        self._micro_steps, self._rollouts = state["micro_steps"], state["rollouts"]
        self._totals = Averages.of(state["totals"], self.accelerator.device)
        self._episodes_before = self.episode
        rollout = folder / f"rollout_{rank}.safetensors"
        if rollout.is_file() and state["temperature"] != self.args.temperature:
            logger.warning("rldk: temperature was %s and is %s: a new rollout begins", state["temperature"], self.args.temperature)
        elif rollout.is_file():
            self._experience = Experience.load(rollout, self.accelerator.device)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, also to be left when a reward function fails.

    Generation keeps a cache only without gradient checkpointing, which is off in this mode.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
