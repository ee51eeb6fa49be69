"""A Trainer's side of a recorded run, for tools that are callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ..store import Recording, Row

__all__ = ["Trainer"]


class Trainer:
    """What transformers hands to a callback, as far as was recorded.

    Attributes:
        args: Those of the trainer's arguments that the header holds.
        state: `global_step` and `log_history`.
        control: An object to set attributes on; nobody reads them.
    """

    def __init__(self, recording: Recording) -> None:
        self._rows = recording.rows
        self.args = SimpleNamespace(**recording.header.arguments)
        self.state = SimpleNamespace(global_step=0, log_history=[])
        self.control = SimpleNamespace(should_training_stop=False)

    def logs(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yields each log call, evaluations and the closing summary included, with the state as it was in the call."""
        for row in self._rows:
            if row.raw is not None:
                self.state.global_step = row.step
                # The history has the entry before callbacks are told, and in a dictionary of its own.
                self.state.log_history.append({**row.raw, "step": row.step})
                yield row, dict(row.raw)
