"""Waiting for something of somebody else's that may never return, and not for longer than was said.

A thread cannot be ended from outside: one that hangs is left behind, as a daemon, and what it brings later is dropped.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["bounded"]


def bounded(seconds: float, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Calls a function in a thread of its own, in the caller's context, and waits for it.

    What the function sets of context variables is set for the caller too, if it returns or raises in time.

    Args:
        seconds: How long to wait.
        function: What to call.
        args: Its arguments.
        keywords: The same.

    Returns:
        What the function returns.

    Raises:
        TimeoutError: If it has not come back in time.
        BaseException: What the function raises.
    """
    context = contextvars.copy_context()
    outcome: list[tuple[bool, Any]] = []

    def call() -> None:
        try:
            outcome.append((True, context.run(function, *args, **keywords)))
        except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
            outcome.append((False, error))

    thread = threading.Thread(target=call, name="rldk-bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    for variable, value in context.items():
        if variable.get(None) is not value:
            variable.set(value)
    good, result = outcome[0]
    if good:
        return result
    raise result
