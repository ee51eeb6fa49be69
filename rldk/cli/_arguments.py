"""`rldk doctor --args`: a training script's arguments, judged before the script is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..detectors import make_detectors
from ..integrations.trl._arguments import argument_names, family_called
from ..metrics import nearest
from ..monitor import Monitor
from ..vocabulary import families
from ._checks import Problem
from ._output import fail

__all__ = ["judge_arguments", "read_arguments"]

# What people call an argument elsewhere.
_ELSEWHERE = {
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs", "kl_coef": "beta", "max_new_tokens": "max_completion_length",
    "clip_range": "epsilon", "cliprange": "epsilon", "weight_decay_rate": "weight_decay", "grad_clip": "max_grad_norm",
}


def read_arguments(path: Path) -> tuple[str, dict[str, Any]]:
    """The trainer's family and its arguments. What cannot be read ends the command.

    Args:
        path: A JSON object of arguments with `trainer` among them, or one with `trainer` and `arguments`; so a run.json.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        fail(f"cannot read {path}: {error}")
    if not isinstance(content, dict):
        fail(f"{path} must hold a JSON object of arguments; it holds a {type(content).__name__}")
    trainer = content.pop("trainer", None)
    if isinstance(trainer, Mapping):  # as in run.json
        trainer = trainer.get("family")
    known = ", ".join(family for family in families() if family != "generic")
    if not isinstance(trainer, str):
        fail(f'{path} does not say which trainer: add "trainer": "grpo". Known: {known}')
    family = family_called(trainer)
    if family is None:
        fail(f"unknown trainer {trainer!r} in {path}.{nearest(trainer.lower(), list(families()))} Known: {known}")
    arguments = content.get("arguments", content)
    if not isinstance(arguments, dict):
        fail(f'"arguments" in {path} must be an object; it is a {type(arguments).__name__}')
    return family, arguments


def judge_arguments(family: str, arguments: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Problem], bool]:
    """Judges arguments as the callback does when training begins.

    Args:
        family: The trainer's.
        arguments: By TRL's names.

    Returns:
        The alerts, the names that the trainer does not take, and whether the installed TRL could be asked for them.
    """
    monitor = Monitor(make_detectors())
    # That the weights train is taken for granted: only the trainer itself can tell.
    facts = {"trainable_frac": 1.0, **_warm_up(arguments)}
    monitor.begin({"step": 0, "wall_time": 0.0, "trainer": family, "arguments": arguments, "facts": facts})
    names = argument_names(family)
    problems = []
    for name in arguments if names is not None else ():
        if names is not None and name not in names and name not in _OURS:
            meant = _ELSEWHERE.get(name)
            hint = f" Did you mean {meant!r}?" if meant in names else nearest(name, sorted(names))
            problems.append(Problem(
                "warning", "unknown_argument", f"{families()[family].configs[0]} takes no argument {name!r}.{hint}",
                "the config would raise a TypeError: rename or remove it",
            ))
    return [alert.to_dict() for alert in monitor.alerts], problems, names is not None


# In run.json beside the trainer's own.
_OURS = frozenset({"world_size"})


def _warm_up(arguments: Mapping[str, Any]) -> dict[str, float]:
    """The share of the run that is warm-up, where the arguments tell."""
    steps, ratio, total = (_number(arguments.get(name)) for name in ("warmup_steps", "warmup_ratio", "max_steps"))
    if steps >= 1 and total > 0:
        return {"warmup_frac": steps / total}
    for share in (ratio, steps):  # transformers 5 takes a share as warmup_steps
        if 0 < share <= 1:
            return {"warmup_frac": share}
    return {}


def _number(value: Any) -> float:
    """The number, or 0.0, which neither of the three means anything by."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
