"""The arguments of a trainer as TRL declares them: to tell a misspelt one before the run does."""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings

from ...vocabulary import families

__all__ = ["argument_names", "family_called"]


def family_called(name: str) -> str | None:
    """The family that a person means by `grpo`, `GRPOTrainer`, `GRPOConfig` or `online-dpo`; None if there is none."""
    plain = name.strip().lower().replace("-", "").replace("_", "")
    for end in ("trainer", "config"):
        plain = plain.removesuffix(end)
    return next((family for family in families() if family.replace("_", "") == plain and family != "generic"), None)


def argument_names(family: str) -> frozenset[str] | None:
    """The names that a family's config takes in the installed TRL; None if it cannot be asked.

    Imports the config, and torch with it.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config in families()[family].configs:
            for home in ("trl", f"trl.experimental.{family}", "rldk.ppo"):
                try:
                    found = getattr(importlib.import_module(home), config, None)
                except (Exception, SystemExit):  # noqa: BLE001  # a broken TRL raises what it likes; it is named by the other checks
                    continue
                if dataclasses.is_dataclass(found):
                    return frozenset(field.name for field in dataclasses.fields(found) if field.init)
    return None
