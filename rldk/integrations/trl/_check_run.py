"""What can be wrong with the rewards, the data and the arguments of a PPO run. Each check yields what it found."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from packaging.version import Version

from ...exceptions import ConfigurationError
from ...ppo.prompts import PROMPT_COLUMNS, ids_of, prompt_column
from . import _compat
from ._ppo_setup import Check, Findings, Setup

__all__ = ["CHECKS"]

_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")  # to reward functions, beside the dataset's columns


def reward_source(setup: Setup) -> Findings:
    """Exactly one thing may score the responses."""
    if setup.reward_model is None and setup.reward_funcs is None:
        yield "issues", "reward_model and reward_funcs are both None: nothing would score the responses; pass one of them"
    elif setup.reward_model is not None and setup.reward_funcs is not None:
        yield "issues", "reward_model and reward_funcs are both given: pass one of them"


def reward_functions(setup: Setup) -> Findings:
    """Functions that cannot be called as reward functions are."""
    if setup.reward_funcs is None:
        return
    given = list(setup.reward_funcs) if isinstance(setup.reward_funcs, (list, tuple)) else [setup.reward_funcs]
    if not given:
        yield "issues", "reward_funcs is empty: pass at least one function"
    weights = setup.arg("reward_weights")
    if weights is not None and len(weights) != len(given):
        yield "issues", f"args.reward_weights has {len(weights)} numbers for {len(given)} reward_funcs: give one each"
    for index, function in enumerate(given):
        name = f"reward_funcs[{index}]"
        if not callable(function) or isinstance(function, torch.nn.Module):
            yield "issues", f"{name} is {function!r:.60}, no function: pass functions here and a model as reward_model"
        elif inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # its kind is asked, not whether
            yield "issues", f"{name} is a coroutine function: PPO calls rewards synchronously; make it a plain function"
        else:
            yield from _signature(setup, name, function)


def _signature(setup: Setup, name: str, function: Any) -> Findings:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a builtin does not tell
    parameters = signature.parameters.values()
    keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    positional = {p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty}
    form = f"{name} has the signature {signature}"
    unknown = required - set(_GIVEN) - set(setup.columns or ())
    if positional:
        yield "issues", f"{form}: it is called with keywords alone; write it as f(prompts, completions, **kwargs)"
    elif not everything and not keywords & set(_GIVEN[:3]):
        yield "issues", f"{form}: it takes neither prompts nor completions; write it as f(prompts, completions, **kwargs)"
    elif unknown and (setup.columns is not None or setup.train_dataset is None):
        yield "issues", (
            f"{form}: nothing supplies {', '.join(sorted(unknown))}; it is given prompts, completions and the dataset's columns "
            f"({', '.join(setup.columns or []) or 'no dataset was passed'})"
        )
    elif not everything and not {"prompts", "completions"} <= keywords:
        yield "recommendations", f"{form}: with **kwargs it would serve GRPO too, which passes every argument to every function"


def data(setup: Setup) -> Findings:
    """Data without rows, without prompts, or smaller than a batch."""
    dataset = setup.train_dataset
    if dataset is None:
        return
    if not hasattr(dataset, "__len__"):
        yield "issues", f"train_dataset is a {type(dataset).__name__} without a length, which PPO needs to plan its updates: pass a map-style dataset"
        return
    if len(dataset) == 0:
        yield "issues", "train_dataset is empty: pass prompts"
        return
    columns = setup.columns
    if columns is not None and not set(columns) & set(PROMPT_COLUMNS):
        yield "issues", f"train_dataset has the columns {columns}, none of which holds prompts: name it one of {', '.join(PROMPT_COLUMNS)}"
    elif columns is not None and setup.on_trl and set(columns) - {"input_ids", "attention_mask"}:
        yield "recommendations", (
            f"train_dataset has the columns {columns}: TRL's PPOTrainer reads input_ids and fails on text columns; "
            "create_ppo_trainer tokenises them"
        )
    for number, row in enumerate(setup.rows if columns is not None and set(columns) & set(PROMPT_COLUMNS) else []):
        try:
            ids_of(row[prompt_column(row, "train_dataset")], setup.tokenizer)
        except ConfigurationError as error:
            yield "issues", f"train_dataset[{number}]: {error}"
            break
    if setup.rollout is not None and len(dataset) < setup.rollout:
        sizes = (
            f"train_dataset has {len(dataset)} rows and an update takes {setup.rollout} (per_device_train_batch_size="
            f"{setup.arg('per_device_train_batch_size')} * gradient_accumulation_steps={setup.arg('gradient_accumulation_steps')})"
        )
        if setup.on_trl:
            yield "issues", f"{sizes}: TRL's trainer drops the incomplete batch and looks for the next one for ever; lower one of them"
        else:
            yield "warnings", f"{sizes}: prompts are repeated within an update; lower one of them"


def batches(setup: Setup) -> Findings:
    """Mini-batches that do not divide the batch, or are too small to whiten."""
    parts = setup.arg("num_mini_batches", 1)
    if setup.rollout is None or not isinstance(parts, int) or parts < 1:
        return
    made = (
        f"args.per_device_train_batch_size={setup.arg('per_device_train_batch_size')} * gradient_accumulation_steps="
        f"{setup.arg('gradient_accumulation_steps', 1)} makes {setup.rollout}"
    )
    if setup.rollout % parts:
        yield "issues", f"{made}, which num_mini_batches={parts} does not divide: choose a divisor of {setup.rollout}"
    elif setup.on_trl and setup.arg("whiten_rewards", False) and setup.rollout // parts < 8:
        yield "issues", (
            f"{made}, in num_mini_batches={parts} of {setup.rollout // parts}: with whiten_rewards=True TRL's trainer asks for 8 or more"
        )


def stopping(setup: Setup) -> Findings:
    """The token at which responses end, and the penalty for lacking one."""
    if setup.args is None:
        return
    word, token, penalty = (setup.arg(name) for name in ("stop_token", "stop_token_id", "missing_eos_penalty"))
    if word is not None and token is not None:
        yield "issues", f"args.stop_token={word!r} and stop_token_id={token} are both set: give one"
    elif word not in (None, "eos"):
        yield "issues", f"args.stop_token={word!r}: it can be 'eos' or None; stop_token_id takes any token"
    elif word is None and token is None:
        if penalty is None:
            yield "recommendations", "args.stop_token is None: responses run on to response_length past their EOS; set stop_token='eos'"
        else:
            yield "warnings", (
                f"args.missing_eos_penalty={penalty} without stop_token: responses run on past their EOS, and text after it is "
                "rewarded too; set stop_token='eos'"
            )
    elif token is not None and penalty is not None and token != getattr(setup.tokenizer, "eos_token_id", token):
        yield "warnings", (
            f"args.missing_eos_penalty={penalty} looks for EOS (id {setup.tokenizer.eos_token_id}) and stop_token_id={token} ends "
            "responses before it: every response pays the penalty; set stop_token='eos'"
        )
    if penalty is not None and penalty < 0:
        yield "issues", f"args.missing_eos_penalty={penalty} rewards responses that do not end: give it a positive value"


def numbers(setup: Setup) -> Findings:
    """Arguments out of the range in which they mean something."""
    wrong = {
        "must be above 0": lambda value: not value > 0,
        "must not be negative": lambda value: not value >= 0,
        "must be between 0 and 1": lambda value: not 0 <= value <= 1,
    }
    for name, rule, effect in (
        ("temperature", "must be above 0", "it divides the logits"),
        ("response_length", "must be above 0", "there would be no response"),
        ("num_ppo_epochs", "must be above 0", "nothing would be trained"),
        ("num_mini_batches", "must be above 0", "nothing would be trained"),
        ("learning_rate", "must be above 0", "nothing would be learnt"),
        ("cliprange", "must be above 0", "the policy could not move"),
        ("kl_coef", "must not be negative", "it would reward leaving the reference"),
        ("vf_coef", "must not be negative", "it would unlearn the values"),
        ("gamma", "must be between 0 and 1", "it is a discount"),
        ("lam", "must be between 0 and 1", "it is a decay"),
    ):
        value = setup.arg(name)
        if isinstance(value, (int, float)) and wrong[rule](value):
            yield "issues", f"args.{name}={value} {rule}: {effect}"
    if setup.arg("kl_coef") == 0 and setup.arg("kl_target") is None:
        yield "recommendations", "args.kl_coef=0: nothing holds the policy near its reference; 0.05 is the default"
    estimator = setup.arg("kl_estimator", "k1")
    if estimator not in ("k1", "k3"):
        yield "issues", f"args.kl_estimator={estimator!r}: it can be 'k1' or 'k3'"


def samples(setup: Setup) -> Findings:
    """Sample generations without anything to generate for."""
    count = setup.arg("num_sample_generations", 0)
    version = _compat.trl_version()
    # TRL 0.29.0 made it do nothing; before, the loader of no dataset is iterated over.
    if setup.on_trl and count > 0 and setup.eval_dataset is None and version is not None and Version(version) < Version("0.29.0"):
        yield "issues", (
            f"args.num_sample_generations={count} and eval_dataset is None: TRL {version} raises TypeError after the first update; "
            "set num_sample_generations=0, or pass eval_dataset"
        )


def hardware(setup: Setup) -> Findings:
    """bfloat16 where nothing is fast at it."""
    accelerator: Any = getattr(torch, "accelerator", torch.cuda)
    if setup.arg("bf16", False) and (setup.arg("use_cpu", False) or not accelerator.is_available()):
        yield "recommendations", "args.bf16=True without a GPU is slow and loses precision: set bf16=False, use_cpu=True"


def evaluation(setup: Setup) -> Findings:
    """Evaluation data without rows."""
    named = setup.eval_dataset if isinstance(setup.eval_dataset, Mapping) else {"": setup.eval_dataset}
    for name, dataset in named.items():
        if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
            yield "warnings", f"eval_dataset{f'[{name!r}]' if name else ''} is empty: there is nothing to evaluate on; pass prompts, or None"


CHECKS: tuple[Check, ...] = (
    reward_source, reward_functions, data, evaluation, batches, stopping, numbers, samples, hardware,
)
