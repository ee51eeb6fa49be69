"""alerts.json: a JSON array, replaced atomically, so that it is valid and current at every moment."""

from __future__ import annotations

from pathlib import Path

from .._files import replace_json
from ..event import Alert, Event

__all__ = ["AlertsFileSink"]


class AlertsFileSink:
    """Keeps `{run_id}_alerts.json` current.

    The file is there from the first event on, as an empty array: no alerts and no file are different things.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._latest: list[Alert] = []
        self._behind = True

    def write(self, event: Event) -> None:
        """Writes the file if it has not been, or could not be, written since the last alert."""
        if self._behind:
            self._put()

    def alert(self, alert: Alert, alerts: list[Alert]) -> None:
        """Writes all alerts anew."""
        self._latest, self._behind = list(alerts), True
        self._put()

    def _put(self) -> None:
        replace_json(self.path, [alert.to_dict() for alert in self._latest])
        self._behind = False

    def close(self) -> None:
        """Tries once more if the last write failed."""
        if self._behind:
            self._put()
