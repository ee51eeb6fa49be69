"""rldk's own event stream: one event a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..event import Event, decode
from ._base import Adapter
from ._lines import read_records


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
        renamed = self.field_map
        for number, record in read_records(self.path, self.damage):
            event = decode(record)
            if event is None:
                self.damage.add(number)
                continue
            if renamed:
                event = event._replace(metrics={renamed.get(name, name): v for name, v in event.metrics.items()})
            yield event
