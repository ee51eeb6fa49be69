"""rldk in a TRL trainer: the callbacks, the PPO helpers, and the PPO classes wherever they live.

`PPOTrainer` and `PPOConfig` are TRL's own where it has them, else those of `rldk.ppo`. Names are looked up when asked for, so that importing this package is cheap and a missing TRL is one clear error.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import _compat
from .compatibility import check_trl_compatibility

if TYPE_CHECKING:
    from .callback import RLDKCallback as RLDKCallback
    from .create import create_ppo_trainer as create_ppo_trainer
    from .event_writer import EventWriterCallback as EventWriterCallback
    from .models import prepare_models_for_ppo as prepare_models_for_ppo
    from .validate import validate_ppo_setup as validate_ppo_setup
    from .value_head import fix_generation_config as fix_generation_config

__all__ = [
    "EventWriterCallback",
    "PPOConfig",
    "PPOTrainer",
    "RLDKCallback",
    "check_trl_compatibility",
    "create_ppo_trainer",
    "fix_generation_config",
    "prepare_models_for_ppo",
    "validate_ppo_setup",
]

_HOMES = {
    "EventWriterCallback": "event_writer",
    "RLDKCallback": "callback",
    "create_ppo_trainer": "create",
    "fix_generation_config": "value_head",
    "prepare_models_for_ppo": "models",
    "validate_ppo_setup": "validate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        trackio = sys.modules.get("trackio")
        if trackio is not None and getattr(trackio, "__spec__", None) is None:
            # Somebody's stand-in, at which the import of accelerate would fail.
            importlib.import_module("rldk.trackio").ensure_trackio(create=False)
        try:
            importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(_compat.NOT_AVAILABLE) from error
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in ("PPOTrainer", "PPOConfig"):
        if _compat.trl_version() is None:
            raise ImportError(_compat.NOT_AVAILABLE)
        try:
            return _compat.ppo_class(name)
        except ImportError:
            return getattr(importlib.import_module("rldk.ppo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
