"""What `PPOTrainer` refuses before it builds anything: each an error that names the argument."""

from __future__ import annotations

from typing import Any

from ..exceptions import ConfigurationError
from .config import PPOConfig
from .prompts import check_first_prompt

__all__ = ["check_data", "check_parts"]


def check_parts(
    args: Any, model: Any, ref_model: Any, reward_model: Any, reward_funcs: Any, value_model: Any, train_dataset: Any
) -> None:
    """That all that is needed is there, once, and of the right kind.

    Raises:
        ConfigurationError: If not.
    """
    if not isinstance(args, PPOConfig):
        raise ConfigurationError(f"args must be rldk.ppo.PPOConfig, not {type(args).__module__}.{type(args).__name__}")
    if train_dataset is None:
        raise ConfigurationError("train_dataset is required")
    if ref_model is not None and ref_model is model:
        raise ConfigurationError("ref_model is the same object as model: give a copy, or None")
    if (reward_model is None) == (reward_funcs is None):
        raise ConfigurationError("give reward_model or reward_funcs, one of the two")
    if args.reward_weights is not None and reward_funcs is None:
        raise ConfigurationError("reward_weights are weights of reward_funcs, which are not given")
    if not hasattr(train_dataset, "__len__"):
        raise ConfigurationError("train_dataset has no length; PPO needs one to plan its updates")
    if value_model is not None and value_model is reward_model:
        raise ConfigurationError("value_model is the same object as reward_model: one is trained, the other frozen; give a copy")
    if args.neftune_noise_alpha is not None:
        raise ConfigurationError("neftune_noise_alpha is noise for supervised training: PPO does not take it")
    if args.include_for_metrics:
        raise ConfigurationError(f"include_for_metrics is {args.include_for_metrics}: an evaluation of PPO has scores alone")


def check_data(args: PPOConfig, tokenizer: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """That prompts can be read, and evaluations made as they are asked for.

    Raises:
        ConfigurationError: If not.
    """
    check_first_prompt(train_dataset, tokenizer, "train_dataset")
    for name, dataset in eval_dataset.items() if isinstance(eval_dataset, dict) else [("", eval_dataset)]:
        argument = f"eval_dataset[{name!r}]" if name else "eval_dataset"
        if dataset is not None and not hasattr(dataset, "__len__"):
            raise ConfigurationError(f"{argument} has no length: give a map-style dataset")
        if dataset is not None and len(dataset):
            check_first_prompt(dataset, tokenizer, argument)
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ConfigurationError(f"eval_strategy is {str(args.eval_strategy)!r}, but there is no eval_dataset")
    if args.metric_for_best_model in ("loss", "eval_loss"):  # what transformers takes if nothing is said
        raise ConfigurationError(
            f"metric_for_best_model is {args.metric_for_best_model!r}, but an evaluation of PPO has no loss: 'objective/scores', say"
        )
