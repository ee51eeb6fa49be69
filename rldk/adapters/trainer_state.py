"""transformers' `trainer_state.json`, or a bare JSON array of log rows: a whole run in one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ..event import Event
from ._base import Adapter
from ._flat import flat_events

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
        if records:
            return False
        with open(path, "rb") as file:
            head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")
        return head.startswith(b"[") or (head.startswith(b"{") and path.suffix == ".json")

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

    def _rows(self) -> list[Any]:
        content = self.path.read_bytes()
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError:
            # With the NaN filter off, transformers writes a bare NaN, which is not JSON but which Python reads.
            try:
                document = json.loads(content.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                self.damage.add(1)
                return []
        rows = document.get("log_history") if isinstance(document, dict) else document
        if not isinstance(rows, list):
            self.damage.add(1)
            return []
        return rows
