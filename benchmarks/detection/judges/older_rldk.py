"""The fixed thresholds of the older rldk."""

from __future__ import annotations

from typing import Any

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict, is_logged

__all__ = ["OlderRldk"]

# Its code, its threshold, and what TRL calls the quantity today.
_RULES = (
    ("high_kl_divergence", 0.1, ("kl", "objective/kl")),
    ("high_clip_fraction", 0.2, ("clip_ratio/region_mean", "clip_ratio", "policy/clipfrac_avg")),
    ("high_gradient_norm", 1.0, ("grad_norm",)),
)


class OlderRldk(Judge):
    """The rules of the older RLDKCallback; its fourth, on GPU memory, has nothing to read in these runs."""

    name = "older rldk"
    how = (
        "the thresholds of the older RLDKCallback: KL above 0.1, clip fraction above 0.2, gradient norm above 1.0, "
        "under TRL's names of today (its own names of the first two are of a PPO that is gone, and it does not start "
        "on TRL 0.29 or later); consecutive alarms of a rule are one"
    )

    @property
    def version(self) -> str:
        """Of its source."""
        return "0.1.0"

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """NaN is above nothing, as in the original."""
        alarms = Alarms(recording)
        for row in filter(is_logged, recording.rows):
            alarms.at(row)
            for code, threshold, names in _RULES:
                value = next((row.raw[name] for name in names if name in (row.raw or {})), None)
                if value is not None and value > threshold:
                    alarms.add(code, f"{value:g} exceeds {threshold:g}", "warning")
        return alarms.verdicts
