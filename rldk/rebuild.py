"""A run's files made anew from its event stream: what a killed run is owed.

The same engine that ran live runs over the recorded events, so alerts, CSV and report are what they would have been.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from ._files import read_object
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors
from .event import Event
from .exceptions import ConfigurationError, EmptyLogError, NoLogsError
from .ingest import find_logs
from .recorder import Recorder
from .runfiles import RunFiles, check_run_id
from .timeline import standing

__all__ = ["rebuild_run"]

KILLED = "the process ended without a word (killed, out of memory, or power)"


def rebuild_run(
    source: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    alert_thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes alerts, CSV and report of a run anew from its events.

    Args:
        source: The event stream, or a folder with one.
        run_id: The run, if the stream holds several; by default the last one in it.
        output_dir: Where the files go; by default beside the stream, over what is there.
        alert_thresholds: As of `RLDKCallback`; by default those that the run's manifest says it had.

    Returns:
        The content of final_report.json. Its status is that of the report that is there, if it says how the run ended;
        `running` if the process that records it is alive; else `failed`.

    Raises:
        NoLogsError: If there is no stream, or more than one in the folder.
        EmptyLogError: If the stream has no event of the run.
        ConfigurationError: For a bad threshold, or if the files would go over those of a run that is still recorded.
    """
    streams = find_logs(source)
    if len(streams) > 1:
        raise NoLogsError(f"{source} holds {len(streams)} streams: name one of {', '.join(map(str, streams[:5]))}")
    stream = streams[0]
    chosen = run_id if run_id is not None else _last_run(stream)
    if chosen is None:
        raise EmptyLogError(f"no event in {stream}")
    name = chosen or stream.stem.removesuffix("_events")
    files = RunFiles.of(output_dir if output_dir is not None else stream.parent, _file_name(name, stream), stream)
    there = RunFiles.of(stream.parent, name)
    manifest = read_object(there.manifest) or read_object(files.manifest)
    report = read_object(there.report) or read_object(files.report)
    status, reason = _status(report, manifest)
    if status == "running" and output_dir is None:
        raise ConfigurationError(
            f"run {name!r} is still being recorded by process {manifest.get('pid')}: give an output_dir for the rebuilt files"
        )
    if alert_thresholds is None:
        alert_thresholds = (manifest.get("rldk") or {}).get("alert_thresholds")

    def read() -> Iterator[Event]:
        return (event for event in RldkStream(stream).events() if event.run_id == chosen)

    trainer = (manifest.get("trainer") or {}).get("family")
    recorder = Recorder(name, files, make_detectors(alert_thresholds), jsonl_interval=0, trainer=trainer)
    count = 0
    for event in standing(read):
        # Notes were written by the live run: they are of its alerts, which are about to be found again.
        recorder.record(event._replace(notes=()))
        recorder.trainer = recorder.trainer or event.model_info.get("trainer")
        count += 1
    if not count:
        raise EmptyLogError(f"no event of run {chosen!r} in {stream}")
    for key in ("began", "skipped_values", "lost", "rldk_failures", "environment"):
        if key in report:
            recorder.extra[key] = report[key]
    return recorder.close(status, reason)


def _file_name(run_id: str, stream: Path) -> str:
    """The run's id if it may be part of a file's name: in a stream from elsewhere it can be anything."""
    try:
        return check_run_id(run_id)
    except ConfigurationError:
        return stream.stem.removesuffix("_events")


def _status(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[str, str | None]:
    status = report.get("status")
    if status in ("completed", "stopped", "failed"):
        return str(status), report.get("reason")
    pid = manifest.get("pid")
    if manifest.get("host") == platform.node() and isinstance(pid, int) and psutil.pid_exists(pid):
        return "running", None
    return "failed", KILLED


def _last_run(stream: Path) -> str | None:
    last = None
    for event in RldkStream(stream).events():
        last = event.run_id
    return last
