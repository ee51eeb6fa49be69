"""What the four documented thresholds share: a metric above a number that the user gave, in the trainer's own unit."""

from __future__ import annotations

from typing import ClassVar

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Finding, number_parameter


class ThresholdDetector(Detector):
    """A metric above a fixed number. Armed only if the user gives the number.

    Args:
        threshold: Above it the alert is raised, in the trainer's own unit.

    Raises:
        ConfigurationError: If the threshold is no number in the metric's range.
    """

    highest: ClassVar[float] = float("inf")

    def __init__(self, *, threshold: float) -> None:
        self.threshold = number_parameter(self.code, "threshold", threshold, low=0.0, high=self.highest)

    def judge(self, event: Event) -> Answer:
        """Finds the first watched metric that the event has above the threshold."""
        metrics = event.metrics
        for name in self.watches:
            value = metrics.get(name)
            if value is not None:
                if value != value:
                    return WARMING  # NaN is neither above nor below: it must not end an episode
                if value > self.threshold:
                    message = f"{name} is {number(value)}, above the threshold of {number(self.threshold)} that you set."
                    return Finding(name, value, self.threshold, message, Severity.WARNING)
                return FINE
        return ABSENT
