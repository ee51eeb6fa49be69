"""All that knows where TRL keeps things, by version.

Probe before comparing versions: what can be imported is asked first, and the version only explains why it cannot.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from functools import lru_cache
from typing import Any

__all__ = ["NOT_AVAILABLE", "ppo_class", "trl_version"]

NOT_AVAILABLE = "TRL not available. Install with: pip install trl"

# Where PPO has lived: top level until 0.28 (a shim that warns from 0.26 on), trl.experimental.ppo from 0.26 to 1.12,
# nowhere from 1.13.0 on (TRL pull request 7020).
_PPO_HOMES = ("trl.experimental.ppo", "trl")


@lru_cache(maxsize=1)
def trl_version() -> str | None:
    """The installed TRL's version; None without TRL. Reads metadata, imports nothing."""
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return None


def ppo_class(name: str) -> Any:
    """TRL's own `PPOTrainer` or `PPOConfig`.

    Raises:
        ImportError: If TRL is missing, or if the installed one no longer has PPO; the message says which.
    """
    version = trl_version()
    if version is None:
        raise ImportError(NOT_AVAILABLE)
    # TRL warns on every import from trl.experimental; a user who asked for PPO by name has made the choice.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    for home in _PPO_HOMES:
        try:
            return getattr(importlib.import_module(home), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(
        f"TRL {version} has no {name}: TRL removed PPO in 1.13.0. "
        'Install the last version that has it: pip install "trl<1.13"'
    )
