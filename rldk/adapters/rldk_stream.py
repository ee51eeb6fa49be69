"""rldk's own event stream: one event a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ..event import Event, decode, sanitised
from ..timeline import MARK, is_resume
from ._base import Adapter, Feed, Row, Survey
from ._lines import parse, read_records

_BUFFER = 1 << 18
_MARK = MARK.encode()
_NOTHING = b"\n\n"  # no line has it


class RldkStream(Adapter):
    """Lines with `step` and a `metrics` object. A `field_map` renames metrics."""

    name = "rldk"
    rank = 10

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """Any line with a `metrics` object beside a step."""
        return any(type(record.get("metrics")) is dict and "step" in record for record in records)

    def events(self) -> Iterator[Event]:
        """Yields the events; a line that is no event counts as malformed."""
        for _, event in self.numbered():
            yield event

    def numbered(self, run_id: str | None = None) -> Iterator[tuple[int, Event]]:
        """Yields the events by the number of their line, those of all runs."""
        for number, record in read_records(self.path, self.damage):
            event = self._event(number, record)
            if event is not None:
                yield number, event

    def survey(self) -> Survey:
        """Looks for runs and marks in the bytes of the lines: the few lines that may tell something new are parsed."""
        resumes: list[tuple[int, str, int]] = []
        runs: dict[str, None] = {}
        same = _NOTHING  # how the run that was seen last is written
        number = 0
        with open(self.path, "rb", buffering=_BUFFER) as file:
            for number, line in enumerate(file, 1):
                # From the end, near which rldk writes it.
                if line.rfind(same) >= 0 and _MARK not in line:
                    continue
                event = _event_in(line)
                if event is None:
                    continue
                run_id = event.run_id
                runs.pop(run_id, None)
                runs[run_id] = None
                same = b'"run_id":' + orjson.dumps(sanitised(run_id)) if run_id else _NOTHING
                if is_resume(event.metrics, event.notes):
                    resumes.append((number, run_id, event.step))
        return Survey(tuple(runs), tuple(resumes), number)

    def feed(self) -> Feed | None:
        """A line is an event, whatever stands around it."""
        return lambda rows: [event for number, row in rows if (event := self._event(number, row)) is not None]

    def rows(self, run_id: str) -> Iterator[Row]:
        """Yields rows without making events of lines that are as they should be: half the time of a large stream."""
        for number, record in read_records(self.path, self.damage):
            step, metrics, info = record.get("step"), record.get("metrics"), record.get("model_info")
            if type(metrics) is dict and type(info) is dict and "nonfinite" not in record and not self.field_map:
                run, phase = info.get("run_id", run_id), info.get("phase", "train")
                wall_time, notes = record.get("wall_time"), record.get("notes", ())
                if (
                    type(step) is int
                    and -_INT64 <= step < _INT64
                    and type(wall_time) is float
                    and type(run) is type(phase) is str
                    and type(notes) is list
                    and metrics  # without them it is a mark, whose notes must be looked at
                ):
                    yield step, wall_time, run or run_id, phase, metrics, notes
                    continue
            event = self._event(number, record)
            if event is not None:
                yield event.step, event.wall_time, event.run_id or run_id, event.phase, event.metrics, event.notes

    def _event(self, number: int, record: Mapping[str, Any]) -> Event | None:
        event = decode(record)
        if event is None:
            self.damage.add(number)
        elif self.field_map:
            named = {self.field_map.get(name, name): value for name, value in event.metrics.items()}
            event = event._replace(metrics=named)
        return event


_INT64 = 2**63


def _event_in(line: bytes) -> Event | None:
    try:
        record = parse(line)
    except ValueError:
        return None
    return decode(record) if type(record) is dict else None
