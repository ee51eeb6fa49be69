"""alerts.json: a JSON array, replaced atomically, so that it is valid and current at every moment."""

from __future__ import annotations

from pathlib import Path

from ._files import replace_json
from .monitor import Monitor

__all__ = ["AlertsFile"]


class AlertsFile:
    """Keeps `{run_id}_alerts.json` current.

    The file is there from the first event on, as an empty array: no alerts and no file are different things. It follows
    the monitor's list and not its announcements, since an episode that goes on after all is announced by nobody.

    Args:
        path: The file.
        monitor: The engine, whose list of alerts is written.
    """

    def __init__(self, path: Path, monitor: Monitor) -> None:
        self.path = path
        self._monitor = monitor
        self._written = -1

    @property
    def behind(self) -> bool:
        """Whether the file is not, or could not be, up to date."""
        return self._written != self._monitor.revision

    def update(self) -> None:
        """Writes all alerts anew.

        Raises:
            OSError: If they cannot be written; the file is then still behind.
        """
        revision = self._monitor.revision
        replace_json(self.path, [alert.to_dict() for alert in self._monitor.alerts])
        self._written = revision
