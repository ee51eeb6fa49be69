"""The rule of Lightning's SpikeDetection callback."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict, is_logged

__all__ = ["LightningSpike"]

_WINDOW, _WARMUP, _RELATIVE = 10, 1, 2.0


class LightningSpike(Judge):
    """SpikeDetection of lightning.fabric, without its Fabric."""

    name = "Lightning spike"
    how = (
        "the rule of SpikeDetection with its defaults: a loss that is not finite, or has risen and is off the mean of the "
        "last 10 by 2 times that mean or more. Shown each logged loss (of PPO, the sum that is trained on); it ends the "
        "run there, here it goes on without the spike; consecutive spikes are one alarm"
    )

    @property
    def version(self) -> str:
        """Of the source that the rule was read from."""
        return "2.6.6"

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """A value that is a spike enters neither the mean nor the comparison with the last."""
        alarms = Alarms(recording)
        window: deque[float] = deque(maxlen=_WINDOW)
        last, seen = 0.0, 0
        for row in filter(is_logged, recording.rows):
            alarms.at(row)
            loss = _loss(row.raw or {}, recording.header.arguments)
            if loss is None:
                continue
            if seen >= _WARMUP and _is_spike(loss, last, window):
                alarms.add("spike", f"loss {loss:g}, mean of the last {len(window)} {fmean(window or [math.nan]):g}")
            else:
                last = loss
                window.append(loss)
            seen += 1
        return alarms.verdicts


def _loss(raw: dict[str, Any], arguments: dict[str, Any]) -> float | None:
    if "loss" in raw:
        return raw["loss"]
    policy, value = raw.get("loss/policy_avg"), raw.get("loss/value_avg")
    return None if policy is None or value is None else policy + arguments.get("vf_coef", 0.1) * value


def _is_spike(loss: float, last: float, window: deque[float]) -> bool:
    if not math.isfinite(loss):
        return True
    if loss - last <= 0:
        return False
    # torchmetrics leaves NaN out of its mean, and a mean of nothing is NaN: no spike.
    known = [value for value in window if value == value]
    mean = fmean(known) if known else math.nan
    return abs(loss - mean) >= abs(_RELATIVE * mean)
