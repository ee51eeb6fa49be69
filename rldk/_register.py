"""Makes ``report_to="rldk"`` and accelerate's ``log_with="rldk"`` work after ``import rldk``.

Neither library has entry points: each keeps a table of names. rldk enters itself there, at once if the library is loaded
and otherwise when it is, so that `import rldk` itself stays light.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["REPORTERS", "register", "when_imported"]

REPORTERS = "transformers.integrations.integration_utils"  # the module with the table of `report_to`
_TRACKERS = "accelerate.tracking"  # the module with the table of `log_with`

Action = Callable[[ModuleType], None]


class _Waiter(MetaPathFinder):
    """Waits for modules to be imported, each once."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Steps aside for every other module; for one that is waited for, acts after it has run."""
        actions = self.actions.pop(fullname, None)
        if actions is None:
            return None
        if not self.actions:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                for action in actions:
                    action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this one loader, for this one import
        return spec


def when_imported(name: str, action: Action) -> None:
    """Calls `action` with a module: now if it is loaded, else once it has been. The same action waits only once.

    Args:
        name: The module's full name.
        action: What to do with it; what it raises reaches whoever imports the module.
    """
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    waiter = next((finder for finder in sys.meta_path if isinstance(finder, _Waiter)), None)
    if waiter is None:
        waiter = _Waiter()
        sys.meta_path.insert(0, waiter)
    waiting = waiter.actions.setdefault(name, [])
    if action not in waiting:
        waiting.append(action)


class _Entry:
    """What stands in transformers' table: a class that is called without arguments, and that becomes the callback."""

    def __new__(cls) -> Any:
        from .integrations.trl import RLDKCallback  # here, since it imports transformers

        return RLDKCallback()


def _enter(module: ModuleType) -> None:
    table = getattr(module, "INTEGRATION_TO_CALLBACK", None)
    if isinstance(table, dict):
        table.setdefault("rldk", _Entry)


def _offer(module: ModuleType) -> None:
    add = getattr(module, "register_tracker_class", None)  # before accelerate 1.15 there is none: pass an RLDKTracker
    if not callable(add):
        return
    from .integrations import accelerate  # here, since it imports accelerate

    tracker = getattr(accelerate, "RLDKTracker", None)  # not there yet, if it is this module that imports accelerate
    if tracker is not None and "rldk" not in getattr(module, "LOGGER_TYPE_TO_CLASS", ()):
        add(tracker)


def register() -> None:
    """Enters rldk where names are looked up, now or as soon as there are such tables. May be called again."""
    when_imported(REPORTERS, _enter)
    when_imported(_TRACKERS, _offer)
