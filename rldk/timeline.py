"""What a resume means for a recorded run: which of its events stand, and which a resumed run left behind.

A resume writes a mark into the stream: an event without metrics whose note says from which step the run goes on.
Everything that was recorded before the mark, beyond that step, is void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .event import Event

__all__ = ["is_resume", "resume_note", "standing"]

_NOTE = "resumed from step "


def resume_note(step: int) -> str:
    """The note of the event that marks a resume."""
    return f"{_NOTE}{step}"


def is_resume(metrics: Mapping[str, Any], notes: Sequence[str]) -> bool:
    """Whether an event with these metrics and notes marks a resume; its step is the one that the run goes on from."""
    return not metrics and any(note.startswith(_NOTE) for note in notes)


def standing(read: Callable[[], Iterable[Event]]) -> Iterator[Event]:
    """Yields the events of one run that no later resume has made void, in constant memory.

    Args:
        read: Reads the run's events from the start; called twice.
    """
    marks = [(index, event.step) for index, event in enumerate(read()) if is_resume(event.metrics, event.notes)]
    # For each mark, the earliest step that it or any later one goes back to.
    lowest = float("inf")
    bounds: list[tuple[int, float]] = []
    for index, step in reversed(marks):
        lowest = min(lowest, step)
        bounds.append((index, lowest))
    bounds.reverse()
    position = 0
    for index, event in enumerate(read()):
        while position < len(bounds) and bounds[position][0] <= index:
            position += 1
        if position == len(bounds) or event.step <= bounds[position][1]:
            yield event
