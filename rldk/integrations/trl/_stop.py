"""Stopping a run on an alert, when the user asked for it: the only thing in rldk that changes a run's course."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ...detectors import detector_classes
from ...event import Alert, Severity

__all__ = ["StopRule", "ignores_stop", "several_processes", "stop"]

_STOP, _SAVE_AND_STOP = 1, 2


class StopRule(NamedTuple):
    """Codes, or severities, that stop a run.

    Attributes:
        names: Detector codes and severities; a severity stands for itself and all worse ones.
    """

    names: frozenset[str]

    def wish(self, raised: Iterable[Alert]) -> tuple[int, str]:
        """What these alerts ask for: 0 for nothing, 1 to stop, 2 to save and stop; and the codes that ask for it."""
        chosen = [alert for alert in raised if self._matches(alert)]
        if not chosen:
            return 0, ""
        sound = all(detector_classes()[alert.code].weights_are_sound for alert in chosen)
        return _SAVE_AND_STOP if sound else _STOP, ", ".join(alert.code for alert in chosen)

    def _matches(self, alert: Alert) -> bool:
        rank = Severity(alert.severity).rank
        return alert.code in self.names or any(
            severity.value in self.names and rank >= severity.rank for severity in Severity
        )


def stop(wish: int, args: Any, control: Any) -> bool:
    """Asks the trainer to stop, if this or any other process wishes it.

    In a distributed run every process must call this at the same moments: one that stopped alone would leave the others
    waiting for ever.

    Args:
        wish: As of `StopRule.wish`.
        args: The trainer's arguments.
        control: The trainer's control.

    Returns:
        Whether training is to stop.
    """
    if several_processes(args):
        import torch  # loaded in any training process

        shared = torch.tensor(wish, device=args.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        wish = int(shared.item())
    if not wish:
        return False
    control.should_training_stop = True
    if wish == _SAVE_AND_STOP:
        control.should_save = True
    return True


def ignores_stop(args: Any) -> bool:
    """Whether the trainer of these arguments never looks at `should_training_stop`: TRL's own PPOTrainer, in all versions."""
    return any(
        ancestor.__name__ == "PPOConfig" and ancestor.__module__.split(".")[0] == "trl" for ancestor in type(args).__mro__
    )


def several_processes(args: Any) -> bool:
    """Whether the training runs in several processes that can agree on something."""
    if (getattr(args, "world_size", 1) or 1) < 2:
        return False
    import torch  # loaded in any training process

    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())
