"""The one place that catches everything: rldk never ends the run that it watches.

A callback sits inside a training loop that costs money, and transformers passes a callback's exceptions straight
into that loop. Each hook is wrapped once with `guarded`; what goes wrong inside is logged once for each place, counted,
and named in the report. Only rldk's own code is inside a guard: errors of the user's code are the user's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Guard", "guarded"]

logger = logging.getLogger("rldk")

F = TypeVar("F", bound=Callable[..., Any])


class Guard:
    """Counts what was caught, by place, and logs the first of each."""

    def __init__(self) -> None:
        self.failures: dict[str, dict[str, Any]] = {}

    def caught(self, place: str, error: BaseException) -> None:
        """Records one error. The first in each place is logged with its traceback, the others only counted."""
        failure = self.failures.get(place)
        if failure is None:
            self.failures[place] = {"error": f"{type(error).__name__}: {error}", "count": 1}
            logger.error(
                "rldk: %s failed and goes on without it; training is not affected (%s: %s)",
                place, type(error).__name__, error, exc_info=error,
            )
        else:
            failure["count"] += 1

    def call(self, place: str, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function, returning None if it raises."""
        try:
            return function(*args)
        except Exception as error:  # noqa: BLE001  # the guard's purpose: nothing of rldk's may reach the training loop
            self.caught(place, error)
            return None


def guarded(method: F) -> F:
    """Wraps a method of an object that has a `guard`, so that no exception of rldk's leaves it."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  # the guard's purpose, see the module's text
            self.guard.caught(method.__name__, error)
            return None

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature
