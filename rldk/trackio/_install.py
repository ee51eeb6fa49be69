"""`install`: protects a program from whatever is found under the name trackio, in one line at its top.

Imports neither transformers nor TRL: the guarded tracker takes its place in transformers' table once that is loaded.
"""

from __future__ import annotations

import os
from types import ModuleType

from .._register import REPORTERS, when_imported
from ._health import Health, ensure_trackio

__all__ = ["guard_reporter", "install"]


def install() -> Health:
    """Makes `report_to="trackio"`, and TRL itself, safe from a stray, broken or missing trackio.

    Call it before transformers and TRL are imported: some of what goes wrong, goes wrong there. `RLDKCallback` does the
    rest of it by itself. With `RLDK_TRACKIO=off` in the environment nothing is done.

    Returns:
        What stands under the name trackio now.

    Example:
        ```python
        import rldk.trackio

        rldk.trackio.install()
        from trl import GRPOConfig, GRPOTrainer
        ```
    """
    health = ensure_trackio(create=True)
    guard_reporter()
    return health


def guard_reporter() -> None:
    """Puts the guarded tracker in place of transformers' own, now or as soon as there is one. May be called again.

    Not with `RLDK_TRACKIO=off` in the environment.
    """
    if os.environ.get("RLDK_TRACKIO", "").lower() != "off":
        when_imported(REPORTERS, _enter)


def _enter(module: ModuleType) -> None:
    table = getattr(module, "INTEGRATION_TO_CALLBACK", None)
    if isinstance(table, dict) and "trackio" in table:
        from ..integrations.trl._trackio import GuardedTrackioCallback  # here, since it imports transformers

        table["trackio"] = GuardedTrackioCallback
