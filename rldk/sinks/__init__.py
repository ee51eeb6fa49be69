"""Destinations of events and alerts, one a file. A sink that fails is never the end of the others.

Every sink has the same three verbs, and whoever calls them handles their errors. `alert` is called when an alert is raised and again when it resolves. No sink
decides what matters: that is what detectors are for.
"""

from __future__ import annotations

from typing import Protocol

from ..event import Alert, Event

__all__ = ["Sink"]


class Sink(Protocol):
    """A destination.

    Attributes:
        lost: Events (rows) that could not be written, for the report.
    """

    @property
    def lost(self) -> int:
        """See above."""

    def write(self, event: Event) -> None:
        """Takes one event.

        Raises:
            OSError: If it could not be written; counted in `lost`, and the next call tries again.
        """

    def alert(self, alert: Alert) -> None:
        """Takes one alert that was raised or has resolved."""

    def close(self) -> None:
        """Writes what is left and lets go of files."""
