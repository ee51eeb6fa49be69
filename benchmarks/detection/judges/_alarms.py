"""Rivals' alarms made into verdicts, in the way that is kindest to the rival."""

from __future__ import annotations

from ..store import Recording, Row
from ._base import Verdict, is_logged

__all__ = ["Alarms"]


class Alarms:
    """Collects the alarms of one run; tell it of each row before its alarms.

    An alarm of the same code in the next training log is the same alarm, so that a tool that repeats itself is not
    punished for it. One that still goes on when the fault sets in is counted once more there: whatever a rival says
    after the onset is a catch of its.

    Attributes:
        verdicts: The alarms so far.
    """

    def __init__(self, recording: Recording) -> None:
        self.verdicts: list[Verdict] = []
        self._onset = recording.header.onset
        self._step = self._logged = 0
        self._last: dict[str, tuple[int, int]] = {}

    def at(self, row: Row) -> None:
        """The row that the tool is shown next."""
        self._step = row.step
        self._logged += is_logged(row)

    def add(self, code: str, message: str = "", severity: str = "") -> None:
        """The tool alarms at that row."""
        step, logged = self._last.get(code, (0, -2))
        self._last[code] = self._step, self._logged
        if self._logged - logged > 1 or step <= self._onset < self._step:
            self.verdicts.append(Verdict(self._step, self._logged, code, message, severity))
