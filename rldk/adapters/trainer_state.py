"""transformers' `trainer_state.json`, or a bare JSON array of log rows: a whole run in one JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ..event import Event
from ._base import Adapter, Survey
from ._flat import flat_events
from ._lines import parse, python_json

_HEAD = 1 << 16


class TrainerState(Adapter):
    """A document with `log_history`, or an array of flat rows. "Line" numbers are those of the rows."""

    name = "trainer_state"
    rank = 5

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """By its name, its beginning, or its only record."""
        if len(records) == 1 and isinstance(records[0].get("log_history"), list):
            return True
        with open(path, "rb") as file:
            head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not (head.startswith(b"[") or (head.startswith(b"{") and path.suffix == ".json")):
            return False
        if records and _is_object(head.partition(b"\n")[0]):
            return False
        # A document with a row a line looks like damaged lines, and a log line may begin with a bracket: only the
        # whole tells. One that does not parse, and has no line that does, is a document too, cut off.
        try:
            return _rows_of(_document(path)) is not None
        except ValueError:
            return not records

    @classmethod
    def named_after(cls, path: Path) -> Path | None:
        """The folder of the run: its state, whose name is always the same, lies in it or in one of its checkpoints."""
        if path.name != "trainer_state.json":
            return None
        folder = path.resolve().parent
        return folder.parent if folder.name.startswith("checkpoint-") else folder

    def events(self) -> Iterator[Event]:
        """Yields an event a row of the log history."""
        rows = self._rows()
        numbered = []
        for number, row in enumerate(rows, 1):
            if isinstance(row, dict):
                numbered.append((number, row))
            else:
                self.damage.add(number)
        yield from flat_events(numbered, self.damage.add, self.field_map)

    def survey(self) -> Survey:
        """One run, whose steps transformers keeps in order: nothing to look for."""
        return Survey(("",), (), None)

    def sample(self) -> list[dict[str, Any]]:
        """The first rows."""
        return [row for row in self._rows()[:50] if isinstance(row, dict)]

    def _rows(self) -> list[Any]:
        try:
            rows = _rows_of(_document(self.path))
        except ValueError:
            rows = None
        if rows is None:
            self.damage.add(1)
            return []
        return rows


def _document(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # With the NaN filter off, transformers writes a bare NaN, which is not JSON but which Python reads.
        return python_json(content)


def _rows_of(document: Any) -> list[Any] | None:
    rows = document.get("log_history") if isinstance(document, dict) else document
    return rows if isinstance(rows, list) else None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except ValueError:
        return False
