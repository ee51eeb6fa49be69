"""`validate_ppo_setup`: what is wrong with a PPO run before it costs an hour to find out.

The checks stand in `_check_models` (tokenizer, models) and `_check_run` (rewards, data, arguments), a function each. An *issue*
means that training fails or learns nothing; a *warning*, that it runs and probably does not do what was meant; a *recommendation*
is advice on a run that works.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from ...exceptions import ConfigurationError
from . import _check_models, _check_run, _compat
from ._ppo_setup import Setup

__all__ = ["validate_ppo_setup"]

logger = logging.getLogger("rldk")


def validate_ppo_setup(
    model: Any,
    ref_model: Any = None,
    reward_model: Any = None,
    value_model: Any = None,
    tokenizer: Any = None,
    *,
    args: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    reward_funcs: Any = None,
    peft_config: Any = None,
    reward_tokenizer: Any = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Checks models, tokenizer, rewards, data and arguments of a PPO run against each other. Changes nothing.

    Args:
        model: The policy.
        ref_model: The reference; None is a copy of the policy.
        reward_model: What scores responses, unless `reward_funcs` do.
        value_model: The critic.
        tokenizer: The policy's.
        args: A `PPOConfig` of TRL or of `rldk.ppo`.
        train_dataset: Prompts; the first 64 are looked at.
        eval_dataset: Prompts for sample generations.
        reward_funcs: A function or a list of them.
        peft_config: The adapter that the trainer will put on the policy.
        reward_tokenizer: The reward model's own, if it has one.
        backend: Whose trainer it is for: ``"trl"`` or ``"rldk"``. None or ``"auto"``: that of `args`; else rldk's if there are
            `reward_funcs`, which TRL's does not take, or if the installed TRL has no PPO; else TRL's.

    Returns:
        ``{"valid": bool, "issues": [...], "warnings": [...], "recommendations": [...]}``. Valid means no issues. Each sentence
        names the argument, the value seen, and what to do.

    Raises:
        ConfigurationError: For an unknown `backend`, and for nothing else: what cannot be checked is said so.
    """
    setup = Setup(
        model=model, ref_model=ref_model, reward_model=reward_model, value_model=value_model, tokenizer=tokenizer, args=args,
        train_dataset=train_dataset, eval_dataset=eval_dataset, reward_funcs=reward_funcs, peft_config=peft_config,
        reward_tokenizer=reward_tokenizer, backend=_backend(backend, args, reward_funcs),
    )
    found: dict[str, list[str]] = {"issues": [], "warnings": [], "recommendations": []}
    for check in (*_check_models.CHECKS, *_check_run.CHECKS):
        try:
            for level, sentence in check(setup):
                found[level].append(sentence)
        except Exception as error:  # models, data and functions are anyone's: one that cannot be looked at is no fault
            logger.debug("rldk: the check %s could not be made", check.__name__, exc_info=error)
            found["recommendations"].append(f"{check.__name__} could not be checked ({type(error).__name__}: {error}): look at it yourself")
    return {"valid": not found["issues"], **found}


def _backend(backend: str | None, args: Any, reward_funcs: Any) -> Literal["trl", "rldk"]:
    if backend not in (None, "auto", "trl", "rldk"):
        raise ConfigurationError(f"backend is {backend!r}: it can be 'trl', 'rldk' or 'auto'")
    home = type(args).__module__.partition(".")[0]
    if backend == "rldk" or (backend != "trl" and home == "rldk"):
        return "rldk"
    if backend == "trl" or home == "trl":
        return "trl"
    if reward_funcs is not None:
        return "rldk"
    try:
        _compat.ppo_class("PPOTrainer")
    except ImportError:
        return "rldk"
    return "trl"
