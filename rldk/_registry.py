"""Finds the units (trainer families, detectors) that live one to a file in a package.

Adding a unit is adding a file: nothing lists them by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

__all__ = ["modules_of"]


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """Imports and yields the public modules of a package, in the order of their names."""
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{package.__name__}.{info.name}")
