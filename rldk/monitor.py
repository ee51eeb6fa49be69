"""The engine: shows each event to each detector and turns their answers into alerts, one an episode.

Pure but for what it is given: no files, no clock, no transformers. The same object runs live in a callback and over a
recorded stream, and gives the same alerts for the same events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._guard import Guard
from .detectors import ABSENT, WARMING, Detector, Finding
from .event import Alert, Event

__all__ = ["Monitor"]

# A state that returns within this many judged events of its resolution is the same episode: values that cross a
# threshold back and forth are one alert.
REOPEN_WITHIN = 10
# The list of alerts is rewritten at each alert and kept in memory, so it must end somewhere.
MAX_ALERTS = 1_000


class _Watch:
    """A detector and where its episode stands."""

    __slots__ = ("alert", "detector", "fired", "index", "judged", "seen", "since_resolved")

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.alert: Alert | None = None  # the last alert raised, resolved or not
        self.index = -1  # where it stands in the list of alerts
        self.fired = 0
        self.judged = 0
        self.seen = 0
        self.since_resolved = 0


class Monitor:
    """Routes events to detectors.

    Args:
        detectors: The armed ones.
        guard: Catches what a detector gets wrong; that detector is then left out, and named in the report.
    """

    def __init__(self, detectors: Iterable[Detector], guard: Guard | None = None) -> None:
        self.guard = guard or Guard()
        self.alerts: list[Alert] = []
        self.dropped_alerts = 0
        self._watches = [_Watch(detector) for detector in detectors]
        self._by_phase: dict[str, list[_Watch]] = {}

    def observe(self, event: Event) -> list[Alert]:
        """Shows one event to the detectors.

        Returns:
            The alerts that this event raised (`resolved_step` is None) or resolved.
        """
        watches = self._by_phase.get(event.phase)
        if watches is None:
            watches = [watch for watch in self._watches if event.phase in watch.detector.phases]
            self._by_phase[event.phase] = watches
        changed: list[Alert] = []
        for watch in watches:
            try:
                answer = watch.detector.judge(event)
            except Exception as error:  # noqa: BLE001  # a detector that fails must not take the others, or the run, with it
                self.guard.caught(f"detector {watch.detector.code}", error)
                self._watches.remove(watch)
                self._by_phase.clear()
                continue
            if answer is ABSENT:
                continue
            watch.seen += 1
            if answer is WARMING:
                continue
            watch.judged += 1
            if isinstance(answer, Finding):
                alert = self._bad(watch, answer, event)
            elif watch.alert is not None:
                alert = self._fine(watch, event)
            else:
                continue
            if alert is not None:
                changed.append(alert)
        return changed

    def _bad(self, watch: _Watch, finding: Finding, event: Event) -> Alert | None:
        last = watch.alert
        if last is not None and last.resolved_step is None:
            return None  # the episode goes on
        if last is not None and watch.since_resolved < REOPEN_WITHIN:
            self._keep(watch, last._replace(resolved_step=None))
            return None
        detector = watch.detector
        watch.fired += 1
        if len(self.alerts) < MAX_ALERTS:
            watch.index = len(self.alerts)
            self.alerts.append(None)  # type: ignore[arg-type]  # filled by _keep
        else:
            watch.index = -1
            self.dropped_alerts += 1
        alert = Alert(
            detector.code, detector.title, finding.severity.value, event.step, event.wall_time, finding.metric,
            finding.value, finding.threshold, finding.message, detector.advice, finding.evidence,
        )
        self._keep(watch, alert)
        return alert

    def _fine(self, watch: _Watch, event: Event) -> Alert | None:
        last = watch.alert
        assert last is not None
        if last.resolved_step is not None:
            watch.since_resolved += 1
            return None
        watch.since_resolved = 0
        alert = last._replace(resolved_step=event.step)
        self._keep(watch, alert)
        return alert

    def _keep(self, watch: _Watch, alert: Alert) -> None:
        watch.alert = alert
        if watch.index >= 0:
            self.alerts[watch.index] = alert

    def coverage(self) -> list[dict[str, Any]]:
        """What each detector did: `fired`, `quiet`, `warming` or `unseen`, and what it watches.

        `unseen` means that the trainer never logged what it needs: its silence says nothing.
        """
        rows = []
        for watch in self._watches:
            state = "fired" if watch.fired else "quiet" if watch.judged else "warming" if watch.seen else "unseen"
            rows.append(
                {
                    "code": watch.detector.code,
                    "name": watch.detector.title,
                    "state": state,
                    "episodes": watch.fired,
                    "events_judged": watch.judged,
                    "watches": list(watch.detector.watches) or ["every metric"],
                    "needs": watch.detector.needs,
                }
            )
        return rows
