"""What flat trainer logs share, whether a line each or all in one file: raw keys beside the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..event import Event
from ..vocabulary import Vocabulary, recognise
from ._lines import whole_number

__all__ = ["STEP_NAMES", "flat_events"]

STEP_NAMES = ("step", "global_step", "train/global_step", "_step", "iteration", "iter", "steps")
_TIME_NAMES = ("wall_time", "timestamp", "_timestamp", "time", "_runtime")
_RUN_NAMES = ("run_id", "run", "run_name")
_SNIFFED = 50


def flat_events(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    malformed: Callable[[int], None],
    field_map: Mapping[str, str],
    trl_version: str | None = None,
) -> Iterator[Event]:
    """Reads rows of raw metrics as events. The trainer is recognised by the keys of the first rows.

    Args:
        rows: Line number and row.
        malformed: Called with the line number of a row that has no step.
        field_map: Source name to canonical name (or `step`), before anything else.
        trl_version: The version that wrote the rows, if known.
    """
    rows = iter(rows)
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
