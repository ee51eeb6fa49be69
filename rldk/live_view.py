"""What there is to see of a run at a moment: a fold of its events in constant memory, and the view of it as plain values.

Pure: the clock is passed in, and drawing is the command line's.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .event import Alert, Event, Severity
from .metrics import canonical_name, headline

__all__ = ["Fold", "MetricLine", "RunState", "View", "spark"]

# Steps are put into slots; when a step falls beyond the last one, neighbours are merged and each slot holds twice as many.
SLOTS = 512
# A stream with ever new names must not fill the memory, nor the screen.
_MAX_LINES = 40
# What is filled up with a run's own metrics, where it logs few that rldk knows.
_FEW = 8
_LOGS_A_RATE = 64
# A log is late when ten of the usual waits have passed, and not before a minute has.
_LATE_WAITS, _LATE_S = 10.0, 60.0
# Beyond these seconds (three years) a wall_time is a date and no duration: flat logs have either.
_DATE = 1e8
_RESOURCES = (
    "memory_bytes", "memory_peak_bytes", "host_memory_frac", "cpu_percent", "host_cpu_percent", "gpu_percent",
    "gpu_memory_bytes", "gpu_memory_frac", "gpu_memory_peak_frac", "samples_per_second", "tokens_per_second",
)


class MetricLine(NamedTuple):
    """One metric.

    Attributes:
        name: Its canonical name.
        last: The newest value: NaN, Inf and None are values.
        step: Where that was logged.
        first: The first finite value.
        change: The newest value minus the first; None unless both are finite and two were logged.
        low: The lowest finite value.
        high: The highest finite value.
        logged: Values that were logged.
        nonfinite: How many of them were NaN or infinite.
        points: Means over equal spans of steps: None where nothing was logged, NaN where one of the values was not finite.
        alert: The severity of the worst open alert on it; empty without one.
    """

    name: str
    last: float | int | None
    step: int
    first: float | None
    change: float | None
    low: float | None
    high: float | None
    logged: int
    nonfinite: int
    points: list[float | None]
    alert: str = ""


class RunState(NamedTuple):
    """What is known of a run beside its events.

    Attributes:
        status: `running`, `completed`, `stopped`, `failed`; `unknown` where nothing says.
        reason: Why it stopped or failed.
        max_steps: Steps that it is to take.
    """

    status: str = "unknown"
    reason: str | None = None
    max_steps: int | None = None

    @property
    def ended(self) -> bool:
        """Whether no more events are to be expected."""
        return self.status in ("completed", "stopped", "failed")


class View(NamedTuple):
    """All that a frame shows.

    Attributes:
        run_id: The run; empty where the log does not say.
        source: The log.
        trainer: The trainer's family; empty while nothing is known.
        status: See `RunState`.
        reason: See `RunState`.
        step: The highest step.
        max_steps: Steps that it is to take; None if not known.
        elapsed_s: Seconds since the run began: up to now while it runs, else up to its last event.
        left_s: Seconds left at the present speed; None where that cannot be said.
        steps_per_second: Over the last logs.
        last_log_s: Seconds since the last log.
        usual_s: Seconds between two logs, over the last ones.
        late: Whether the next log is overdue.
        silent: What the run's own watch for silence said last, if nothing was logged since.
        metrics: What a person looks at first.
        alerts: All alerts, in the order in which they were raised.
        judged: Where the alerts come from: `run` (its own file) or `replay` (the same engine, over its events).
        resources: The newest values, by metric.
        events: Events by phase.
        malformed: Lines that could not be read.
        reading: The share of the log that has been read, while it is read for the first time; else None.
        notes: What else one should know, in words.
    """

    run_id: str
    source: str
    trainer: str
    status: str
    reason: str | None
    step: int
    max_steps: int | None
    elapsed_s: float | None
    left_s: float | None
    steps_per_second: float | None
    last_log_s: float | None
    usual_s: float | None
    late: bool
    silent: str
    metrics: list[MetricLine]
    alerts: list[Alert]
    judged: str
    resources: dict[str, float]
    events: dict[str, int]
    malformed: int
    reading: float | None
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            **self._asdict(),
            "metrics": {line.name: _plain(line) for line in self.metrics},
            "alerts": [alert.to_dict() for alert in self.alerts],
        }


def _plain(line: MetricLine) -> dict[str, Any]:
    row = line._asdict()
    del row["name"]
    row["points"] = spark(line.points, 40)
    return row


class _Trace:
    """One metric's values, by slot."""

    __slots__ = ("counts", "first", "high", "last", "logged", "low", "nonfinite", "step", "sums")

    def __init__(self) -> None:
        self.sums = [0.0] * SLOTS
        self.counts = [0] * SLOTS
        self.first: float | None = None
        self.last: Any = None
        self.step = 0
        self.low, self.high = math.inf, -math.inf
        self.logged = self.nonfinite = 0

    def add(self, step: int, slot: int, value: Any) -> None:
        self.last, self.step = value, step
        self.logged += 1
        if value is None:
            return
        self.sums[slot] += value  # a value that is not finite stays in its slot's sum
        self.counts[slot] += 1
        if value - value != 0.0:
            self.nonfinite += 1
            return
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        if self.first is None:
            self.first = value

    def merge(self, times: int) -> None:
        """Makes slots of `times` slots each."""
        for name in ("sums", "counts"):
            old = getattr(self, name)
            new = [sum(old[index : index + times]) for index in range(0, SLOTS, times)]
            setattr(self, name, new + [old[0] * 0 if name == "counts" else 0.0] * (SLOTS - len(new)))

    def line(self, name: str, used: int, alert: str) -> MetricLine:
        points = [
            (total / count if math.isfinite(total) else math.nan) if count else None
            for total, count in zip(self.sums[:used], self.counts[:used])
        ]
        last = self.last
        finite = isinstance(last, (int, float)) and math.isfinite(last)
        change = last - self.first if finite and self.first is not None and self.logged > 1 else None
        known = self.first is not None
        return MetricLine(
            name, last, self.step, self.first, change, self.low if known else None, self.high if known else None,
            self.logged, self.nonfinite, points, alert,
        )


class Fold:
    """Takes the events of one run, in their order.

    Args:
        chosen: Metrics to show, in this order, in place of those that rldk chooses.
    """

    def __init__(self, chosen: Sequence[str] = ()) -> None:
        self.chosen = tuple(map(canonical_name, chosen))
        self.run_id = self.trainer = ""
        self.step = 0
        self.events: dict[str, int] = {}
        self.setup: Mapping[str, Any] = {}
        self.silent = ""
        self.summed_up = False
        self._traces: dict[str, _Trace | None] = {}
        self._origin: int | None = None
        self._width = 1
        # The last events with resources and with rates: the sampling thread may have had no time for each.
        self._sampled: Mapping[str, Any] = {}
        self._rated: Mapping[str, Any] = {}
        self._logs: deque[tuple[int, float]] = deque(maxlen=_LOGS_A_RATE)
        self._began = math.nan
        self._wall_time = math.nan
        self._time = ""

    def take(self, event: Event) -> None:
        """Takes one event."""
        step, wall_time, metrics, phase, _, _, info, notes, time = event
        self.events[phase] = self.events.get(phase, 0) + 1
        if "silence_s" in metrics:
            self.silent = notes[0] if notes else f"no sign of life for {metrics['silence_s']} s"
            return
        if info and not self.trainer:
            self.trainer = str(info.get("trainer", ""))
        setup = info.get("setup")
        if isinstance(setup, dict):
            self.setup = setup
        if not metrics:
            return
        self.silent = ""
        self.summed_up = phase == "summary"
        if step > self.step:
            self.step = step
        if time:
            self._time = time
        if wall_time == wall_time:
            if self._began != self._began:
                self._began = wall_time
            self._wall_time = wall_time
        if phase == "train":
            self._logs.append((step, wall_time))
            if "memory_bytes" in metrics:
                self._sampled = metrics
            if "samples_per_second" in metrics:
                self._rated = metrics
        elif phase == "summary":
            return  # totals of the run, and no course of anything
        slot = self._slot(step)
        traces = self._traces
        for name, value in metrics.items():
            trace = traces[name] if name in traces else self._new(name)
            if trace is not None:
                trace.add(step, slot, value)

    def _slot(self, step: int) -> int:
        if self._origin is None:
            self._origin = step
        slot = (step - self._origin) // self._width
        if slot >= SLOTS:
            times = 2
            while slot // times >= SLOTS:
                times *= 2
            self._width *= times
            for trace in self._traces.values():
                if trace is not None:
                    trace.merge(times)
            slot //= times
        return max(0, slot)

    def _new(self, name: str) -> _Trace | None:
        """The trace of a metric that was not seen before; None for one that nobody looks at here."""
        shown = sum(trace is not None for trace in self._traces.values())
        # Which are a run's first ones shows when all have been seen; a few are followed until then.
        wanted = name in self.chosen if self.chosen else bool(headline([name], shown < 2 * _FEW))
        trace = _Trace() if wanted and shown < _MAX_LINES else None
        if len(self._traces) < 10 * _MAX_LINES or trace is not None:
            self._traces[name] = trace
        return trace

    def view(
        self, now: float, *, source: str, state: RunState, alerts: Iterable[Alert], judged: str, modified: float = 0.0,
        malformed: int = 0, reading: float | None = None, notes: Sequence[str] = (),
    ) -> View:
        """The view at a moment.

        Args:
            now: Seconds since the epoch.
            source: The log.
            state: What is known beside the events.
            alerts: The run's alerts so far.
            judged: Where they come from, `run` or `replay`.
            modified: When the log was last written to, for events that do not say when they were.
            malformed: Lines that could not be read.
            reading: As in `View`.
            notes: As in `View`.
        """
        alerts = list(alerts)
        state = self.settled(state)
        logged_at = _epoch(self._time) or (self._wall_time if self._wall_time > _DATE else modified)
        age = max(0.0, now - logged_at) if logged_at and self._traces else None
        steps_per_second, usual = self._rates()
        running = state.status in ("running", "unknown")
        elapsed = self._elapsed()
        if elapsed is not None and age is not None and state.status == "running":
            elapsed += age
        left = None
        if running and state.max_steps and steps_per_second and state.max_steps >= self.step:
            left = max(0.0, (state.max_steps - self.step) / steps_per_second - (age or 0.0))
        late = bool(running and age is not None and age > max(_LATE_S, _LATE_WAITS * (usual or 0.0)))
        return View(
            self.run_id, source, self.trainer, state.status, state.reason, self.step, state.max_steps, elapsed, left,
            steps_per_second, age, usual, late, self.silent if running else "", self._lines(alerts), alerts, judged,
            self._resources(), dict(self.events), malformed, reading, list(notes),
        )

    def settled(self, state: RunState) -> RunState:
        """Adds what the events themselves say of the run's end and length."""
        if state.max_steps is None:
            arguments = self.setup.get("arguments")
            planned = arguments.get("max_steps") if isinstance(arguments, dict) else None
            if type(planned) is int and planned > 0:
                state = state._replace(max_steps=planned)
        if state.status == "unknown" and self.summed_up:
            state = state._replace(status="completed")
        return state

    def _rates(self) -> tuple[float | None, float | None]:
        """Steps a second and seconds between logs, over the last logs."""
        if len(self._logs) < 2:
            return None, None
        (first_step, began), (last_step, ended) = self._logs[0], self._logs[-1]
        seconds = ended - began
        if not seconds > 0:
            return None, None
        steps = last_step - first_step
        return steps / seconds if steps > 0 else None, seconds / (len(self._logs) - 1)

    def _resources(self) -> dict[str, float]:
        found = {**self._rated, **self._sampled}
        return {name: value for name in _RESOURCES if (value := found.get(name)) is not None and value - value == 0}

    def _elapsed(self) -> float | None:
        if self._wall_time != self._wall_time:
            return None
        return self._wall_time - self._began if self._began > _DATE else self._wall_time

    def _lines(self, alerts: Sequence[Alert]) -> list[MetricLine]:
        worst: dict[str, str] = {}
        for alert in alerts:
            if alert.resolved_step is None:
                worst[alert.metric] = max(worst.get(alert.metric, "info"), alert.severity, key=lambda item: Severity(item).rank)
        last = max((trace.step for trace in self._traces.values() if trace is not None), default=0)
        used = min(SLOTS, (last - (self._origin or 0)) // self._width + 1)
        lines = [trace.line(name, used, worst.get(name, "")) for name, trace in self._traces.items() if trace is not None]
        if self.chosen:
            return sorted(lines, key=lambda line: self.chosen.index(line.name))
        by_name = {line.name: line for line in lines}
        return [by_name[name] for name in headline(by_name, _FEW)]


def _epoch(time: str) -> float:
    """An event's `time` in seconds since the epoch; 0 for what is no such time."""
    if not time:
        return 0.0
    try:
        moment = datetime.datetime.fromisoformat(time.removesuffix("Z"))  # Python 3.10 does not read the Z
        return moment.replace(tzinfo=moment.tzinfo or datetime.timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def spark(points: Sequence[float | None], width: int) -> list[float]:
    """Points for a sparkline of at most `width` columns: means of neighbours, NaN where a value was not finite.

    Spans in which nothing was logged have no column of their own: metrics that are logged seldom make short sparklines.
    """
    there = [point for point in points if point is not None]
    if len(there) <= width:
        return there
    bounds = [index * len(there) // width for index in range(width + 1)]
    return [sum(there[low:high]) / (high - low) for low, high in itertools.pairwise(bounds)]
