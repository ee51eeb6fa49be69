"""The runs of the benchmark, a file a family, found by discovery: each binds `SCENARIOS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ._base import Run, Scenario

__all__ = ["Run", "Scenario", "scenarios"]


@cache
def scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            found += importlib.import_module(f"{__name__}.{module.name}").SCENARIOS
    return {scenario.name: scenario for scenario in found}
