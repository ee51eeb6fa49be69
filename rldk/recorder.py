"""One run being recorded: events in; detectors, files and the report out.

Joins the engine (`Monitor`), the fold (`Summary`) and the sinks. It knows files, but no trainer: live it is fed by a
callback, offline by `rldk.rebuild`, by hand by a logger.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ._files import read_alerts, replace_bytes, replace_json
from ._guard import Guard
from .alerts_file import AlertsFile
from .detectors import Detector
from .event import Alert, Event, timestamp
from .monitor import Monitor
from .report import Curves, build_report, render_html
from .runfiles import RunFiles
from .sinks import Sink
from .sinks.console import ConsoleSink
from .sinks.jsonl import JsonlSink
from .sinks.metrics_csv import MetricsCsvSink
from .sinks.trackers import TrackerSink
from .summary import Summary

__all__ = ["Recorder"]

logger = logging.getLogger("rldk")

# Fewer batches than one in a hundred steps, so that they are not what makes the slowest percent of steps slow.
_EVENTS_HELD = 128
# A thread waits no longer than this for another: that one may hang on a disk or a log handler, and a signal may have
# interrupted what it needs.
_PATIENCE_S = 10.0


class Recorder:
    """Records a run.

    Args:
        run_id: The run.
        files: Where its files go.
        detectors: The armed detectors.
        guard: Catches and counts what goes wrong in here.
        trainer: The trainer's family, for the report.
        jsonl_interval: Steps between event lines; 0 for no stream.
        console_interval: Steps between console lines; 0 for none.
        resume_at: The step that a resumed run goes on from; None for a new run.
        trackers: Where alerts and how the run ended go beside rldk's own files; None for nowhere.
        elsewhere: As of `Monitor`.
    """

    def __init__(
        self,
        run_id: str,
        files: RunFiles,
        detectors: Iterable[Detector],
        *,
        guard: Guard | None = None,
        trainer: str | None = None,
        jsonl_interval: int = 1,
        console_interval: int = 0,
        resume_at: int | None = None,
        trackers: TrackerSink | None = None,
        elsewhere: Container[int] = (),
    ) -> None:
        self.run_id = run_id
        self.files = files
        self.guard = guard or Guard()
        self.trainer = trainer
        self.monitor = Monitor(detectors, self.guard, elsewhere)
        self.summary = Summary()
        self.curves = Curves()
        self.manifest: Mapping[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.report: dict[str, Any] | None = None
        self.write_errors = 0
        self._began = time.time()
        self._alerts_file = AlertsFile(files.alerts, self.monitor)
        self._csv = MetricsCsvSink(files.metrics, resume_at)
        self._stream = JsonlSink(files.events, jsonl_interval) if jsonl_interval else None
        console = ConsoleSink(console_interval)
        if resume_at is not None:
            console.start_at(resume_at)
            if self._stream is not None:
                self._stream.start_at(resume_at)
        # The stream comes first: whatever else fails, the line is on disk.
        self._sinks: list[Sink] = [console, self._csv] if self._stream is None else [self._stream, console, self._csv]
        watched = {self._stream, console if console_interval else None}
        self._live: list[Sink] = [sink for sink in self._sinks if sink in watched]
        self._trackers = trackers if trackers is not None and trackers.names else None
        if self._trackers is not None:
            self._sinks.append(self._trackers)
            self._live.append(self._trackers)
        self._held: list[Event] = []
        self._setup: Mapping[str, Any] | None = None
        self._first_notes: tuple[str, ...] = ()
        # The watch for silence records from its own thread. A signal may end the run in the middle of a record.
        self._one_at_a_time = threading.RLock()

    def replay(self, events: Iterable[Event]) -> None:
        """Takes the earlier events of a resumed run into detectors and summary, without writing them again.

        A run without a stream has only its alerts to go on with.
        """
        replayed = False
        for event in events:
            replayed = True
            self.monitor.observe(event)
            self.summary.add(event)
            self.curves.add(event)
        if not replayed:
            self.monitor.alerts.extend(read_alerts(self.files.alerts))

    def take(self, events: Sequence[Event]) -> None:
        """Takes a block of events of a run that is over: files come out as by `record` of each, but for a stream of events."""
        changed = self.monitor.observe_block(events)
        self._fold(events)
        self._announce(changed)

    def join(self, found: Iterable[list[Alert] | dict[str, Any]]) -> None:
        """Takes in what another process found in the events that were taken: alerts as they came, at last `Monitor.found`."""
        for part in found:
            if isinstance(part, list):
                self._announce(part)
            else:
                self.guard.failures.update(part["failed"])
                self.monitor.join(part)

    def begin(self, setup: Mapping[str, Any]) -> list[Alert]:
        """Judges what is known as training begins (`Monitor.begin`). It is written with the first event.

        Returns:
            The alerts that it raised.
        """
        with self.alone():
            changed = self.monitor.begin(setup)
            self._setup = setup
            self._first_notes = _messages(changed)
            self._announce(changed)
        return changed

    def record(self, event: Event) -> list[Alert]:
        """Takes one event.

        Returns:
            The alerts that it raised, made worse or resolved.
        """
        alone = self._one_at_a_time.acquire(timeout=_PATIENCE_S)
        try:
            return self._record(event)
        finally:
            if alone:
                self._one_at_a_time.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other threads out, as long as they and this one can wait."""
        alone = self._one_at_a_time.acquire(timeout=_PATIENCE_S)
        try:
            yield
        finally:
            if alone:
                self._one_at_a_time.release()

    def _record(self, event: Event) -> list[Alert]:
        changed = self.monitor.observe(event)
        if changed:
            event = event._replace(notes=event.notes + _messages(changed))
        setup, self._setup = self._setup, None
        if setup is not None:
            event = event._replace(model_info={**event.model_info, "setup": setup}, notes=self._first_notes + event.notes)
        self._held.append(event)
        if len(self._held) >= _EVENTS_HELD:
            self._pass_on()
        for sink in self._live:
            # Inline and not through _attempt: this runs at every log call.
            try:
                sink.write(event)
            except OSError as error:
                self._disk_trouble(error)
                if sink is self._stream:
                    self._setup = setup  # goes with the next event
            except Exception as error:  # noqa: BLE001  # a bug in a sink; counted and named in the report
                self.guard.caught(f"sink {type(sink).__name__}", error)
        self._announce(changed)
        return changed

    def _announce(self, changed: list[Alert]) -> None:
        if self._alerts_file.behind:
            self._attempt(self._alerts_file, self._alerts_file.update)
        for alert in changed:
            for sink in self._sinks:
                self._attempt(sink, sink.alert, alert)

    def _pass_on(self) -> None:
        """Gives the held events to those that nobody watches live: in batches they cost the training step little."""
        held, self._held = self._held, []
        self._fold(held)

    def _fold(self, events: Sequence[Event]) -> None:
        # One after the other: a loop of one thing's code is quicker than one of three.
        for event in events:
            self.summary.add(event)
        self.curves.add_all(events)
        for event in events:
            self._attempt(self._csv, self._csv.write, event)

    def _attempt(self, sink: object, function: Callable[..., None], *args: Any) -> None:
        """One destination that fails must not cost the others the event."""
        try:
            function(*args)
        except OSError as error:
            self._disk_trouble(error)
        except Exception as error:  # noqa: BLE001  # a bug in a sink; counted and named in the report
            self.guard.caught(f"sink {type(sink).__name__}", error)

    def _disk_trouble(self, error: OSError) -> None:
        """Says once what a full or unwritable disk means for the recording."""
        self.write_errors += 1
        if self.write_errors == 1:
            logger.warning(
                "rldk: cannot write (%s). Training goes on; lost events are counted in the report of run %s, and "
                "writing resumes when it can.", error, self.run_id,
            )

    def write_report(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Builds the report as of now and writes it. What cannot be written is still returned."""
        self._pass_on()
        trackers = self._trackers.status() if self._trackers is not None else {}
        losses = {type(sink).__name__: sink.lost for sink in self._sinks if sink.lost}
        extra: dict[str, Any] = {
            "began": timestamp(self._began),
            "updated": timestamp(time.time()),
            "lost": {"events": self._stream.lost if self._stream else 0, "by_sink": losses, "write_errors": self.write_errors},
            "skipped_values": dict(self.skipped),
            "rldk_failures": {place: dict(failure) for place, failure in self.guard.failures.items()},
            "files": {name: str(path) for name, path in self.files._asdict().items()},
            **({"trackers": trackers} if trackers else {}),
            **self.extra,
        }
        self.report = build_report(
            run_id=self.run_id, status=status, summary=self.summary, alerts=self.monitor.alerts,
            dropped_alerts=self.monitor.dropped_alerts, coverage=self.monitor.coverage(), reason=reason,
            trainer=self.trainer, extra=extra,
        )
        self._attempt(self, replace_json, self.files.report, self.report)
        return self.report

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes run.json."""
        self.manifest = manifest
        self._attempt(self, replace_json, self.files.manifest, dict(manifest))

    def write_page(self) -> None:
        """Writes the report page, from the report as last built; a failure costs the page alone and is counted."""
        if self.report is None:
            return
        try:
            self._write_page(self.report)
        except OSError as error:
            self._disk_trouble(error)
        except Exception as error:  # noqa: BLE001  # a page is not worth a training, nor the rest of the record
            self.guard.caught("report page", error)

    def _write_page(self, report: Mapping[str, Any]) -> None:
        page = render_html(report, self.manifest, self.monitor.alerts, self.curves.to_dict())
        replace_bytes(self.files.page, page.encode("utf-8", "replace"))

    def close(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Writes what is left, lets go of the files, and writes the report."""
        with self.alone():
            self._pass_on()
            for sink in self._sinks:
                if sink is not self._trackers:
                    self._attempt(sink, sink.close)
            if self._alerts_file.behind:
                self._attempt(self._alerts_file, self._alerts_file.update)
            report = self.write_report(status, reason)
            if self._trackers is not None:
                # After the report, since it takes as long as services of others take, and once more with what became of it.
                alerts = [alert.to_dict() for alert in self.monitor.alerts]
                self._attempt(self._trackers, self._trackers.summarise, report, alerts)
                self._attempt(self._trackers, self._trackers.close)
                report = self.write_report(status, reason)
            troubles = self.write_errors, len(self.guard.failures)
            # After the report: if the process is killed while the page is made, the report is there.
            self.write_page()
            return report if troubles == (self.write_errors, len(self.guard.failures)) else self.write_report(status, reason)


def _messages(changed: Iterable[Alert]) -> tuple[str, ...]:
    """What the event's notes say of the alerts that were raised or made worse."""
    return tuple(alert.message for alert in changed if alert.resolved_step is None)
