"""The engine: shows each event to each detector and turns their answers into alerts, one an episode.

Pure but for what it is given: no files, no clock, no transformers. The same object runs live in a callback and over a
recorded stream, and gives the same alerts for the same events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ._guard import Guard
from .detectors import FINE, WARMING, Detector, Finding
from .event import Alert, Event, Severity

__all__ = ["DOCS", "Monitor"]

# The list of alerts is rewritten at each alert and kept in memory, so it must end somewhere.
MAX_ALERTS = 1_000
# Shapes of events that are remembered: a run has a handful, and a stream with ever new names must not fill the memory.
_ROUTES = 64
DOCS = "https://github.com/rldk/rldk/blob/main/docs/detectors/"


class _Watch:
    """A detector and where its episode stands."""

    __slots__ = ("alert", "detector", "failed", "fired", "index", "judge", "judged", "since_resolved", "warming")

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.judge = detector.judge
        self.alert: Alert | None = None  # the last alert raised, resolved or not
        self.index = -1  # where it stands in the list of alerts
        self.fired = 0
        self.judged = 0
        self.warming = False
        self.failed = False
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
        self.revision = 0  # changes whenever `alerts` does
        self.dropped_alerts = 0
        self._watches = [_Watch(detector) for detector in detectors]
        self._routes: dict[tuple[Any, ...], list[_Watch]] = {}

    def observe(self, event: Event) -> list[Alert]:
        """Shows one event to the detectors.

        Returns:
            The alerts that this event raised or made worse (`resolved_step` is None), or resolved.
        """
        changed: list[Alert] = []
        info = event.model_info
        setup = info.get("setup")
        if isinstance(setup, dict):
            changed += self.begin(setup)
        shape = (event.phase, info.get("trainer"), *event.metrics)
        route = self._routes.get(shape)
        for watch in self._route(shape) if route is None else route:
            try:
                answer = watch.judge(event)
            except Exception as error:  # noqa: BLE001  # a detector that fails must not take the others, or the run, with it
                self._fail(watch, error)
                continue
            if answer is FINE:
                watch.judged += 1
                if watch.alert is None:
                    continue
                alert = self._fine(watch, watch.alert, event)
            elif isinstance(answer, Finding):
                watch.judged += 1
                alert = self._bad(watch, answer, event)
            else:
                watch.warming = watch.warming or answer is WARMING
                continue
            if alert is not None:
                changed.append(alert)
        return changed

    def begin(self, setup: Mapping[str, Any]) -> list[Alert]:
        """Shows the detectors what was known when training began (`model_info.setup` of the run's first event).

        Live this comes before the first step, in a replay with the first event that holds it, and means the same.

        Args:
            setup: `step`, `wall_time`, `trainer`, `arguments` by TRL's names, and `facts`, canonical metrics.

        Returns:
            As `observe`.
        """
        arguments, facts = (part if isinstance(part, dict) else {} for part in map(setup.get, ("arguments", "facts")))
        for watch in self._watches:
            try:
                watch.detector.configure(arguments)
            except Exception as error:  # noqa: BLE001  # as in observe
                self._fail(watch, error)
        # A stream may come from anywhere, and detectors trust the types of what they are shown.
        facts = {str(name): value for name, value in facts.items() if type(value) in (int, float)}
        step, wall_time, trainer = map(setup.get, ("step", "wall_time", "trainer"))
        return self.observe(
            Event(
                step if type(step) is int else 0,
                wall_time if type(wall_time) in (int, float) else 0.0,  # type: ignore[arg-type]  # a number, as tested
                facts, "setup", model_info={"trainer": trainer} if type(trainer) is str else {},
            )
        )

    def _fail(self, watch: _Watch, error: Exception) -> None:
        """Leaves a detector out from now on; the report names it."""
        self.guard.caught(f"detector {watch.detector.code}", error)
        watch.failed = True
        self._routes.clear()

    def _route(self, shape: tuple[Any, ...]) -> list[_Watch]:
        """The detectors that events of one phase and family with these metrics concern; remembered, since most events are alike."""
        phase, trainer, metrics = shape[0], shape[1], frozenset(shape[2:])
        route = [
            watch
            for watch in self._watches
            if not watch.failed
            and phase in watch.detector.phases
            and trainer not in watch.detector.left_out
            and not (watch.detector.only_watched and metrics.isdisjoint(watch.detector.watches))
        ]
        if len(self._routes) < _ROUTES:
            self._routes[shape] = route
        return route

    def _bad(self, watch: _Watch, finding: Finding, event: Event) -> Alert | None:
        last = watch.alert
        detector = watch.detector
        if last is not None and (last.resolved_step is None or watch.since_resolved < detector.cooldown):
            # The episode goes on, or goes on after all: values that cross a threshold back and forth are one alert.
            if finding.severity.rank > Severity(last.severity).rank:
                return self._escalate(watch, last, finding, event)
            if last.resolved_step is not None:
                self._keep(watch, last._replace(resolved_step=None))
            return None
        watch.fired += 1
        alert = Alert(
            detector.code, detector.title, finding.severity.value, event.step, event.wall_time, finding.metric,
            finding.value, finding.threshold, finding.message, detector.advice, finding.evidence,
            docs=f"{DOCS}{detector.code}.md",
        )
        if len(self.alerts) < MAX_ALERTS:
            watch.index = len(self.alerts)
            self.alerts.append(alert)  # whole: other threads, and a signal's handler, read the list at any moment
        else:
            watch.index = -1
            self.dropped_alerts += 1
        self._keep(watch, alert)
        return alert

    def _escalate(self, watch: _Watch, last: Alert, finding: Finding, event: Event) -> Alert:
        """The episode got worse: the same alert, from where it began, in the words of what is seen now."""
        evidence = {**finding.evidence, "escalated_from": last.severity, "escalated_at": event.step}
        alert = last._replace(
            severity=finding.severity.value, metric=finding.metric, value=finding.value, threshold=finding.threshold,
            message=finding.message, evidence=evidence, resolved_step=None,
        )
        self._keep(watch, alert)
        return alert

    def _fine(self, watch: _Watch, last: Alert, event: Event) -> Alert | None:
        if last.resolved_step is not None:
            watch.since_resolved += 1
            return None
        watch.since_resolved = 0
        alert = last._replace(resolved_step=event.step)
        self._keep(watch, alert)
        return alert

    def _keep(self, watch: _Watch, alert: Alert) -> None:
        watch.alert = alert
        self.revision += 1
        if watch.index >= 0:
            self.alerts[watch.index] = alert

    def coverage(self) -> list[dict[str, Any]]:
        """What each detector did: `fired`, `quiet`, `warming`, `unseen` or `failed`, and what it watches.

        `unseen` means that the trainer never logged what it needs: its silence says nothing. `failed` means that the
        detector itself broke and was left out from then on.
        """
        rows = []
        for watch in self._watches:
            state = "quiet" if watch.judged else "warming" if watch.warming else "unseen"
            state = "failed" if watch.failed else "fired" if watch.fired else state
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
