"""A run being watched: its log as it grows, its own files beside it, and its alerts.

The alerts are the run's own where its alerts.json is there; where it is not, the events go through the same engine that
ran live, which raises the same ones. Reads, and writes nothing.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ._files import read_alerts, read_object
from ._judging import blocks
from .adapters import Adapter, Feed, records_of
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors, merged_thresholds
from .event import Alert, Event, Severity
from .exceptions import ConfigurationError, EmptyLogError, NoLogsError
from .follow import LineFollower
from .ingest import claimed, find_logs, open_log
from .live_view import Fold, RunState, View
from .monitor import Monitor
from .rebuild import KILLED, recorded_thresholds
from .runfiles import RunFiles, check_run_id
from .timeline import Resumes, is_resume

__all__ = ["WatchedRun", "run_logs", "sound_alerts"]

# Beside the log, a few small files are looked at this often.
_LOOK_S = 1.0
# A log that can only be read as a whole is read again no more often than this, nor for more than a tenth of the time.
_WHOLE_S = 2.0
# A log with ever new runs must not fill the memory.
_MAX_OTHERS = 1000
_ENDS = ("completed", "stopped", "failed")


class WatchedRun:
    """Follows one run.

    Args:
        source: The run's folder, or its log; neither need exist yet.
        run_id: The run, if there are several; by default the one that began last.
        thresholds: As `alert_thresholds` of `RLDKCallback`, for alerts that are found by replay; they win over
            those that the run's manifest says it had, detector by detector.
        chosen: Metrics to show, in place of those that rldk chooses.

    Raises:
        ConfigurationError: For a bad threshold.
    """

    def __init__(
        self, source: str | os.PathLike[str], *, run_id: str | None = None, thresholds: Mapping[str, Any] | None = None,
        chosen: Sequence[str] = (),
    ) -> None:
        make_detectors(thresholds)
        self.source = Path(source)
        self._wanted, self._thresholds, self._chosen = run_id, thresholds, chosen
        self._follower: LineFollower | None = None
        self._adapter: Adapter | None = None
        self._feed: Feed | None = None
        self._restarts = 0
        self._lines: list[tuple[int, bytes]] = []  # taken from the file, not yet read as events
        self._refolding: Iterator[Event] | None = None
        self._read_whole = (0.0, 0.0)  # a log that is read as a whole: its time of writing, and when to look again
        self._store: type[Adapter] | None = None  # the format of a log that has no lines
        self._first_time = True
        self._others: set[str] = set()
        self._notes: list[str] = []
        self._looked = 0.0
        self._own_alerts: list[Alert] | None = None
        self._monitor: Monitor | None = None
        self._continues = False  # whether the next event may go on from the last one, in another file
        self._signatures: dict[Path, tuple[int, int, int]] = {}
        self._manifest: dict[str, Any] = {}
        self._report: dict[str, Any] = {}
        self._begin("")

    # What a person asks for

    @property
    def path(self) -> Path | None:
        """The log; None before there is one."""
        return self._follower.path if self._follower is not None else None

    @property
    def alerts(self) -> list[Alert]:
        """The run's alerts."""
        if self._own_alerts is not None:
            return self._own_alerts
        return list(self._monitor.alerts) if self._monitor is not None else []

    @property
    def ended(self) -> bool:
        """Whether the run has ended, as far as its files say."""
        return self._fold.settled(self._state()).ended

    def poll(self, budget: float = 0.2) -> bool:
        """Takes what has come since.

        Args:
            budget: Seconds after which it returns although there is more.

        Returns:
            Whether all was taken.

        Raises:
            OSError: If the log is there and cannot be read.
        """
        deadline = time.monotonic() + budget
        if not self._locate():
            return True
        done = self._take(deadline)
        if done or self._first_time:
            self._look()
        if done:
            self._first_time = False
        return done

    def view(self, now: float | None = None) -> View:
        """What there is to see now; `now` in seconds since the epoch."""
        follower, notes = self._follower, list(self._notes)
        if follower is None:
            notes.insert(0, f"waiting for {self.source}: no log is there yet")
        elif follower.missing:
            notes.insert(0, f"{follower.path} is gone; this is what it last said")
        elif not self._fold.events:
            notes.insert(0, "no event yet")
        if self._others:
            notes.append(f"the log holds {len(self._others)} more runs: --run-id names one")
        reading = follower.progress if follower is not None and self._first_time and follower.size else None
        damage = self._adapter.damage.count if self._adapter is not None else 0
        return self._fold.view(
            time.time() if now is None else now,
            source=str(follower.path if follower is not None else self.source), state=self._state(), alerts=self.alerts,
            judged="run" if self._own_alerts is not None else "replay",
            modified=follower.modified if follower is not None else 0.0, malformed=damage, reading=reading, notes=notes,
        )

    def close(self) -> None:
        """Lets go of the log."""
        if self._follower is not None:
            self._follower.close()

    # The log

    def _locate(self) -> bool:
        """Finds the log, once it is there."""
        if self._follower is not None:
            return True
        try:
            found = run_logs(self.source)
        except NoLogsError:
            return False
        if self._wanted is not None and len(found) > 1:
            found = [path for path in found if path.name == f"{self._wanted}_events.jsonl"] or found
        newest = max(found, key=_modified)
        if len(found) > 1:
            self._notes.append(f"the newest of {len(found)} logs in {self.source}")
        return self._turn_to(newest)

    def _turn_to(self, path: Path) -> bool:
        """Follows this log from now on. Returns whether it could be looked at."""
        try:
            self._store = claimed(path)
        except OSError:
            return False  # gone again
        if self._follower is not None:
            self._follower.close()
        self._follower = LineFollower(path)
        self._adapter = self._feed = None
        self._read_whole = (0.0, 0.0)
        return True

    def _take(self, deadline: float) -> bool:
        assert self._follower is not None
        if self._store is not None:
            return not self._opened() or self._take_whole()
        while True:
            if self._refolding is not None:
                for event in self._refolding:
                    self._show(event)
                    if time.monotonic() > deadline:
                        return False
                self._refolding = None
            if not self._lines:
                chunk = self._follower.read()
                if chunk.fresh:
                    self._open_again()
                self._lines = list(enumerate(chunk.lines, chunk.first))
                if not self._lines:
                    return self._take_whole() if self._adapter is not None and self._feed is None else True
            if not self._opened():
                return True
            if self._feed is None:
                self._lines = []  # a document: its lines mean nothing one by one
                continue
            # A few at a time, so that the deadline is kept.
            batch, self._lines = self._lines[:256], self._lines[256:]
            self._read(batch)
            if time.monotonic() > deadline:
                return False

    def _open_again(self) -> None:
        """The file begins anew: the first one, one that replaced it, or the same one emptied."""
        self._adapter = self._feed = None
        self._read_whole = (0.0, 0.0)
        self._continues = bool(self._fold.events)

    def _opened(self) -> bool:
        """Whether the log's format is known; told by its first records, of which there may be none yet."""
        assert self._follower is not None
        if self._adapter is None:
            try:
                self._adapter = open_log(self._follower.path)
            except (EmptyLogError, NoLogsError):
                return False
            self._feed = self._adapter.feed()
        return True

    def _read(self, batch: list[tuple[int, bytes]]) -> None:
        assert self._adapter is not None and self._feed is not None
        events = self._feed(list(records_of(batch, self._adapter.damage)))
        if events is None:
            # Flat lines whose first ones looked like another trainer's: from the first line again, with what is known now.
            self._adapter.damage.reset()
            self._begin("")
            assert self._follower is not None
            until = batch[-1][0]
            again = [item for item in _lines_of(self._follower.path) if item[0] <= until]
            events = self._feed(list(records_of(again, self._adapter.damage))) or []
        for event in events:
            if not self._is_ours(event):
                continue
            if event.step < self._fold.step and self._goes_back(event):
                # What came after that step is void: all over again, to the end of what has been taken, without it.
                self._lines = []
                self._refold()
                return
            self._show(event)

    def _is_ours(self, event: Event) -> bool:
        """Whether an event is of the run that is shown; a run that begins takes the place of the one before it."""
        run_id = event.run_id
        if self._continues:
            self._continues = False
            if run_id != self._fold.run_id or event.step < self._fold.step:
                self._begin(run_id)  # another run, or the same one from the start: not the rest of a rotated log
        if self._wanted is not None:
            if run_id not in (self._wanted, ""):
                if len(self._others) < _MAX_OTHERS:
                    self._others.add(run_id)
                return False
        elif run_id and run_id != self._fold.run_id:
            if run_id in self._others:
                return False
            if self._fold.run_id and len(self._others) < _MAX_OTHERS:
                self._others.add(self._fold.run_id)
            if self._fold.events:
                self._begin(run_id)
        if run_id and not self._fold.run_id:
            self._fold.run_id = run_id
            self._forget_files()
        return True

    def _show(self, event: Event) -> None:
        self._fold.take(event)
        if self._monitor is not None and self._own_alerts is None:
            # Notes were written by the live run: they are of its alerts, which are about to be found again.
            self._monitor.observe(event._replace(notes=()) if event.notes else event)
        elif self._own_alerts is None:
            self._look()
            self._monitor = None if self._own_alerts is not None else self._engine()
            if self._monitor is not None:
                self._monitor.observe(event._replace(notes=()) if event.notes else event)

    def _refold(self) -> None:
        """Begins the run's fold anew, over the events that still stand."""
        assert self._follower is not None
        path, end, run_id = self._follower.path, self._follower.position, self._fold.run_id
        adapter = open_log(path)
        feed = adapter.feed() or (lambda rows: [])
        feed(list(records_of(itertools.islice(_lines_of(path, end), 64), adapter.damage)))  # the trainer is known from here on

        def read() -> Iterator[Event]:
            for item in _lines_of(path, end):
                for event in feed(list(records_of([item], adapter.damage))) or ():
                    if event.run_id in (run_id, ""):
                        yield event

        def standing() -> Iterator[Event]:
            marks, last = [], -1
            for index, event in enumerate(read()):
                if self._goes_back(event) and (event.step < last or not event.metrics):
                    marks.append((index, run_id, event.step if not event.metrics else event.step - 1))
                if event.phase == "train":
                    last = event.step
            resumes = Resumes(marks)
            for index, event in enumerate(read()):
                if resumes.keep(index, run_id, event.step):
                    yield event

        self._begin(run_id)
        self._refolding = standing()

    def _goes_back(self, event: Event) -> bool:
        """Whether an event whose step is an earlier one makes void what stood beyond it.

        rldk marks a resume; in other logs a training that goes back to a step was resumed there.
        """
        if isinstance(self._adapter, RldkStream):
            return is_resume(event.metrics, event.notes)
        return event.phase == "train"

    def _take_whole(self) -> bool:
        """Reads a log that has no lines of its own, if it was written to since."""
        assert self._follower is not None and self._adapter is not None
        written, due = self._read_whole
        now = time.monotonic()
        if now < due:
            return True
        if self.source.is_dir() and (newest := max(run_logs(self.source), key=_modified)) != self._follower.path:
            # Each checkpoint has a state of its own, which holds that of the one before.
            return not self._turn_to(newest)
        if self._store is not None:
            modified = self._store.modified(self._follower.path)
            self._follower.missing, self._follower.modified = not modified, modified or self._follower.modified
        if self._follower.modified != written and not self._follower.missing:
            self._adapter.damage.reset()
            for event in self._anew(self._adapter):
                self._show(event)
            self._read_whole = self._follower.modified, now + max(_WHOLE_S, 10 * (time.monotonic() - now))
        return True

    def _anew(self, adapter: Adapter) -> Iterator[Event]:
        """Begins the fold anew, and yields the events of a log that is read as a whole; of a store's runs, those of one."""
        if self._store is None:
            self._begin("")
            yield from adapter.events()
            return
        try:
            survey = adapter.survey()
        except OSError:
            if not self._fold.events:
                raise
            return  # its writer has it for a moment; what was read before stays on the screen
        known = [run for run in survey.runs if self._wanted in (None, run)]
        self._others = {run for run in survey.runs if run not in known[-1:]}
        self._begin(known[-1] if known else self._wanted or "")
        for block in blocks(adapter, known[-1], survey) if known else ():
            yield from block

    def _begin(self, run_id: str) -> None:
        """Forgets what was seen of the run."""
        self._fold = Fold(self._chosen)
        self._fold.run_id = run_id
        self._monitor, self._continues = None, False
        self._forget_files()

    # The files beside it

    def _forget_files(self) -> None:
        self._own_alerts = None
        self._manifest, self._report = {}, {}
        self._signatures.clear()
        self._looked = 0.0

    def _look(self) -> None:
        """Reads the run's manifest, report and alerts, where they have changed."""
        now = time.monotonic()
        if self._looked and now - self._looked < _LOOK_S:
            return
        self._looked = now
        files = self._files()
        if files is None:
            return
        if self._changed(files.manifest):
            self._manifest = read_object(files.manifest)
        if self._changed(files.report):
            self._report = read_object(files.report)
        if self._changed(files.alerts):
            self._own_alerts, self._monitor = sound_alerts(files.alerts), None

    def _files(self) -> RunFiles | None:
        if self._follower is None:
            return None
        stream = self._follower.path
        name = self._fold.run_id or stream.stem.removesuffix("_events")
        try:
            check_run_id(name)
        except ConfigurationError:
            return None
        # A stream that stands elsewhere (`event_log_path`) is found by the folder that was named.
        folder = self.source if self.source.is_dir() else stream.parent
        beside = RunFiles.of(stream.parent, name, stream)
        return RunFiles.of(folder, name, stream) if not beside.manifest.exists() and folder != stream.parent else beside

    def _changed(self, path: Path) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False
        signature = status.st_ino, status.st_size, status.st_mtime_ns
        if self._signatures.get(path) == signature:
            return False
        self._signatures[path] = signature
        return True

    def _engine(self) -> Monitor:
        try:
            detectors = make_detectors(merged_thresholds(recorded_thresholds(self._manifest), self._thresholds))
        except ConfigurationError as error:
            self._notes.append(f"the thresholds in the run's manifest cannot be used: {error}")
            detectors = make_detectors(self._thresholds)
        return Monitor(detectors)

    def _state(self) -> RunState:
        """Whether the run goes on: what its report says, and whether its process is alive."""
        status, reason = self._report.get("status"), self._report.get("reason")
        arguments = self._manifest.get("arguments")
        planned = arguments.get("max_steps") if isinstance(arguments, dict) else None
        max_steps = planned if type(planned) is int and planned > 0 else None
        if status in _ENDS:
            return RunState(str(status), str(reason) if reason else None, max_steps)
        pid = self._manifest.get("pid")
        if type(pid) is int and self._manifest.get("host") == platform.node():
            if psutil.pid_exists(pid):
                return RunState("running", None, max_steps)
            return RunState("failed", KILLED, max_steps)
        return RunState("running" if status == "running" else "unknown", None, max_steps)


def sound_alerts(path: Path) -> list[Alert]:
    """The alerts of an alerts.json that are what they should be: the file may come from anywhere."""
    severities = {severity.value for severity in Severity}
    return [
        alert
        for alert in read_alerts(path)
        if isinstance(alert.severity, str) and alert.severity in severities
        and all(isinstance(text, str) for text in (alert.code, alert.name, alert.metric, alert.message, alert.advice))
        and type(alert.step) is int and type(alert.resolved_step) in (int, type(None)) and isinstance(alert.evidence, dict)
    ]


def run_logs(source: str | os.PathLike[str]) -> list[Path]:
    """The logs of a source, as `find_logs`; in a folder, also streams of its runs that stand elsewhere (`event_log_path`).

    Raises:
        NoLogsError: If there is none.
    """
    folder = Path(source)
    if not folder.is_dir():
        return find_logs(source)
    elsewhere = []
    for path in folder.glob("*_final_report.json"):
        files = read_object(path).get("files")
        stream = files.get("events") if isinstance(files, dict) else None
        if isinstance(stream, str) and Path(stream).is_file() and Path(stream).parent != folder:
            elsewhere.append(Path(stream))
    if elsewhere and not any(folder.glob("*_events.jsonl")):
        return elsewhere
    return find_logs(folder)


def _modified(path: Path) -> float:
    try:
        return (claimed(path) or Adapter).modified(path)
    except OSError:
        return 0.0


def _lines_of(path: Path, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from its start, up to a number of bytes."""
    taken = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            taken += len(line)
            if end is not None and taken > end:
                return
            yield number, line

