"""A run's files made anew from its event stream: what a killed run is owed.

The same engine that ran live runs over the recorded events, so alerts, CSV and report are what they would have been.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psutil

from ._files import read_object, replace_json
from ._judging import Second, blocks
from .adapters import Adapter, Survey
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors
from .exceptions import ConfigurationError, EmptyLogError, NoLogsError
from .ingest import find_logs, open_log, oriented, run_name
from .recorder import Recorder
from .remote import is_fetched, shown
from .runfiles import RunFiles, check_run_id

__all__ = [
    "folder_for", "folder_here", "is_ours", "lacking", "open_source", "rebuild_log", "rebuild_run", "recorded_thresholds", "status_of",
]

KILLED = "the process ended without a word (killed, out of memory, or power)"
UNSAID = "the log does not say how the run ended"

Progress = Callable[[int, int | None], None]

_HEAD = 4096
_TAIL = 1 << 16
# The process of a run on another machine cannot be asked whether it lives: it does if it wrote so lately.
_LATELY_S = 600.0
# What only the live run could know of itself.
_KEPT = (
    "began", "skipped_values", "lost", "rldk_failures", "environment", "trackers", "checkpoints_not_analysed", "stop_requested",
    "hub",
)


def rebuild_run(
    source: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    alert_thresholds: Mapping[str, Any] | None = None,
    adapter_hint: str | None = None,
    field_map: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes alerts, CSV and report of a run anew from its events, or for the first time from any other log.

    Args:
        source: The log, or a folder with one.
        run_id: The run, if the log holds several; by default the last one in it.
        output_dir: Where the files go. By default beside the stream, over what is there; those of a log that is not
            rldk's into a folder of their own (`folder_for`). Those of a log that was fetched from elsewhere go into a folder
            in the current one (`folder_here`), with a copy of the log.
        alert_thresholds: As of `RLDKCallback`; by default those that the run's manifest says it had.
        adapter_hint: As of `ingest_runs`.
        field_map: As of `ingest_runs`.
        progress: Called now and then with how much of the log is done, and how much there is, if known.

    Returns:
        The content of final_report.json. Its status is that of the report that is there, if it says how the run ended;
        `running` if the process that records it is alive; `failed` if there is a manifest and nothing else; and `unknown`
        if nothing is known but the log.

    Raises:
        NoLogsError: If there is no log, or more than one in the folder.
        EmptyLogError: If it has no event of the run.
        ConfigurationError: For a bad threshold, or if the files would go over those of a run that is still recorded, over
            those of a run whose stream holds less than they do (`jsonl_log_interval`), or over files that are not rldk's; or if the folder cannot be written.
        OSError: If a file could not be written.
    """
    streams = find_logs(source)
    if len(streams) > 1:
        raise NoLogsError(f"{source} holds {len(streams)} streams: name one of {', '.join(map(shown, streams[:5]))}")
    log = open_source(streams[0], adapter_hint, oriented(field_map))
    survey = log.survey()
    chosen = run_id if run_id is not None else survey.runs[-1] if survey.runs else None
    if chosen is None:
        raise EmptyLogError(f"no event in {shown(streams[0])}")
    return rebuild_log(log, survey, chosen, output_dir=output_dir, alert_thresholds=alert_thresholds, progress=progress)


def rebuild_log(
    log: Adapter,
    survey: Survey,
    run_id: str,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    alert_thresholds: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`rebuild_run` for a log that is open and was looked over.

    Args:
        log: The log.
        survey: What `log.survey` said.
        run_id: The run, as its events say; empty for events that do not.
        output_dir: As of `rebuild_run`.
        alert_thresholds: As of `rebuild_run`.
        progress: As of `rebuild_run`.
    """
    stream = log.path
    ours = isinstance(log, RldkStream)
    name = run_id or run_name(stream)
    fetched = is_fetched(stream)
    if fetched and output_dir is None:
        output_dir = folder_here(name, stream)
    folder = output_dir if output_dir is not None else stream.parent if ours else folder_for(stream)
    # A copy from elsewhere will be gone: the report's folder gets one of its own.
    files = RunFiles.of(folder, _file_name(name, stream), Path(folder) / stream.name if fetched and stream.is_file() else stream)
    there = RunFiles.of(stream.parent, name)
    manifest = (read_object(there.manifest) or read_object(files.manifest)) if ours else {}
    report = (read_object(there.report) or read_object(files.report)) if ours else {}
    status, reason = status_of(report, manifest, stream)
    if status == "running" and output_dir is None:
        raise ConfigurationError(
            f"run {name!r} is still being recorded by process {manifest.get('pid')}: give an output_dir for the rebuilt files"
        )
    poorer = lacking(manifest, report)
    if output_dir is None and poorer and (files.metrics.exists() or files.report.exists()):
        raise ConfigurationError(
            f"the files of run {name!r} hold every log, and its stream {poorer}: made anew they would be poorer. Give an "
            "output_dir for the rebuilt files"
        )
    _refuse_foreign(files)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"cannot write into {folder}: give another output_dir")
    if files.events != stream:
        if files.events.exists() and not _goes_on(stream, files.events):
            raise ConfigurationError(f"{files.events} is there and holds something else: give another output_dir")
        shutil.copyfile(stream, files.events)
        if manifest:
            replace_json(files.manifest, manifest)
    if alert_thresholds is None:
        alert_thresholds = recorded_thresholds(manifest)
    trainer = (manifest.get("trainer") or {}).get("family")
    count = 0
    with Second(log, run_id, survey, alert_thresholds) as second:
        detectors = make_detectors(alert_thresholds)
        recorder = Recorder(name, files, detectors, jsonl_interval=0, trainer=trainer, elsewhere=second.numbers)
        recorder.manifest = manifest
        for events in blocks(log, run_id, survey, progress):
            recorder.trainer = recorder.trainer or (None if count else events[0].model_info.get("trainer"))
            recorder.take(events)
            count += len(events)
        if not count:
            known = f" It has: {', '.join(map(repr, survey.runs))}" if survey.runs else ""
            raise EmptyLogError(f"no event of run {run_id!r} in {shown(stream)}.{known}")
        recorder.join(second.found())
    for key in _KEPT:
        if key in report:
            recorder.extra[key] = report[key]
    if log.damage.count:
        recorder.extra["skipped_lines"] = log.damage.count
    content = recorder.close(status, reason)
    if recorder.write_errors:
        raise OSError(f"not all files of run {name!r} could be written in {folder}")
    return content


def open_source(
    path: Path, adapter_hint: str | None = None, field_map: Mapping[str, str] | None = None
) -> Adapter:
    """The adapter of a log whose events are wanted.

    Raises:
        EmptyLogError: If there is nothing in it.
        NoLogsError: If it cannot be read.
    """
    try:
        return open_log(path, adapter_hint, field_map)
    except EmptyLogError as error:
        raise EmptyLogError(f"no event in {shown(path)}: {error}") from error


def recorded_thresholds(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `alert_thresholds` that a run had, by its manifest."""
    settings = manifest.get("rldk")
    thresholds = settings.get("alert_thresholds") if isinstance(settings, dict) else None
    return thresholds if isinstance(thresholds, dict) else None


def lacking(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What a run's stream lacks that its other files have, for a message; empty if it has all.

    Args:
        manifest: The content of run.json.
        report: The content of final_report.json.
    """
    lost = report.get("lost")
    events = lost.get("events") if isinstance(lost, dict) else None
    if type(events) is int and events > 0:
        return f"lacks {events} events that could not be written"
    parts = [manifest, *(part for part in manifest.get("resumed") or () if isinstance(part, dict))]
    settings = [part[key] for part in parts for key in ("rldk", "rldk_before") if isinstance(part.get(key), dict)]
    intervals = [item.get("jsonl_log_interval") for item in settings]
    interval = max((value for value in intervals if type(value) is int), default=1)
    return f"has one in {interval} steps (jsonl_log_interval)" if interval > 1 else ""


def folder_for(log: Path) -> Path:
    """Where the files of a run go that rldk did not record: a folder named after the run, beside the log.

    For the state in a checkpoint it is beside the checkpoint, which the trainer may delete.
    """
    place = log.resolve().parent
    if place.name.startswith("checkpoint-"):
        place = place.parent
    return place / f"{_file_name(run_name(log), log)}_rldk"


def _goes_on(stream: Path, there: Path) -> bool:
    """Whether a stream begins with all that is in another file: then it is a later copy of the same."""
    with open(stream, "rb") as new, open(there, "rb") as old:
        while block := old.read(_TAIL):
            if new.read(len(block)) != block:
                return False
    return True


def folder_here(name: str, log: Path) -> Path:
    """Where the files of a run go whose log is a copy from elsewhere: a folder named after it, in the current one."""
    return Path(f"{_file_name(name, log)}_rldk")


def _refuse_foreign(files: RunFiles) -> None:
    """Files of these names that somebody else wrote are not ours to replace."""
    for path in (files.alerts, files.metrics, files.report, files.page):
        if path.exists() and not is_ours(path):
            raise ConfigurationError(f"{path} is there and was not written by rldk: give another output_dir")


def is_ours(path: Path) -> bool:
    """Whether a file that stands where a run's alerts, CSV or report would go looks like one; an empty file does."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD).strip()
    except OSError:
        return False
    if not head:
        return True
    if path.suffix == ".csv":
        return head.startswith(b"step,wall_time")
    if path.suffix == ".html":
        return b"<title>rldk report</title>" in head
    return head == b"[]" or (b'"code"' in head if head.startswith(b"[") else head.startswith(b"{") and b'"run_id"' in head)


def _file_name(run_id: str, stream: Path) -> str:
    """The run's id if it may be part of a file's name: in a stream from elsewhere it can be anything."""
    try:
        return check_run_id(run_id)
    except ConfigurationError:
        return stream.stem.removesuffix("_events")


def status_of(report: Mapping[str, Any], manifest: Mapping[str, Any], stream: Path | None = None) -> tuple[str, str | None]:
    """How a recorded run ended, and why, by the report and the manifest that are there.

    Args:
        report: The content of final_report.json.
        manifest: The content of run.json.
        stream: The run's stream: it shows whether a run on another machine goes on.
    """
    status = report.get("status")
    if status in ("completed", "stopped", "failed"):
        return str(status), report.get("reason")
    if not manifest:
        return "unknown", UNSAID
    pid = manifest.get("pid")
    here = manifest.get("host") == platform.node()
    if here and isinstance(pid, int) and psutil.pid_exists(pid):
        return "running", None
    if not here and isinstance(manifest.get("host"), str) and stream is not None and _written_lately(stream):
        return "running", None
    return "failed", KILLED


def _written_lately(stream: Path) -> bool:
    """Whether a stream was written to a moment ago, and its last event says so too: a copy is new, and its events are not."""
    now = time.time()
    try:
        with open(stream, "rb") as file:
            status = os.fstat(file.fileno())
            if abs(now - status.st_mtime) > _LATELY_S:
                return False
            file.seek(max(0, status.st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return False
    for line in reversed(lines):
        try:
            said = datetime.fromisoformat(orjson.loads(line)["time"].replace("Z", "+00:00"))
            return abs(now - said.timestamp()) <= _LATELY_S
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):  # torn, or not an event of ours
            continue
    return True
