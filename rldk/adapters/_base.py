"""What an adapter is: a format of log, told by its first records, and read as events.

An adapter yields events in the file's order and judges nothing. What is malformed it skips, and says how much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..event import Event
from ._lines import Damage, read_records

__all__ = ["Adapter", "Row", "sniff"]

# step, wall_time, run_id, phase, metrics, notes
Row = tuple[int, float, str, str, Mapping[str, Any], Sequence[str]]

_SNIFFED = 50


class Adapter(ABC):
    """A format.

    Attributes:
        name: As in `adapter_hint`.
        rank: Order in which formats are tried, the most particular first.
    """

    name: ClassVar[str]
    rank: ClassVar[int]

    def __init__(self, path: Path, field_map: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.field_map = dict(field_map or {})
        self.damage = Damage(path)

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """Whether the file is of this format, from its first records (none, if it is not lines of JSON)."""

    @abstractmethod
    def events(self) -> Iterator[Event]:
        """Yields the file's events.

        Raises:
            OSError: If the file cannot be read.
        """

    def sample(self) -> list[dict[str, Any]]:
        """The first records as they stand in the file, for a message about their keys.

        Raises:
            OSError: If the file cannot be read.
        """
        return sniff(self.path)

    def rows(self, run_id: str) -> Iterator[Row]:
        """Yields what a DataFrame takes of each event; a format that can spare the event on the way does.

        Args:
            run_id: The run of events that do not say theirs.

        Raises:
            OSError: If the file cannot be read.
        """
        for event in self.events():
            yield event.step, event.wall_time, event.run_id or run_id, event.phase, event.metrics, event.notes


def sniff(path: Path) -> list[dict[str, Any]]:
    """The first records of a file, if it is lines of JSON."""
    records = []
    for _, record in read_records(path, Damage(path)):
        records.append(record)
        if len(records) >= _SNIFFED:
            break
    return records
