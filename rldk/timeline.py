"""What a resume means for a recorded run: which of its events stand, and which a resumed run left behind.

A resume writes a mark into the stream: an event without metrics whose note says from which step the run goes on.
Everything that was recorded before the mark, beyond that step, is void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .event import Event

__all__ = ["MARK", "Resumes", "is_resume", "resume_note", "standing"]

MARK = "resumed from step "


def resume_note(step: int) -> str:
    """The note of the event that marks a resume."""
    return f"{MARK}{step}"


def is_resume(metrics: Mapping[str, Any], notes: Sequence[str]) -> bool:
    """Whether an event with these metrics and notes marks a resume; its step is the one that the run goes on from."""
    return not metrics and any(note.startswith(MARK) for note in notes)


def standing(read: Callable[[], Iterable[Event]]) -> Iterator[Event]:
    """Yields the events of one run that no later resume has made void, in constant memory.

    Args:
        read: Reads the run's events from the start; called twice.
    """
    resumes = [(index, "", event.step) for index, event in enumerate(read()) if is_resume(event.metrics, event.notes)]
    later = Resumes(resumes)
    for index, event in enumerate(read()):
        if later.keep(index, "", event.step):
            yield event


class Resumes:
    """What the resumes of a file's runs make void.

    Args:
        marks: Where each resume is marked in the file, of which run it is, and the step that it goes on from; in the
            file's order.
    """

    def __init__(self, marks: Iterable[tuple[int, str, int]]) -> None:
        # For each mark of a run, the earliest step that it or any later one goes back to; the next mark is the last item.
        self._bounds: dict[str, list[tuple[int, int]]] = {}
        for position, run_id, step in reversed(list(marks)):
            bounds = self._bounds.setdefault(run_id, [])
            bounds.append((position, min(step, bounds[-1][1]) if bounds else step))

    def keep(self, position: int, run_id: str, step: int) -> bool:
        """Whether an event stands. To be asked in the file's order.

        Args:
            position: Where it is, counted as the marks are.
            run_id: Its run.
            step: Its step.
        """
        bounds = self._bounds.get(run_id)
        while bounds and bounds[-1][0] <= position:
            bounds.pop()
        return not bounds or step <= bounds[-1][1]
