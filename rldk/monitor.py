"""The engine: shows each event to each detector and turns their answers into alerts, one an episode.

Pure but for what it is given: no files, no clock, no transformers. The same object runs live in a callback and over a
recorded stream, and gives the same alerts for the same events.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from ._guard import Guard
from .detectors import FINE, WARMING, Detector, Finding, State
from .event import Alert, Event, Severity

__all__ = ["DOCS", "Monitor"]

# The list of alerts is rewritten at each alert and kept in memory, so it must end somewhere.
MAX_ALERTS = 1_000
# Shapes of events that are remembered: a run has a handful, and a stream with ever new names must not fill the memory.
_ROUTES = 64
DOCS = "https://github.com/rldk/rldk/blob/main/docs/detectors/"


class _Watch:
    """A detector and where its episode stands."""

    __slots__ = (
        "alert", "detector", "elsewhere", "failed", "fired", "index", "judge", "judged", "number", "since_resolved", "warming",
    )

    def __init__(self, number: int, detector: Detector, elsewhere: bool) -> None:
        self.number = number
        self.elsewhere = elsewhere
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
        elsewhere: Which of the detectors, by number, another monitor judges with, until they `join`.
    """

    def __init__(self, detectors: Iterable[Detector], guard: Guard | None = None, elsewhere: Container[int] = ()) -> None:
        self.guard = guard or Guard()
        self.alerts: list[Alert] = []
        self.revision = 0  # changes whenever `alerts` does
        self.dropped_alerts = 0
        self._watches = [_Watch(number, detector, number in elsewhere) for number, detector in enumerate(detectors)]
        self._seen = 0  # events, those of set-ups included
        self._origins: list[tuple[int, int]] = []  # of each alert in the list: the number of its event, and of its detector
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
        self._seen += 1
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

    def observe_block(self, events: Iterable[Event]) -> list[Alert]:
        """Shows events to the detectors, to one detector after the other: what `observe` gives, in two thirds of its time.

        Args:
            events: As many as are at hand; what is found comes at their end.

        Returns:
            What `observe` returns for each, in its order.
        """
        changed: list[Alert] = []
        block: list[Event] = []
        for event in events:
            if isinstance(event.model_info.get("setup"), dict):
                changed += self._judge(block)
                changed += self.observe(event)
                block = []
            else:
                block.append(event)
        return changed + self._judge(block)

    def _judge(self, events: Sequence[Event]) -> list[Alert]:
        """`observe_block` for events without a set-up."""
        answers: list[tuple[int, int, _Watch, Finding | State | Exception]] = []
        for watch, spans in self._spans(events).items():
            judge, number, judged = watch.judge, watch.number, 0
            told = watch.alert is not None
            at = 0
            try:
                for at in chain(*spans):
                    answer = judge(events[at])
                    if answer is FINE:
                        judged += 1
                        if told:
                            answers.append((at, number, watch, answer))
                    elif isinstance(answer, Finding):
                        judged += 1
                        told = True
                        answers.append((at, number, watch, answer))
                    elif answer is WARMING:
                        watch.warming = True
            except Exception as error:  # noqa: BLE001  # as in observe
                answers.append((at, number, watch, error))
            watch.judged += judged
        # A detector knows nothing of the others: in the order of the events, their answers are those of `observe`.
        answers.sort(key=itemgetter(0, 1))
        changed: list[Alert] = []
        before = self._seen + 1
        for at, _, watch, answered in answers:
            self._seen = before + at
            alert = None
            if isinstance(answered, Finding):
                alert = self._bad(watch, answered, events[at])
            elif isinstance(answered, Exception):
                self._fail(watch, answered)
            elif watch.alert is not None:
                alert = self._fine(watch, watch.alert, events[at])
            if alert is not None:
                changed.append(alert)
        self._seen = before - 1 + len(events)
        return changed

    def _spans(self, events: Sequence[Event]) -> dict[_Watch, list[range]]:
        """Which of the events each detector is to be shown; events in a row that are alike are looked at once."""
        starts: list[tuple[int, list[_Watch]]] = []
        last: tuple[Any, ...] = ()
        for at, (_, _, metrics, phase, _, _, info, _, _) in enumerate(events):
            kind = (phase, info.get("trainer"), tuple(metrics))
            if kind != last:
                last = kind
                shape = (*kind[:2], *kind[2])
                route = self._routes.get(shape)
                starts.append((at, self._route(shape) if route is None else route))
        spans: dict[_Watch, list[range]] = {}
        stops = [at for at, _ in starts[1:]] + [len(events)]
        for (start, route), stop in zip(starts, stops):
            for watch in route:
                spans.setdefault(watch, []).append(range(start, stop))
        return spans

    def found(self) -> dict[str, Any]:
        """What was found, in plain values, for the monitor that left the detectors here to this one."""
        return {
            "alerts": [(*origin, *alert) for origin, alert in zip(self._origins, self.alerts)],
            "dropped": self.dropped_alerts,
            "revision": self.revision,
            "failed": self.guard.failures,
            "watches": {
                str(watch.number): (watch.fired, watch.judged, watch.warming, watch.failed)
                for watch in self._watches if not watch.elsewhere
            },
        }

    def join(self, found: Mapping[str, Any]) -> None:
        """Takes in what another monitor `found` in the same events with the detectors that were left to it; at their end."""
        both = [((row[0], row[1]), Alert(*row[2:])) for row in found["alerts"]]
        both = sorted([*both, *zip(self._origins, self.alerts)], key=itemgetter(0))
        # Each has its own first ones, so those of both are among them.
        self._origins = [origin for origin, _ in both[:MAX_ALERTS]]
        self.alerts[:] = [alert for _, alert in both[:MAX_ALERTS]]
        self.dropped_alerts += found["dropped"] + len(both) - len(self.alerts)
        self.revision += found["revision"]
        for number, state in found["watches"].items():
            watch = self._watches[int(number)]
            watch.fired, watch.judged, watch.warming, watch.failed = state

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
            if watch.elsewhere:
                continue
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
            and not watch.elsewhere
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
            self._origins.append((self._seen, watch.number))
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
