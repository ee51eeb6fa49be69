"""A log judged after the event: the verdict that the live callback gives, or would have given.

Reads any log that `rldk.ingest` reads, and writes nothing. A run that rldk recorded is judged by the thresholds that it
had; what a resume made void is left out, as it is when a run's files are made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._files import read_object
from ._judging import EVENTS_A_BLOCK, blocks
from .adapters import Adapter, Survey
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors, merged_thresholds
from .event import Alert, Event
from .exceptions import EmptyLogError, IngestError, NoLogsError
from .ingest import find_all, open_log, oriented, run_name, unreadable
from .monitor import Monitor
from .rebuild import UNSAID, recorded_thresholds, status_of
from .remote import shown
from .report import build_report
from .runfiles import RunFiles
from .summary import Summary
from .timeline import Resumes

__all__ = ["Replayed", "replay", "replay_log", "replay_run"]

Progress = Callable[[Path, int, int | None], None]

_EVENTS_A_CALL = 1000


class Replayed:
    """One run, judged.

    Args:
        run_id: What its events say; empty if they do not.
        log: Where they are.
        thresholds: Of the user's; they win over those that the run was recorded with, detector by detector.

    Attributes:
        name: The run's name: its id, or what its file is called.
        path: The log.
        thresholds: Those that it was judged by.
    """

    def __init__(self, run_id: str, log: Adapter, thresholds: Mapping[str, Any] | None = None) -> None:
        self.run_id = run_id
        self.log = log
        self.path = log.path
        self.format = log.name
        self.damage = log.damage
        self.name = run_id or run_name(log.path)
        self.manifest: dict[str, Any] = {}
        self._status: tuple[str, str | None] = ("unknown", UNSAID)
        if isinstance(log, RldkStream):
            files = RunFiles.of(log.path.parent, self.name)
            self.manifest = read_object(files.manifest)
            self._status = status_of(read_object(files.report), self.manifest, log.path)
        self.thresholds = merged_thresholds(recorded_thresholds(self.manifest), thresholds)
        self.trainer: str | None = (self.manifest.get("trainer") or {}).get("family")
        self._monitor = Monitor(make_detectors(self.thresholds))
        self._summary = Summary()

    def take(self, events: Sequence[Event]) -> None:
        """Judges a block of events."""
        for event in events:
            if self.trainer is None:
                self.trainer = event.model_info.get("trainer")
            self._summary.add(event)
        self._monitor.observe_block(events)

    @property
    def found(self) -> list[Alert]:
        """The alerts."""
        return self._monitor.alerts

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts, as they stand in alerts.json."""
        return [alert.to_dict() for alert in self._monitor.alerts]

    @property
    def metrics(self) -> list[str]:
        """The names of what was logged."""
        return list(self._summary.metrics())

    def report(self) -> dict[str, Any]:
        """What final_report.json would say, as far as the log tells."""
        status, reason = self._status
        extra: dict[str, Any] = {"rldk_failures": self._monitor.guard.failures}
        if self.damage.count:
            extra["skipped_lines"] = self.damage.count
        return build_report(
            run_id=self.name, status=status, summary=self._summary, alerts=self._monitor.alerts,
            dropped_alerts=self._monitor.dropped_alerts, coverage=self._monitor.coverage(), reason=reason,
            trainer=self.trainer, extra=extra,
        )


def replay_run(run: Replayed, survey: Survey, progress: Callable[[int, int | None], None] | None = None) -> Iterator[Event]:
    """Judges one run of a log, and yields its events as it goes.

    Raises:
        NoLogsError: If the log cannot be read.
    """
    try:
        for events in blocks(run.log, run.run_id, survey, progress):
            run.take(events)
            yield from events
    except OSError as error:
        raise NoLogsError(f"cannot read {shown(run.path)}: {error}") from error


def replay(
    sources: Iterable[str | os.PathLike[str]],
    *,
    alert_thresholds: Mapping[str, Any] | None = None,
    adapter_hint: str | None = None,
    field_map: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    passed_over: Callable[[IngestError], None] | None = None,
) -> Iterator[Replayed]:
    """Judges all runs of some sources, in the order of their files.

    Args:
        sources: Files, folders or globs.
        alert_thresholds: As of `RLDKCallback`.
        adapter_hint: As of `rldk.ingest_runs`.
        field_map: As of `rldk.ingest_runs`.
        progress: Called now and then with the file, how much of it is done, and how much there is, if known.
        passed_over: Called for a file among others that has nothing in it to judge.

    Raises:
        IngestError: If there is no log, or nothing in any of them that can be judged.
        ConfigurationError: For a bad threshold or hint.
    """
    paths = find_all(sources)
    make_detectors(alert_thresholds)  # a wrong threshold is said before an hour of reading
    first: IngestError | None = None
    found = False
    for path in paths:
        try:
            log = open_log(path, adapter_hint, oriented(field_map))
            for run in replay_log(log, alert_thresholds, progress):
                found = True
                yield run
        except IngestError as error:
            first = first or error
            if passed_over is not None and len(paths) > 1:
                passed_over(error)
    if not found:
        raise first or NoLogsError("no log was given")


def replay_log(
    log: Adapter, alert_thresholds: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> list[Replayed]:
    """Judges the runs of one file, in the order of their first events and in constant memory a run.

    Raises:
        NoLogsError: If it cannot be read.
        EmptyLogError: If it holds no event.
        UnknownSchemaError: If it has records, and none with a step and a metric.
    """
    runs: dict[str, Replayed] = {}
    waiting: dict[str, list[Event]] = {}
    try:
        survey = log.survey()
        resumes = Resumes(survey.resumes)
        for count, (position, event) in enumerate(log.numbered()):
            run_id = event.run_id
            run = runs.get(run_id)
            if run is None:
                run = runs[run_id] = Replayed(run_id, log, alert_thresholds)
            if resumes.keep(position, run_id, event.step):
                block = waiting.setdefault(run_id, [])
                block.append(event)
                if len(block) >= EVENTS_A_BLOCK:
                    run.take(waiting.pop(run_id))
            if progress is not None and not count % _EVENTS_A_CALL:
                progress(log.path, position, survey.length)
    except OSError as error:
        raise NoLogsError(f"cannot read {shown(log.path)}: {error}") from error
    for run_id, block in waiting.items():
        runs[run_id].take(block)
    if not runs:
        raise EmptyLogError(f"no event in {shown(log.path)}") if isinstance(log, RldkStream) else unreadable([log])
    return list(runs.values())
