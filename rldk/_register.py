"""Makes ``report_to="rldk"`` work after ``import rldk``.

transformers keeps a table of names for `report_to` and has no entry points. rldk enters its callback there, at once
if transformers is loaded and otherwise when it is, so that `import rldk` itself stays light.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register"]

_TABLE_MODULE = "transformers.integrations.integration_utils"


class _Entry:
    """What stands in the table: a class that transformers calls without arguments, and that becomes the callback."""

    def __new__(cls) -> Any:
        from .integrations.trl import RLDKCallback  # here, since it imports transformers

        return RLDKCallback()


def _enter(module: ModuleType) -> None:
    table = getattr(module, "INTEGRATION_TO_CALLBACK", None)
    if isinstance(table, dict):
        table.setdefault("rldk", _Entry)


class _Waiter(MetaPathFinder):
    """Waits for the module with the table to be imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Steps aside for every other module; for this one, adds the entry after it has run."""
        if fullname != _TABLE_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _enter(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this one loader, for this one import
        return spec


def register() -> None:
    """Enters rldk in transformers' table, now or as soon as there is one. May be called again."""
    module = sys.modules.get(_TABLE_MODULE)
    if module is not None:
        _enter(module)
    elif not any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiter())
