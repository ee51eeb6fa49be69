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
        alerts: The engine's list of alerts. It is looked at after each event, since an episode that goes on after all,
            or a resumed run's earlier alerts, are announced by nobody.
    """

    def __init__(self, path: Path, alerts: list[Alert]) -> None:
        self.path = path
        self.lost = 0
        self._alerts = alerts
        self._written: list[Alert] | None = None

    def write(self, event: Event) -> None:
        """Writes the file if it is not, or could not be, up to date."""
        self._update()

    def alert(self, alert: Alert) -> None:
        """Writes all alerts anew."""
        self._update()

    def _update(self) -> None:
        # Alerts are replaced, never changed: comparing the lists compares identities, for as long as nothing is new.
        if self._alerts != self._written:
            latest = list(self._alerts)
            replace_json(self.path, [alert.to_dict() for alert in latest])
            self._written = latest

    def close(self) -> None:
        """Tries once more if the last write failed."""
        self._update()
