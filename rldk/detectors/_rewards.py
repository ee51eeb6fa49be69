"""Which of an event's metrics are the means of single reward functions: names that the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RewardFunctions"]

# More would be a step number in a name, not so many functions.
MAX_FUNCTIONS = 32
_PREFIX, _MEAN, _STD = "rewards/", "/mean", "/std"


class RewardFunctions:
    """Learns the names once for each shape of log, so that a log whose shape is known costs one look-up.

    Attributes:
        means: Names of the means, in the order of the reward functions.
        shapes: Numbers of metrics in the logs that were looked through.
    """

    __slots__ = ("means", "shapes")

    def __init__(self) -> None:
        self.means: list[str] = []
        self.shapes: set[int] = set()

    def learn(self, metrics: Mapping[str, Any]) -> bool:
        """Looks for names that are new; returns whether there were any."""
        size = len(metrics)
        if size in self.shapes:
            return False
        if len(self.shapes) < 256:
            self.shapes.add(size)
        before = len(self.means)
        for name in metrics:
            # TRL up to 0.14 logs the mean under the function's name alone.
            new = name.startswith(_PREFIX) and not name.endswith(_STD) and name not in self.means
            if new and len(self.means) < MAX_FUNCTIONS:
                self.means.append(name)
        return len(self.means) > before

    @staticmethod
    def std(mean: str) -> str:
        """The name of the spread that belongs to a mean; where there is none, a name that is not logged."""
        return mean.removesuffix(_MEAN) + _STD

    @staticmethod
    def short(mean: str) -> str:
        """The user's own name of the function."""
        return mean.removeprefix(_PREFIX).removesuffix(_MEAN)


def weights_of(arguments: Mapping[str, Any]) -> list[float] | None:
    """The weights of the reward functions, if the arguments give them; they are 1 otherwise."""
    weights = arguments.get("reward_weights")
    if not isinstance(weights, (list, tuple)):
        return None
    good = all(isinstance(weight, (int, float)) and -1e30 < weight < 1e30 for weight in weights)
    return [float(weight) for weight in weights] if good else None
