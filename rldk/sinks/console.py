"""One line every so many steps, and one for each alert, through `logging` (logger `rldk`)."""

from __future__ import annotations

import logging

from ..event import Alert, Event, Severity
from ..metrics import HEADLINE
from ..text import clean, number

__all__ = ["ConsoleSink"]

logger = logging.getLogger("rldk")

_COLUMNS = 6
_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.CRITICAL: logging.ERROR}


class ConsoleSink:
    """Logs summary lines and alerts.

    Args:
        interval: Steps between summary lines; 0 for none. Alerts are always logged.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.lost = 0
        self._due = interval

    def start_at(self, step: int) -> None:
        """Sets the first due step of a resumed run."""
        if self.interval:
            self._due = (step // self.interval + 1) * self.interval

    def write(self, event: Event) -> None:
        """Logs a line if one is due; evaluations always get theirs."""
        if not self.interval or event.phase not in ("train", "eval"):
            return
        if event.phase == "train":
            if event.step < self._due:
                return
            self._due = (event.step // self.interval + 1) * self.interval
        prefix = "eval_" if event.phase == "eval" else ""
        shown = [prefix + name for name in HEADLINE if prefix + name in event.metrics][:_COLUMNS]
        values = "  ".join(f"{name} {number(event.metrics[name])}" for name in shown)
        logger.info("step %d  %s", event.step, values)

    def alert(self, alert: Alert) -> None:
        """Logs an alert as it is raised, and as it passes."""
        if alert.resolved_step is not None:
            logger.info("step %d  %s has passed (raised at step %d)", alert.resolved_step, alert.code, alert.step)
        else:
            logger.log(
                _LEVELS[Severity(alert.severity)], "step %d  %s [%s]: %s %s",
                alert.evidence.get("escalated_at", alert.step), alert.severity, alert.code, clean(alert.message), clean(alert.advice),
            )

    def close(self) -> None:
        """Nothing to let go of."""
