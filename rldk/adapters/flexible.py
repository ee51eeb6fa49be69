"""The last resort: lines of JSON with a step of some name and numbers of any name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..event import Event
from ..metrics import canonical_names
from ._base import Adapter, Feed
from ._flat import FlatFeed, flat_events
from ._lines import read_records


class Flexible(Adapter):
    """Any lines of JSON. Nested objects are flattened with "/", names are canonical where they are synonyms."""

    name = "flexible"
    rank = 100

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """Whatever is left."""
        return bool(records)

    def events(self) -> Iterator[Event]:
        """Yields an event for each line that has a step."""
        rows = ((number, _flatten(record)) for number, record in read_records(self.path, self.damage))
        yield from map(_named, flat_events(rows, self.damage.add, self.field_map))

    def feed(self) -> Feed | None:
        """As the events; the first lines may tell a trainer."""
        flat = FlatFeed(self.damage.add, self.field_map, _named)
        return lambda rows: flat([(number, _flatten(dict(row))) for number, row in rows])


def _named(event: Event) -> Event:
    return event._replace(metrics=canonical_names(event.metrics))


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    # A stack and no recursion: the nesting is the file's, not ours.
    pending = [("", record)]
    while pending:
        prefix, branch = pending.pop()
        for name, value in branch.items():
            if isinstance(value, dict):
                pending.append((f"{prefix}{name}/", value))
            else:
                flat[f"{prefix}{name}"] = value
    return flat
