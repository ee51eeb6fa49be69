"""What flat trainer logs share, whether a line each or all in one file: raw keys beside the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..event import Event
from ..vocabulary import Vocabulary, recognise
from ._lines import whole_number

__all__ = ["STEP_NAMES", "FlatFeed", "flat_events"]

STEP_NAMES = ("step", "global_step", "train/global_step", "_step", "iteration", "iter", "steps")
_TIME_NAMES = ("wall_time", "timestamp", "_timestamp", "time", "_runtime")
_RUN_NAMES = ("run_id", "run", "run_name")
_SNIFFED = 50


def flat_events(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    malformed: Callable[[int], None],
    field_map: Mapping[str, str],
    trl_version: str | None = None,
    vocabulary: Vocabulary | None = None,
) -> Iterator[Event]:
    """Reads rows of raw metrics as events. The trainer is recognised by the keys of the first rows.

    Args:
        rows: Line number and row.
        malformed: Called with the line number of a row that has no step.
        field_map: Source name to canonical name (or `step`), before anything else.
        trl_version: The version that wrote the rows, if known.
        vocabulary: The trainer's names, if they are known and need not be recognised.
    """
    rows = iter(rows)
    first: list[tuple[int, Mapping[str, Any]]] = []
    if vocabulary is None:
        first = list(itertools.islice(rows, _SNIFFED))
        vocabulary = Vocabulary(recognise(key for _, row in first for key in row), trl_version)
    step_from = {source for source, name in field_map.items() if name == "step"}
    named = {source: name for source, name in field_map.items() if name != "step"}
    trainer = vocabulary.family.name
    for number, row in itertools.chain(first, rows):
        row = dict(row)
        step = _pop(row, [*step_from, *STEP_NAMES], whole_number)
        if step is None:
            malformed(number)
            continue
        wall_time = _pop(row, _TIME_NAMES, _seconds)
        run_id = _pop(row, _RUN_NAMES, lambda value: value if isinstance(value, str) and value else None)
        phase, metrics, _ = vocabulary.translate({key: value for key, value in row.items() if key not in named})
        for source, name in named.items():
            value = row.get(source)
            if isinstance(value, (int, float)) or (source in row and value is None):
                metrics[name] = value
        if metrics:
            info = {"trainer": trainer, "run_id": run_id} if run_id else {"trainer": trainer}
            yield Event(step, math.nan if wall_time is None else wall_time, metrics, phase, model_info=info)


class FlatFeed:
    """Rows of a log that is still being written, read as they come: the events are those of `flat_events` over all of them.

    Args:
        malformed: As in `flat_events`.
        field_map: As in `flat_events`.
        prepare: What becomes of an event before it is given out.
    """

    def __init__(
        self, malformed: Callable[[int], None], field_map: Mapping[str, str], prepare: Callable[[Event], Event] | None = None
    ) -> None:
        self._malformed, self._field_map, self._prepare = malformed, field_map, prepare
        self._vocabulary = Vocabulary(recognise(()))
        self._keys: set[str] = set()
        self._rows = 0

    def __call__(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Event] | None:
        """The events of the next rows.

        Returns:
            None if these rows tell that the trainer is another than the earlier ones seemed to say: all rows are then to
            be given again, from the first.
        """
        if self._rows < _SNIFFED:
            before = len(self._keys)
            self._keys.update(key for _, row in rows[: _SNIFFED - self._rows] for key in row)
            if len(self._keys) != before:
                family = recognise(self._keys)
                if family is not self._vocabulary.family:
                    self._vocabulary = Vocabulary(family)
                    if self._rows:
                        self._rows = 0
                        return None
            self._rows += len(rows)
        events = flat_events(rows, self._malformed, self._field_map, vocabulary=self._vocabulary)
        return list(map(self._prepare, events)) if self._prepare else list(events)


def _pop(row: dict[str, Any], names: Iterable[str], read: Callable[[Any], Any]) -> Any:
    """Takes the first of these keys that is there and can be read out of the row."""
    for name in names:
        if name in row:
            value = read(row[name])
            if value is not None:
                del row[name]
                return value
    return None


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
