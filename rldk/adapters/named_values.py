"""The older rldk stream: one ``{"name": ..., "value": ..., "step": ...}`` a line, one metric each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..event import Event
from ..metrics import canonical_name
from ._base import Adapter
from ._lines import read_records, whole_number


class NamedValues(Adapter):
    """Successive lines of one step (and run) become one event."""

    name = "named_values"
    rank = 20

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """Lines that have all of name, value and step."""
        return any({"name", "value", "step"} <= record.keys() for record in records)

    def events(self) -> Iterator[Event]:
        """Yields one event for each run of lines with the same step."""
        step: int | None = None
        run_id, wall_time = "", math.nan
        metrics: dict[str, Any] = {}
        for number, record in read_records(self.path, self.damage):
            name, value, at = record.get("name"), record.get("value"), whole_number(record.get("step"))
            if not isinstance(name, str) or at is None or isinstance(value, bool) or not _is_number(value):
                self.damage.add(number)
                continue
            run = record.get("run_id")
            run = run if isinstance(run, str) else ""
            # A name that comes again at the same step begins a new event: nothing is overwritten.
            if at != step or run != run_id or (name := self.field_map.get(name, canonical_name(name))) in metrics:
                if step is not None and metrics:
                    yield _event(step, wall_time, metrics, run_id)
                step, run_id, metrics = at, run, {}
                name = self.field_map.get(record["name"], canonical_name(record["name"]))
                when = record.get("wall_time", record.get("time"))
                wall_time = float(when) if isinstance(when, (int, float)) else math.nan
            metrics[name] = value
        if step is not None and metrics:
            yield _event(step, wall_time, metrics, run_id)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _event(step: int, wall_time: float, metrics: dict[str, Any], run_id: str) -> Event:
    return Event(step, wall_time, metrics, model_info={"run_id": run_id} if run_id else {})
