"""rldk: the flight recorder and smoke detector for TRL training.

Importing it imports no torch, transformers or trl: reading logs works on a laptop.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from ._register import register

if TYPE_CHECKING:
    from .emit import EventWriter as EventWriter
    from .ingest import ingest_runs as ingest_runs
    from .integrations.trl import EventWriterCallback as EventWriterCallback
    from .integrations.trl import RLDKCallback as RLDKCallback
    from .loaded import load as load
    from .model_card import add_training_health as add_training_health
    from .rebuild import rebuild_run as rebuild_run

__all__ = [
    "EventWriter", "EventWriterCallback", "RLDKCallback", "__version__", "add_training_health", "ingest_runs", "load",
    "rebuild_run",
]

_HOMES = {
    "EventWriter": ".emit",
    "EventWriterCallback": ".integrations.trl",
    "RLDKCallback": ".integrations.trl",
    "add_training_health": ".model_card",
    "ingest_runs": ".ingest",
    "load": ".loaded",  # not `.load`: importing a module of that name would put it in the function's place
    "rebuild_run": ".rebuild",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("rldk")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register()
