"""Names and steps as people log them by hand, and as an event has them.

Loggers of transformers put `train/` and `eval/` in front, people type `kl`. Never loses a value over a name, and never
changes the mapping that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["evaluation_name", "plain_name", "renamed", "whole"]


def renamed(metrics: Mapping[Any, Any], rename: Callable[[Any], Any]) -> dict[Any, Any]:
    """Metrics under other names; but one whose new name another has already keeps its own, so that none is lost."""
    found: dict[Any, Any] = {}
    for name, value in metrics.items():
        plain = rename(name)
        taken = plain in found or (plain != name and plain in metrics)
        found[name if taken else plain] = value
    return found


def evaluation_name(name: Any) -> str:
    """The name of an evaluation's metric, with `eval_` in front whether or not it was there."""
    plain = str(plain_name(name))
    return plain if plain.startswith("eval_") else f"eval_{plain}"


def plain_name(name: Any) -> Any:
    """A name without what transformers puts in front of it for loggers."""
    if isinstance(name, str):
        if name.startswith("train/"):
            return name[len("train/"):]
        if name.startswith("eval/"):
            return f"eval_{name[len('eval/'):]}"
    return name


def whole(value: Any) -> int | None:
    """A step as an int: from an int, a float that is whole, or a number of numpy's or torch's. None for anything else."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = int(value)
        return number if number == value and abs(number) < 2**62 else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
