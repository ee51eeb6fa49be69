"""What judges a recorded run: rldk, or one of the tools that it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from ..store import Recording

__all__ = ["Judge", "Verdict", "is_logged"]


class Verdict(NamedTuple):
    """One alarm.

    Attributes:
        step: The global step at which it was raised.
        logged: How many training logs the judge had been shown by then.
        code: What it calls the fault, in its own words.
        message: What it said.
        severity: As it calls it; empty if it does not.
    """

    step: int
    logged: int
    code: str
    message: str = ""
    severity: str = ""


class Judge(ABC):
    """A tool, its version, and how it is shown a run.

    Attributes:
        name: As in the table.
        how: What of a run it is fed, and with which settings.
        requirement: What pip installs it by; empty if this benchmark has the rule itself.
    """

    name: ClassVar[str]
    how: ClassVar[str]
    requirement: ClassVar[str] = ""

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the tool."""

    @abstractmethod
    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """Shows it a run from its first log to its last.

        Args:
            recording: The run.
            thresholds: What the scenario gives to rldk; of no meaning to other tools.
        """


def is_logged(row: Any) -> bool:
    """Whether a row of a recording is a training log, the unit of delays and of healthy time."""
    return row.phase == "train" and row.raw is not None
