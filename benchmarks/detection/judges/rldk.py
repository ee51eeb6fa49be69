"""rldk's own detectors, by the engine that runs in the callback."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rldk.detectors import make_detectors
from rldk.monitor import Monitor

from ..store import Recording, events
from ._base import Judge, Verdict, is_logged

__all__ = ["Rldk"]


class Rldk(Judge):
    """The Monitor, shown each event of the run."""

    name = "rldk"
    how = "its events, in order, through the engine of the live callback; default thresholds but where a scenario says so"

    @property
    def version(self) -> str:
        """Of the package that is installed."""
        try:
            return version("rldk")
        except PackageNotFoundError:
            return "source"

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """An alert counts at the event that raised it; one that comes back soon is the same episode."""
        monitor = Monitor(make_detectors(thresholds))
        raised: dict[tuple[str, int], Verdict] = {}
        logged = 0
        # As many events as rows: each row is one.
        for row, event in zip(recording.rows, events(recording)):
            logged += is_logged(row)
            for alert in monitor.observe(event):
                # An alert that is reopened keeps the step at which it was first raised.
                key = alert.code, alert.step
                if alert.resolved_step is None and key not in raised:
                    # What the set-up shows was said before the log whose event carries it here.
                    seen = logged if alert.step >= event.step else logged - is_logged(row)
                    raised[key] = Verdict(alert.step, seen, alert.code, alert.message, alert.severity)
        if monitor.guard.failures:
            raise RuntimeError(f"{recording.header.key}: a detector failed: {monitor.guard.failures}")
        return list(raised.values())
