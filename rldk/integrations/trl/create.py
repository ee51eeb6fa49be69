"""`create_ppo_trainer`: PPO on whatever TRL is installed, by TRL's own trainer or by `rldk.ppo`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ...exceptions import ConfigurationError
from ...metrics import nearest
from ...ppo import PPOConfig, PPOTrainer
from ...ppo.prompts import ids_of, prompt_column
from ._compat import ppo_class, trl_version
from .event_writer import EventWriterCallback
from .models import prepare, value_model_from
from .validate import validate_ppo_setup
from .value_head import fix_generation_config, is_value_head_model

__all__ = ["create_ppo_trainer"]

logger = logging.getLogger("rldk")

Backend = Literal["trl", "rldk"]

# Arguments that the trainers compute; what one trainer computed must not be given to another.
_COMPUTED = (
    "world_size", "batch_size", "local_batch_size", "micro_batch_size", "mini_batch_size", "local_mini_batch_size",
    "num_total_batches",
)
SHARED = "shared"
# The trainers' arguments that have another name here.
_OWN_NAMES = {"args": "ppo_config", "processing_class": "tokenizer"}


def create_ppo_trainer(
    model_name: Any,
    ppo_config: Any,
    train_dataset: Any,
    callbacks: Sequence[Any] | Any | None = None,
    *,
    tokenizer: Any = None,
    generation_config: Any = None,
    model: Any = None,
    ref_model: Any = None,
    reward_model: Any = None,
    value_model: Any = None,
    validate_setup: bool = True,
    event_log_path: Any = None,
    reward_funcs: Any = None,
    backend: Literal["auto", "trl", "rldk"] = "auto",
    **ppo_kwargs: Any,
) -> Any:
    """Builds a PPO trainer that works on the installed TRL.

    Models and tokenizer are completed (`prepare_models_for_ppo`, `fix_generation_config`), the set-up is checked
    (`validate_ppo_setup`), and prompts may be text, chat messages or token ids. TRL's own trainer takes token ids and
    nothing else: for it they are tokenised here and other columns are dropped.

    Args:
        model_name: A path or a name to load the policy, and what else is missing, from; or a model.
        ppo_config: `rldk.integrations.trl.PPOConfig`, TRL's or rldk.ppo's; each is converted for the other trainer.
        train_dataset: Rows with a column `prompt`, `messages`, `query`, `text` or `input_ids`.
        callbacks: One or several.
        tokenizer: The policy's; default: the one that stands with `model_name`.
        generation_config: Put on the policy. PPO itself samples by `response_length`, `temperature` and the stop token.
        model: The policy, in place of `model_name`'s. A value-head model is unwrapped, and serves as the value model if
            there is no other.
        ref_model: The reference policy; default: a frozen copy, or the policy without its adapter.
        reward_model: A sequence classifier with one output. With neither this nor `reward_funcs`, one with an untrained
            head is built, with a warning: its rewards are noise.
        value_model: The critic, or a path or a name. `"shared"`, and the default with rldk.ppo, is a value head on the policy's own
            backbone; the default with TRL's trainer is a copy of the base with an untrained head, with a warning.
        validate_setup: Whether problems are an error before anything is built; warnings are logged.
        event_log_path: Attaches an `EventWriterCallback` that writes there, unless `callbacks` has one.
        reward_funcs: One or several functions in GRPO's calling convention, in place of `reward_model`.
        backend: `"auto"` is TRL's own trainer where it has one, unless something is asked for that only rldk.ppo has:
            `reward_funcs`, a shared backbone, `resume_from_checkpoint` in the config (which transformers leaves to the
            caller: give it to `train()` too), or rldk.ppo's own `PPOConfig`. `"trl"` and
            `"rldk"` force one. The choice and its reason are logged.
        **ppo_kwargs: Further arguments of the trainer: `eval_dataset`, `peft_config`, `optimizers`, ...

    Returns:
        TRL's or rldk.ppo's `PPOTrainer`, ready to train.

    Raises:
        ConfigurationError: If the set-up cannot work; it names the arguments.
        ImportError: If `backend="trl"` and the installed TRL has no PPO.
    """
    chosen, reason = _choose(backend, ppo_config, reward_funcs, value_model)
    logger.info("PPO by %s: %s", "TRL's own trainer" if chosen == "trl" else "rldk.ppo", reason)
    trainer_class = ppo_class("PPOTrainer") if chosen == "trl" else PPOTrainer
    args = _converted(ppo_config, ppo_class("PPOConfig") if chosen == "trl" else PPOConfig)
    _check_names(ppo_kwargs, trainer_class, type(args))
    _check_prompts(train_dataset, "train_dataset")
    _check_prompts(ppo_kwargs.get("eval_dataset"), "eval_dataset")

    given = model if model is not None else model_name
    if value_model is None and is_value_head_model(given):
        value_model = given
    policy, ref_model, reward_model, tokenizer = prepare(
        given, model_name if tokenizer is None and isinstance(model_name, str) else tokenizer, generation_config,
        ref_model=ref_model, reward_model=reward_model, peft_config=ppo_kwargs.get("peft_config"),
        with_reward=reward_funcs is None,
    )
    if isinstance(value_model, str) and value_model != SHARED:
        value_model = value_model_from(value_model, stacklevel=3)
    elif isinstance(value_model, str):
        value_model = None
    elif value_model is None and chosen == "trl":
        value_model = value_model_from(policy, stacklevel=3)
    for other in (value_model, reward_model):
        if other is not None:
            fix_generation_config(other, tokenizer)

    eval_dataset = ppo_kwargs.pop("eval_dataset", None)
    if chosen == "trl" and eval_dataset is None and getattr(args, "num_sample_generations", 0) > 0:
        # TRL 0.23 fails on it in the first update, later versions do nothing.
        logger.info("num_sample_generations is set to 0: there is no eval_dataset to sample from")
        args.num_sample_generations = 0
    if chosen == "trl":
        train_dataset = _tokenised(train_dataset, tokenizer, "train_dataset")
        eval_dataset = None if eval_dataset is None else _tokenised(eval_dataset, tokenizer, "eval_dataset")
    if validate_setup:
        _validate(
            policy, ref_model, reward_model, value_model, tokenizer, args=args, train_dataset=train_dataset,
            eval_dataset=eval_dataset, reward_funcs=reward_funcs, peft_config=ppo_kwargs.get("peft_config"),
            reward_tokenizer=ppo_kwargs.get("reward_processing_class"), backend=chosen,
        )
    if chosen == "rldk":
        ppo_kwargs["reward_funcs"] = reward_funcs
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]
    if event_log_path is not None and not any(isinstance(callback, EventWriterCallback) for callback in callbacks):
        callbacks.append(EventWriterCallback(event_log_path))
    return trainer_class(
        args=args, processing_class=tokenizer, model=policy, ref_model=ref_model, reward_model=reward_model,
        train_dataset=train_dataset, value_model=value_model, eval_dataset=eval_dataset, callbacks=callbacks, **ppo_kwargs,
    )


class _Choice(NamedTuple):
    backend: Backend
    reason: str


def _choose(backend: str, config: Any, reward_funcs: Any, value_model: Any) -> _Choice:
    """Whose trainer, and why."""
    if backend not in ("auto", "trl", "rldk"):
        raise ConfigurationError(f"backend must be 'auto', 'trl' or 'rldk', not {backend!r}")
    wants = [
        text
        for wanted, text in (
            (reward_funcs is not None, "reward_funcs"),
            (isinstance(value_model, str) and value_model == SHARED, f"value_model={SHARED!r}"),
            (bool(getattr(config, "resume_from_checkpoint", None)), "resume_from_checkpoint"),
        )
        if wanted
    ]
    if backend == "rldk":
        return _Choice("rldk", "backend='rldk'")
    if backend == "trl":
        if wants:
            raise ConfigurationError(f"backend='trl', but TRL's own PPO has no {' and no '.join(wants)}; use backend='rldk'")
        return _Choice("trl", "backend='trl'")
    if wants:
        return _Choice("rldk", f"{' and '.join(wants)}, which TRL's own trainer does not have")
    if isinstance(config, PPOConfig):
        return _Choice("rldk", "ppo_config is rldk.ppo's")
    try:
        ppo_class("PPOTrainer")
    except ImportError:
        return _Choice("rldk", f"TRL {trl_version()} ships no PPO")
    return _Choice("trl", f"TRL {trl_version()} has one")


def _own_settings(config: PPOConfig) -> list[str]:
    """Names of arguments that only rldk.ppo has and that are not at their defaults."""
    return [
        field.name
        for field in dataclasses.fields(PPOConfig)
        if field.name in ("kl_target", "kl_adaptation", "reward_weights") and getattr(config, field.name) != field.default
    ]


def _converted(config: Any, wanted: type) -> Any:
    """The same settings as the wanted class; a copy in any case, since trainers write into their arguments.

    Raises:
        ConfigurationError: If it is no configuration, or has settings that the wanted class does not know.
    """
    if isinstance(config, wanted):
        return copy.copy(config)
    if not dataclasses.is_dataclass(config) or isinstance(config, type) or not hasattr(config, "output_dir"):
        raise ConfigurationError(
            f"ppo_config must be a PPOConfig (from rldk.integrations.trl import PPOConfig), not {type(config).__name__}"
        )
    names = {field.name for field in dataclasses.fields(wanted) if field.init} - set(_COMPUTED)
    unknown = [name for name in _own_settings(config) if name not in names] if isinstance(config, PPOConfig) else []
    if unknown:
        raise ConfigurationError(f"ppo_config sets {', '.join(unknown)}, which TRL's own PPO does not have; use backend='rldk'")
    values = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init and field.name in names
    }
    return wanted(**values)


def _check_names(given: Mapping[str, Any], trainer_class: type, config_class: type) -> None:
    """Arguments that the trainer does not take, in words."""
    known = list(inspect.signature(trainer_class).parameters)
    for name in given:
        if name in _OWN_NAMES:
            raise ConfigurationError(f"{name} is given to create_ppo_trainer as {_OWN_NAMES[name]}")
        if name in known:
            continue
        if name in {field.name for field in dataclasses.fields(config_class)}:
            raise ConfigurationError(f"{name} is an argument of PPOConfig: set it in ppo_config")
        raise ConfigurationError(f"{trainer_class.__name__} takes no argument {name!r}.{nearest(name, known)}")


def _check_prompts(dataset: Any, argument: str) -> None:
    """That there are prompts, before any model is loaded."""
    if hasattr(dataset, "__len__") and not isinstance(dataset, Mapping):
        if len(dataset) == 0:
            raise ConfigurationError(f"{argument} is empty")
        prompt_column(dataset[0], argument)


def _validate(*models: Any, **setup: Any) -> None:
    found = validate_ppo_setup(*models, **setup)
    for text in found["warnings"]:
        logger.warning("PPO set-up: %s", text)
    for text in found["recommendations"]:
        logger.info("PPO set-up: %s", text)
    if not found["valid"]:
        problems = "\n".join(f"  - {text}" for text in found["issues"])
        raise ConfigurationError(f"this PPO set-up cannot work (validate_setup=False skips the check):\n{problems}")


def _tokenised(dataset: Any, tokenizer: Any, argument: str) -> Any:
    """The dataset as TRL's own trainer takes it: `input_ids` and nothing else."""
    if not hasattr(dataset, "map") or isinstance(dataset, Mapping) or not hasattr(dataset, "__len__"):
        raise ConfigurationError(f"{argument} must be a datasets.Dataset, not {type(dataset).__name__}")
    column = prompt_column(dataset[0], argument)
    columns = list(getattr(dataset, "column_names", None) or dataset[0])
    others = [name for name in columns if name not in (column, "input_ids")]
    if column == "input_ids" and not others:
        return dataset
    if others:
        logger.info("%s: the columns %s are dropped, which TRL's own PPO trainer cannot take", argument, ", ".join(others))
    return dataset.map(
        lambda row: {"input_ids": ids_of(row[column], tokenizer)}, remove_columns=[name for name in columns if name != "input_ids"]
    )
