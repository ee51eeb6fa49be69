"""Stopping a run on an alert, when the user asked for it: the only thing in rldk that changes a run's course."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from ...detectors import detector_classes
from ...event import Alert, Severity

__all__ = ["StopRule"]

logger = logging.getLogger("rldk")

_STOP, _SAVE_AND_STOP = 1, 2


class StopRule(NamedTuple):
    """Codes, or severities, that stop a run.

    Attributes:
        names: Detector codes and severities; a severity stands for itself and all worse ones.
    """

    names: frozenset[str]

    def apply(self, args: Any, control: Any, raised: Iterable[Alert]) -> str | None:
        """Asks the trainer to stop if an alert says so; the same on every process.

        Each process of a distributed run must call this at each log, since they agree on the answer: one that
        stopped alone would leave the others waiting for ever.

        Returns:
            The reason, if training is to stop.
        """
        chosen = [alert for alert in raised if self._matches(alert)]
        wish = 0
        if chosen:
            safe = all(detector_classes()[alert.code].weights_are_sound for alert in chosen)
            wish = _SAVE_AND_STOP if safe else _STOP
        if (getattr(args, "world_size", 1) or 1) > 1:
            wish = _highest(wish, args.device)
        if not wish:
            return None
        control.should_training_stop = True
        if wish == _SAVE_AND_STOP:
            control.should_save = True
        reason = f"stop_on: {', '.join(alert.code for alert in chosen)}" if chosen else "stop_on"
        logger.warning("rldk: asked the trainer to stop (%s)", reason)
        return reason

    def _matches(self, alert: Alert) -> bool:
        rank = Severity(alert.severity).rank
        return alert.code in self.names or any(
            severity.value in self.names and rank >= severity.rank for severity in Severity
        )


def _highest(wish: int, device: Any) -> int:
    import torch  # loaded in any training process

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return wish
    shared = torch.tensor(wish, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared.item())
