"""rldk in a TRL trainer: `RLDKCallback`, `EventWriterCallback`, and TRL's PPO classes wherever they live.

Names are looked up when asked for, so that importing this package is cheap and a missing TRL is one clear error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _compat

if TYPE_CHECKING:
    from .callback import RLDKCallback as RLDKCallback
    from .event_writer import EventWriterCallback as EventWriterCallback

__all__ = ["EventWriterCallback", "PPOConfig", "PPOTrainer", "RLDKCallback"]

_HOMES = {"RLDKCallback": "callback", "EventWriterCallback": "event_writer"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(_compat.NOT_AVAILABLE) from error
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in ("PPOTrainer", "PPOConfig"):
        return _compat.ppo_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
