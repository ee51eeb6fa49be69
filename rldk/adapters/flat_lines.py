"""Flat trainer logs: one dictionary of raw metrics a line, as people dump `state.log_history` or `on_log`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..event import Event
from ..metrics import typed_names
from ..vocabulary import Vocabulary, families, recognise
from ._base import Adapter, Feed
from ._flat import STEP_NAMES, FlatFeed, flat_events
from ._lines import read_records


class FlatLines(Adapter):
    """Lines with a step and at least one metric that a TRL trainer logs."""

    name = "trl"
    rank = 30

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """A step, and a trainer's keys or transformers' own."""
        keys = {key for record in records for key in record}
        if not keys.intersection(STEP_NAMES):
            return False
        family = recognise(keys)
        generic = Vocabulary(families()["generic"]).table()
        return family.name != "generic" or bool((keys | {key.removeprefix("eval_") for key in keys}) & generic.keys())

    def events(self) -> Iterator[Event]:
        """Yields an event a line."""
        yield from map(_named, flat_events(read_records(self.path, self.damage), self.damage.add, self.field_map))

    def feed(self) -> Feed | None:
        """A line is an event; the first lines tell the trainer."""
        return FlatFeed(self.damage.add, self.field_map, _named)


def _named(event: Event) -> Event:
    """Where no trainer is recognised, the names are a person's, who may have typed `kl`."""
    if event.model_info.get("trainer") != "generic":
        return event
    return event._replace(metrics=typed_names(event.metrics))
