"""Which run is meant by a path: what runs a source holds, and the one that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .adapters import Adapter, Survey
from .adapters.rldk_stream import RldkStream
from .event import Event
from .exceptions import ConfigurationError, IngestError, NoLogsError
from .ingest import find_logs, open_log, oriented, run_names, unreadable
from .metrics import nearest
from .remote import shown
from .timeline import standing

__all__ = ["FoundRun", "earlier_events", "find_runs", "listed", "one_run"]

# The ends of the names of a run's files beside its stream: each stands for the run.
_BESIDE = ("_final_report.json", "_alerts.json", "_metrics.csv", "_run.json", "_report.html")
_SHOWN = 10


class FoundRun(NamedTuple):
    """A run, and the log that it is in.

    Attributes:
        log: The log.
        survey: What `log.survey` said.
        run_id: The run as its events say; empty if they do not.
        name: Its name for people.
    """

    log: Adapter
    survey: Survey
    run_id: str
    name: str


def find_runs(
    source: str | os.PathLike[str], adapter_hint: str | None = None, field_map: Mapping[str, str] | None = None
) -> list[FoundRun]:
    """The runs of a source, in the order of their files.

    Args:
        source: A folder, a glob, a log, or any of a run's files.
        adapter_hint: As of `rldk.ingest_runs`.
        field_map: As of `rldk.ingest_runs`.

    Raises:
        IngestError: If there is no log, or none with an event.
    """
    found: list[FoundRun] = []
    trouble: IngestError | None = None
    paths = find_logs(_stream_of(source))
    for path, name in zip(paths, run_names(paths)):
        try:
            log = open_log(path, adapter_hint, oriented(field_map))
            survey = log.survey()
            if not survey.runs:
                raise unreadable([log])
        except OSError as error:
            if not isinstance(error, IngestError):
                error = NoLogsError(f"cannot read {shown(path)}: {error}")
            trouble = trouble or error
        except IngestError as error:  # a run that has just begun must not hide the others
            trouble = trouble or error
        else:
            found += [FoundRun(log, survey, run_id, run_id or name) for run_id in survey.runs]
    if not found:
        raise trouble or NoLogsError(f"no log in {os.fspath(source)!r}")
    return found


def one_run(
    source: str | os.PathLike[str], run_id: str | None = None, adapter_hint: str | None = None,
    field_map: Mapping[str, str] | None = None,
) -> FoundRun:
    """The run of a source that is asked for, or its only one.

    Raises:
        IngestError: As `find_runs`.
        ConfigurationError: If there are several, or none of that name; the message lists them.
    """
    found = find_runs(source, adapter_hint, field_map)
    chosen = found if run_id is None else [item for item in found if item.name == run_id]
    names = [item.name for item in found]
    place = os.fspath(source)
    if not chosen:
        raise ConfigurationError(f"no run {run_id!r} in {place!r}.{nearest(str(run_id), names)} It has: {listed(names)}")
    if len(chosen) > 1 and run_id is None:
        raise ConfigurationError(f"{place!r} holds {len(names)} runs; choose one by its run_id (--run on the command line): {listed(names)}")
    if len(chosen) > 1:
        raise ConfigurationError(
            f"{place!r} has run {run_id!r} in several files: name one of {listed(shown(item.log.path) for item in chosen)}"
        )
    return chosen[0]


def _stream_of(source: str | os.PathLike[str]) -> str:
    """The stream of the run that a file belongs to; anything else as it is."""
    path = Path(source)
    for end in _BESIDE:
        if path.name.endswith(end):
            stream = path.with_name(f"{path.name.removesuffix(end)}_events.jsonl")
            return str(stream) if stream.is_file() else os.fspath(source)
    return os.fspath(source)


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first few, and how many more."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

def earlier_events(path: Path, run_id: str, step: int) -> Iterator[Event]:
    """The events of a run up to a step, without what an earlier resume left behind."""

    def read() -> Iterator[Event]:
        return (event for event in RldkStream(path).events() if event.run_id in (run_id, ""))

    if path.exists():
        for event in standing(read):
            if event.step <= step:
                yield event
