"""A recorded run shown to the detectors: a block of events at a time; of a large stream most detectors work in a second process.

Decoding a line costs a third of what judging it does, so that two processes, each of which reads the stream and has half of
the work, are done nearly twice as fast as one. What they find is put together in the order in which one would find it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapters import Adapter, Survey
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors
from .event import Alert, Event
from .monitor import Monitor
from .timeline import Resumes

__all__ = ["EVENTS_A_BLOCK", "SECOND_AT", "Second", "blocks"]

# Of 128 to 1024 the quickest: what its events hold stays in the processor's cache while the detectors take turns.
EVENTS_A_BLOCK = 256
# Bytes of a stream from which on a second process is worth its half second of start.
SECOND_AT = 64_000_000
# What the first process has to do besides (CSV, curves, summary) costs as much as most detectors: of eight it keeps one.
_KEPT = 8

# Without the main module, which a user's script may have left unguarded, and without what lies in the working directory.
_CHILD = "import json, sys; sys.path[:], *job = json.load(sys.stdin); from rldk._judging import work; work(*job)"


def blocks(
    log: Adapter, run_id: str, survey: Survey, progress: Callable[[int, int | None], None] | None = None
) -> Iterator[list[Event]]:
    """Yields the events of a run that no resume has made void, a block at a time; of a log that grows, those surveyed.

    Args:
        log: The log.
        run_id: The run, as its events say; empty for events that do not.
        survey: What `log.survey` said.
        progress: Called after each block with the position of its last event, and with how many there are, if known.
    """
    later = Resumes(survey.resumes)
    end = math.inf if survey.length is None else survey.length
    block: list[Event] = []
    for position, event in log.numbered(run_id or None):
        if position > end:
            break
        mine = event.model_info.get("run_id", "") == run_id or event.run_id == run_id  # the latter takes a call
        if mine and (not survey.resumes or later.keep(position, run_id, event.step)):
            block.append(event)
            if len(block) >= EVENTS_A_BLOCK:
                yield block
                block = []
                if progress is not None:
                    progress(position, survey.length)
    if block:
        yield block


class Second:
    """Some of a run's detectors in a process of their own, over the same stream. To be used in a `with`.

    Whatever goes wrong with that process, its detectors judge in this one after all, which takes longer.

    Args:
        log: The log.
        run_id: The run.
        survey: What `log.survey` said.
        thresholds: As of `make_detectors`.

    Attributes:
        numbers: The detectors that it judges with; none where one process is enough, or has no processor beside it.
    """

    def __init__(self, log: Adapter, run_id: str, survey: Survey, thresholds: Mapping[str, Any] | None) -> None:
        self._job = os.path.abspath(log.path), log.field_map, run_id, survey, thresholds
        large = isinstance(log, RldkStream) and log.path.stat().st_size >= SECOND_AT and _processors() > 1
        self.numbers = _apart(len(make_detectors())) if large else frozenset()
        self._process: subprocess.Popen[bytes] | None = None
        # A file and not a pipe, which is full at some point: a run may have any number of alerts.
        self._said = tempfile.TemporaryFile() if large else None  # noqa: SIM115  # closed in __exit__

    def __enter__(self) -> Second:
        if self._said is None or not sys.executable or getattr(sys, "frozen", False):
            return self
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD], stdin=subprocess.PIPE, stdout=self._said, stderr=subprocess.DEVNULL
            )
            assert self._process.stdin is not None
            with self._process.stdin as pipe:
                pipe.write(json.dumps([sys.path, *self._job]).encode())
        except Exception:  # noqa: BLE001  # no memory for a process, thresholds that cannot be sent: it is done without
            self._stop()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop()
        if self._said is not None:
            self._said.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def found(self) -> Iterator[list[Alert] | dict[str, Any]]:
        """Yields the alerts of each block as `Monitor.observe_block` gives them, and at last what `Monitor.join` takes."""
        if not self.numbers:
            return
        # A detector that failed there is to fail here, where it is logged and counted.
        if self._said is None or self._process is None or self._process.wait() != 0:
            yield from _judged(*self._job)
            return
        self._said.seek(0)
        for line in self._said:
            said = json.loads(line)
            yield [Alert(*alert) for alert in said] if isinstance(said, list) else said


def work(*job: Any) -> None:
    """The second process: judges, and writes what `Second.found` yields, a line each."""
    gc.set_threshold(50_000, 20, 20)  # as in `rldk.cli`
    for part in _judged(*job):
        if isinstance(part, dict) and part["failed"]:
            sys.exit(1)
        # Python's own JSON keeps NaN; there is little of it.
        sys.stdout.buffer.write(json.dumps(part).encode() + b"\n")


def _judged(
    path: str, field_map: Mapping[str, str], run_id: str, survey: Sequence[Any], thresholds: Mapping[str, Any] | None
) -> Iterator[list[Alert] | dict[str, Any]]:
    detectors = make_detectors(thresholds)
    numbers = _apart(len(detectors))
    monitor = Monitor(detectors, elsewhere=frozenset(range(len(detectors))) - numbers)
    for block in blocks(RldkStream(Path(path), field_map), run_id, Survey(*survey)):
        changed = monitor.observe_block(block)
        if changed:
            yield changed
    yield monitor.found()


def _apart(count: int) -> frozenset[int]:
    """Which of so many detectors the second process judges with."""
    return frozenset(number for number in range(count) if number % _KEPT)


def _processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
