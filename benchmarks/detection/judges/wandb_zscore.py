"""The z-score rule of W&B's automations."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict, is_logged

__all__ = ["WandbZScore"]

_WINDOW, _THRESHOLD = 30, 3.0
# W&B leaves the choice of metrics to its user: what one would choose, and PPO's names of the same.
_METRICS = (
    "loss", "grad_norm", "reward", "kl", "loss/policy_avg", "loss/value_avg", "objective/rlhf_reward", "objective/kl",
)  # fmt: skip


class WandbZScore(Judge):
    """MetricZScoreFilter of wandb.automations, which runs on W&B's servers; here from its documentation."""

    name = "W&B z-score"
    how = (
        "the rule of MetricZScoreFilter with its defaults (window 30, threshold 3.0, either direction), one automation "
        "each on loss, gradient norm, reward and KL where logged, against the 30 values before; consecutive alarms of a "
        "metric are one. W&B runs it on its servers and does not publish the formula"
    )

    @property
    def version(self) -> str:
        """Of the client that declares the defaults."""
        return "0.31.0"

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """A value that is not finite has no z-score, and stays out of the window."""
        alarms = Alarms(recording)
        windows = {name: deque[float](maxlen=_WINDOW) for name in _METRICS}
        for row in filter(is_logged, recording.rows):
            alarms.at(row)
            assert row.raw is not None
            for name, window in windows.items():
                value = row.raw.get(name)
                if value is None or not math.isfinite(value):
                    continue
                if len(window) == _WINDOW and (score := _score(value, window)) > _THRESHOLD:
                    alarms.add(name, f"{name} {value:g} is {score:.3g} deviations from the mean of {_WINDOW}")
                window.append(value)
        return alarms.verdicts


def _score(value: float, window: deque[float]) -> float:
    mean = fmean(window)
    away, deviation = abs(value - mean), math.sqrt(fmean([(other - mean) ** 2 for other in window]))
    # Any step away from a constant is infinitely unlikely; staying there, but for rounding, is not unlikely at all.
    return away / deviation if deviation > 1e-12 * abs(mean) else math.inf if away > 1e-9 * abs(mean) else 0.0
