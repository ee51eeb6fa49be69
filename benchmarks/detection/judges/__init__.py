"""Judges, a file each, found by discovery: `rldk` itself, and the rivals."""

from __future__ import annotations

import importlib
import pkgutil

from ._base import Judge, Verdict, is_logged

__all__ = ["Judge", "Verdict", "is_logged", "judge_of", "rivals"]


def rivals() -> list[str]:
    """The modules of all judges but rldk's own, without importing them: each needs a tool that may not be there."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in found if name != "rldk" and not name.startswith("_"))


def judge_of(module: str) -> Judge:
    """The judge of a module: the class that it defines."""
    for item in vars(importlib.import_module(f"{__name__}.{module}")).values():
        if isinstance(item, type) and issubclass(item, Judge) and item.__module__ == f"{__name__}.{module}":
            return item()
    raise LookupError(f"{module} defines no judge")
