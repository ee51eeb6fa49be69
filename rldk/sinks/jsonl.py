"""The event stream on disk: every event, or one every so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..emit import EventWriter
from ..event import Alert, Event

__all__ = ["JsonlSink"]


class JsonlSink:
    """Writes events through an `EventWriter`, opened at the first event.

    A full or unwritable disk costs events, which are counted; each next event tries again, opening included.

    Args:
        path: The stream's file.
        interval: Steps between training events; the first at or after each multiple is written. Evaluation, summary,
            checkpoint events, events with a note, and the last event are always written.
    """

    def __init__(self, path: Path, interval: int = 1) -> None:
        self.path = path
        self.interval = interval
        self.lost = 0
        self._writer: EventWriter | None = None
        self._due = interval
        self._pending: Event | None = None

    def start_at(self, step: int) -> None:
        """Sets the first due step of a resumed run."""
        self._due = (step // self.interval + 1) * self.interval

    def write(self, event: Event) -> None:
        """Writes the event if it is due, or keeps it as the possibly last one."""
        if self.interval > 1:
            due = self._due_now(event)
            if due is None:
                return
            event = due
        try:
            if self._writer is None:
                self._writer = EventWriter(self.path)
            self._writer.write(event)
        except OSError:
            self.lost += 1
            raise

    def _due_now(self, event: Event) -> Event | None:
        """What to write of this event: all of it, or nothing for now."""
        if event.phase == "train":
            if self._pending is not None:
                # Tokens of events that are not written belong to the next one that is, and so does the run's set-up.
                event = event._replace(data_slice=_sum(self._pending.data_slice, event.data_slice))
                setup = self._pending.model_info.get("setup")
                if setup is not None:
                    event = event._replace(model_info={**event.model_info, "setup": setup})
                self._pending = None
            if event.step < self._due and not event.notes:
                self._pending = event
                return None
            self._due = (event.step // self.interval + 1) * self.interval
        elif event.phase == "summary":
            self._write_pending()  # it was the last of its kind
        return event

    def _write_pending(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._due = 0
            self.write(pending)

    def alert(self, alert: Alert) -> None:
        """Nothing: an alert stands in its event's notes."""

    def close(self) -> None:
        """Writes the last event if it was not due, and closes the file."""
        try:
            self._write_pending()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
