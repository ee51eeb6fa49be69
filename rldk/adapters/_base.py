"""What an adapter is: a format of log, told by its first bytes or records, and read as events.

An adapter yields events in the file's order and judges nothing. What is malformed it skips, and says how much. A log is a
file, or a folder whose files are one log to the tool that wrote them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..event import Event
from ._lines import Damage, parse, read_records

__all__ = ["Adapter", "Feed", "Row", "Survey", "sniff"]

# step, wall_time, run_id, phase, metrics, notes
Row = tuple[int, float, str, str, Mapping[str, Any], Sequence[str]]

# The next records of a growing log, with their line numbers, to events. None: what they say changes what the earlier
# ones meant, and all are to be given again, from the first.
Feed = Callable[[Sequence[tuple[int, Mapping[str, Any]]]], list[Event] | None]

_SNIFFED = 50


class Survey(NamedTuple):
    """What a look over a whole file tells, before its events are judged.

    Attributes:
        runs: The `run_id` of each run in it, in the order of their last events; empty for events that do not say.
        resumes: Where runs were resumed: position, `run_id`, and the step that the run goes on from.
        length: Positions in the file, if they were counted.
    """

    runs: tuple[str, ...]
    resumes: tuple[tuple[int, str, int], ...]
    length: int | None


class Adapter(ABC):
    """A format.

    Attributes:
        name: As in `adapter_hint`.
        rank: Order in which formats are tried, the most particular first.
        looked_for: What `find` looks for, for a message; empty for formats that it looks for nothing of.
        shared: Names of runs that other logs, read together with this one, have too; to be set by who opened them.
        place: What this log is called among those; to be set with `shared`.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    looked_for: ClassVar[str] = ""
    shared: frozenset[str] = frozenset()
    place: str = ""

    def __init__(self, path: Path, field_map: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.field_map = dict(field_map or {})
        self.damage = Damage(path)

    @classmethod
    def find(cls, folder: Path) -> list[Path]:
        """The logs of this format in a folder that has neither lines of JSON nor a trainer's state."""
        return []

    @classmethod
    def claims(cls, path: Path, head: bytes) -> bool:
        """Whether a log that is no text is of this format; asked before its lines are looked for.

        Args:
            path: A file or a folder.
            head: The first bytes of a file; empty for a folder.
        """
        return False

    @classmethod
    def refusal(cls, path: Path, head: bytes) -> str:
        """Why a log that looks like one of this format, and that no format claims, cannot be read; empty if it does not."""
        return ""

    @classmethod
    def named_after(cls, path: Path) -> Path | None:
        """The file or folder that a run in this log is called by, if it is not the log itself."""
        return None

    @classmethod
    def modified(cls, path: Path) -> float:
        """When the log was last written to, in seconds since the epoch; 0 if it is not there."""
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

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

    def feed(self) -> Feed | None:
        """What reads records as they are appended; None if a format can be read only as a whole."""
        return None

    def sample(self) -> list[dict[str, Any]]:
        """The first records as they stand in the file, for a message about their keys.

        Raises:
            OSError: If the file cannot be read.
        """
        return sniff(self.path)

    def names(self) -> list[str]:
        """The names that the log gives its runs, where another log may give the same ones to others; cheap to ask for.

        Raises:
            OSError: If the file cannot be read.
        """
        return []

    def numbered(self, run_id: str | None = None) -> Iterator[tuple[int, Event]]:
        """Yields the events, each with its position in the file: it rises, and `survey` counts in the same way.

        Args:
            run_id: Only the events of this run are wanted. Others may come all the same.

        Raises:
            OSError: If the file cannot be read.
        """
        return enumerate(self.events())

    def survey(self) -> Survey:
        """Looks the file over. A step that goes back is a resume, or another run that was written into the same file.

        Raises:
            OSError: If the file cannot be read.
        """
        last: dict[str, int] = {}
        resumes: list[tuple[int, str, int]] = []
        runs: dict[str, None] = {}
        position = -1
        # Another reader of the same file: what is damaged is counted when the events are taken.
        for position, event in self._again().numbered():
            run_id = event.run_id
            runs.pop(run_id, None)
            runs[run_id] = None
            if event.phase == "train":
                if event.step < last.get(run_id, event.step):
                    resumes.append((position, run_id, event.step - 1))
                last[run_id] = event.step
        return Survey(tuple(runs), tuple(resumes), position + 1)

    def _again(self) -> Adapter:
        return type(self)(self.path, self.field_map)

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
    if _is_indented(path):
        return []
    records = []
    for _, record in read_records(path, Damage(path)):
        records.append(record)
        if len(records) >= _SNIFFED:
            break
    return records


def _is_indented(path: Path) -> bool:
    """Whether a file is one JSON document over many lines, none of which is worth a look: there may be a million."""
    with open(path, "rb") as file:
        if file.readline(64).removeprefix(b"\xef\xbb\xbf").strip() not in (b"{", b"["):
            return False
        file.seek(0)
        try:
            parse(file.read())
        except ValueError:
            return False
    return True
