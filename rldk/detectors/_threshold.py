"""What the four documented thresholds share: a number that the user gives is absolute and wins over the calibrated rule."""

from __future__ import annotations

from typing import ClassVar

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Finding, number_parameter


class ThresholdDetector(Detector):
    """A metric above the user's number or, without one, a rule calibrated on real runs.

    Args:
        threshold: Above it the alert is raised, in the trainer's own unit. None, the default, for the calibrated rule.

    Raises:
        ConfigurationError: If the threshold is no number in the metric's range.
    """

    highest: ClassVar[float] = float("inf")

    def __init__(self, *, threshold: float | None = None) -> None:
        self.threshold = threshold
        if threshold is not None:
            self.threshold = number_parameter(self.code, "threshold", threshold, low=0.0, high=self.highest)

    def judge(self, event: Event) -> Answer:
        """Holds the event against the user's number, if there is one."""
        if self.threshold is None:
            return self.calibrated(event)
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

    def calibrated(self, event: Event) -> Answer:
        """Judges by the rule that needs no number from the user."""
        return ABSENT
