"""The frame that every detector fits: one illness, one file, one question asked of each event.

A detector judges; it does not speak. For each event it answers with one of

    ABSENT      the event has none of what it watches
    WARMING     it has seen its metric but cannot judge yet
    FINE        judged, and nothing is wrong
    a Finding   judged, and this is wrong

`rldk.monitor` turns the answers into alerts: one on the way into a bad state, and its resolution on the way out. So a
detector holds its statistics and nothing else: no I/O, no clock, no raw names, constant memory.

What a run's set-up says (the trainer's arguments) comes once, in the event that is recorded when training begins, by
`configure`; a stream without one (a converted log) has none, and a detector must do without.
"""

from __future__ import annotations

import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from ..event import Event, Severity
from ..exceptions import ConfigurationError

__all__ = ["ABSENT", "FINE", "WARMING", "Answer", "Detector", "Example", "Finding", "State", "number_parameter"]


class State(Enum):
    """What a detector answers when it has found nothing."""

    ABSENT = "absent"
    WARMING = "warming"
    FINE = "fine"


ABSENT, WARMING, FINE = State.ABSENT, State.WARMING, State.FINE


class Finding(NamedTuple):
    """What is wrong, seen in one event.

    Attributes:
        metric: Canonical name of the metric that shows it.
        value: Its value.
        threshold: What it was held against; None if that is no single number.
        message: One or two sentences with the numbers.
        severity: How bad.
        evidence: Further numbers.
    """

    metric: str
    value: float | None
    threshold: float | None
    message: str
    severity: Severity
    evidence: Mapping[str, Any] = {}


Answer = State | Finding


class Example(NamedTuple):
    """A stream of metrics by step, and the steps at which the detector must raise its alert (none: a healthy one).

    Attributes:
        about: What it shows.
        metrics: One row a step, from step 1.
        raised_at: The steps.
        arguments: The trainer's, for `configure`.
    """

    about: str
    metrics: list[dict[str, float]]
    raised_at: list[int]
    arguments: Mapping[str, Any] = {}


class Detector(ABC):
    """Base of all detectors.

    The docstring of each has these headings: what it sees, why it matters, when it fires, what to do, false alarms,
    sources. Documentation is made from them.

    Attributes:
        code: Short name in snake case; the alert's `code`.
        title: Name for people.
        watches: Canonical names, any of which makes it judge an event; empty for all.
        only_watched: Whether an event without any of `watches` neither gets an answer but absent nor changes its state:
            such events are then not shown to it, which costs less.
        left_out: Families of trainers whose events it never judges, and is not shown.
        needs: What it must have seen before it can judge, for the report of one that never could.
        advice: What to try first, in TRL's parameter names.
        phases: Phases of events that it is shown; `setup` stands for what is known before the first step.
        weights_are_sound: Whether the weights are still worth a checkpoint when it fires.
        cooldown: Judged events after a resolution within which the same state is the same episode.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    watches: ClassVar[tuple[str, ...]] = ()
    only_watched: ClassVar[bool] = False
    left_out: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    phases: ClassVar[frozenset[str]] = frozenset({"train"})
    weights_are_sound: ClassVar[bool] = True
    cooldown: ClassVar[int] = 10

    @abstractmethod
    def judge(self, event: Event) -> Answer:
        """Takes one event into its statistics and answers for it."""

    def configure(self, arguments: Mapping[str, Any]) -> None:  # noqa: B027  # most need none of them
        """Takes note of the trainer's arguments, by TRL's own names; called before the run's first log, if at all."""

    def parameters(self) -> dict[str, Any]:
        """The values that it was built with, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def reset(self) -> None:
        """Forgets all that it has seen."""
        self.__dict__ = type(self)(**self.parameters()).__dict__

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Streams with known outcomes, which tests replay; one healthy and one ill at least."""
        return iter(())


def number_parameter(
    owner: str, name: str, value: Any, *, low: float, high: float = math.inf, whole: bool = False
) -> float:
    """Validates a numeric parameter.

    Raises:
        ConfigurationError: If the value is no finite number in [low, high], or not whole where it must be; the message
            shows it.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not good or not low <= value <= high or (whole and value != int(value)):
        allowed = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise ConfigurationError(f"{owner}: {name} must be a {'whole ' if whole else ''}number {allowed}; got {value!r}")
    return float(value)
