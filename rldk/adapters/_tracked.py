"""What trackers' stores have in common: several runs in one place, rows and points of raw names, arguments beside them.

transformers puts `train/`, `eval/` or `test/` in front of each name before it hands it to a tracker, and the step among the
metrics. Both are undone here, so that a run reads the same from any tracker as from its trainer.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..environment import redact
from ..event import Event
from ..metrics import typed_names
from ..vocabulary import Vocabulary, recognise
from ._base import Adapter, Survey
from ._flat import flat_events
from ._lines import whole_number
from ._points import StoredRow

__all__ = ["StoredRun", "Tracked"]

_SNIFFED = 50
_MAX_NAMES = 10_000
# The trainer's step among the metrics: transformers', then a metric `step` of one's own, which trackio renames.
_STEP_KEYS = ("train/global_step", "__step")
# What is measured of the machine, or of the code; and what rldk itself says in trackers of a run that it watched.
_LEFT_OUT = ("system/", "profiling/", "rldk/", "rldk.", "__")
_PREFIXES = (("train/", ""), ("eval/", "eval_"), ("test/", "test_"))
_OURS = frozenset({"step", "global_step", "wall_time"})
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBERS = (float, int, bool, type(None))
_LONGEST = 500
# An argument that each trainer of transformers has.
_TRAINERS = "logging_steps"
# What transformers says to trackio of the config, which takes it for a part of it.
_NO_ARGUMENT = "allow_val_change"


class StoredRun(NamedTuple):
    """A run in a store.

    Attributes:
        key: What the store knows it by.
        name: What people call it; empty for a run that is called by its file.
        apart: What tells it from a run of the same name in another store; empty if that is the store's own name.
        rows: How many rows or points it has, or more.
        end: Up to which of them it is read: a store may grow meanwhile.
        arguments: The trainer's, and whatever else was told of the run.
    """

    key: Any = None
    name: str = ""
    apart: str = ""
    rows: int = 0
    end: int = 0
    arguments: Mapping[str, Any] = {}


class Tracked(Adapter):
    """A store of one run or many, which are read one after the other, the one that was written to last at the end."""

    _looked: tuple[StoredRun, ...] | None = None

    @classmethod
    def recognises(cls, path: Path, records: list[dict[str, Any]]) -> bool:
        """Never: a store is no lines of JSON."""
        return False

    @abstractmethod
    def runs(self) -> list[StoredRun]:
        """The runs in the order of their last rows.

        Raises:
            OSError: If the store cannot be read.
        """

    @abstractmethod
    def stored(self, run: StoredRun) -> Iterator[StoredRow]:
        """Yields the rows of a run in the order in which they were logged.

        Raises:
            OSError: If the store cannot be read.
        """

    def events(self) -> Iterator[Event]:
        """Yields the events, run by run."""
        for _, event in self.numbered():
            yield event

    def names(self) -> list[str]:
        """The names of the runs."""
        return [run.name for run in self.runs() if run.name]

    def numbered(self, run_id: str | None = None) -> Iterator[tuple[int, Event]]:
        """Yields the events; after `survey`, those that were there then."""
        base = 0
        for run in self.runs() if self._looked is None else self._looked:
            name = run.name
            if name in self.shared:
                name = f"{name}-{run.apart}" if run.apart else f"{self.place}/{name}"
            if run_id is None or run_id == name:
                for number, event in enumerate(self._read(run, name)):
                    yield base + number, event
            base += run.rows

    def survey(self) -> Survey:
        """As of every log. From here on the events are those that it saw: a store may grow."""
        self._looked = tuple(self.runs())
        return super().survey()

    def sample(self) -> list[dict[str, Any]]:
        """The first rows of each run."""
        rows = (row for run in self.runs() for row in itertools.islice(self.stored(run), _SNIFFED))
        return [dict(row.values) for row in itertools.islice(rows, _SNIFFED)]

    def _again(self) -> Adapter:
        other = type(self)(self.path, self.field_map)
        other.place, other.shared, other._looked = self.place, self.shared, self._looked
        return other

    def _read(self, run: StoredRun, name: str) -> Iterator[Event]:
        """A run's events, with its name, its arguments beside the first, and seconds since its first."""
        rows = _Named(self.field_map).rows(self.stored(run))
        first = list(itertools.islice(rows, _SNIFFED))
        family = recognise(key for _, row in first for key in row)
        vocabulary = Vocabulary(family, None, _usable(run.arguments) if run.arguments else None)
        info: dict[str, Any] = {"run_id": name} if name else {}
        # A loop of one's own calls things as it likes; a trainer's names are those that it has live.
        own = family.name == "generic" and _TRAINERS not in run.arguments
        seed = run.arguments.get("seed")
        rng = {"seed": seed} if type(seed) is int else {}
        began: float | None = None
        for event in flat_events(
            itertools.chain(first, rows), self.damage.add, self.field_map, vocabulary=vocabulary
        ):
            if began is None:
                began = event.wall_time
                setup = {"step": 0, "wall_time": 0.0, "trainer": family.name, "arguments": _plain(run.arguments), "facts": {}}
                more: dict[str, Any] = {"setup": setup} if run.arguments else {}
            else:
                more = {}
            phase = event.phase
            if phase == "train" and len(event.metrics) == 1 and "epoch" in event.metrics:
                phase = "summary"  # what is left of a trainer's last log where a tracker got it without its totals
            since = round(event.wall_time - began, 6)
            metrics = typed_names(event.metrics) if own else event.metrics
            yield event._replace(metrics=metrics, phase=phase, wall_time=since, rng=rng, model_info={"trainer": family.name, **info, **more})


class _Named:
    """Rows with the trainer's own names."""

    def __init__(self, field_map: Mapping[str, str]) -> None:
        self._field_map = field_map
        self._steps = {source for source, name in field_map.items() if name == "step"}
        self._names: dict[str, str] = {}

    def rows(self, stored: Iterable[StoredRow]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields number and row as `flat_events` takes them; rows without a metric are no rows."""
        stored = iter(stored)
        first = list(itertools.islice(stored, _SNIFFED))
        keys: tuple[str, ...] = _STEP_KEYS
        # Before the trainer's first step there is only the tracker's own count of log calls, which is none of steps.
        last = 0 if any(key in row.values for row in first for key in keys) else None
        for number, step, seconds, values in itertools.chain(first, stored):
            row = self._row(values)
            if not row:
                continue
            for index, key in enumerate(keys):
                given = whole_number(values.get(key))
                if given is not None:
                    last, keys = given, keys[: index + 1]
                    break
            # What is logged between two steps of the trainer, without one, belongs to the earlier of them.
            chosen = step if last is None else last
            if chosen is not None and not self._steps & row.keys():
                row["step"] = chosen
            row["wall_time"] = seconds
            yield number, row

    def _row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for raw, value in values.items():
            if type(value) not in _NUMBERS:
                value = _WORDS.get(value) if type(value) is str else None
                if value is None:
                    continue
            name = self._names.get(raw)
            if name is None:
                name = self._name(raw)
            if name:
                row[raw if name in row else name] = value
        return row

    def _name(self, raw: str) -> str:
        """The name without its prefix; empty for what is no metric."""
        name = raw
        if raw not in self._field_map:
            if raw.startswith(_LEFT_OUT):
                name = ""
            for prefix, other in _PREFIXES:
                if raw.startswith(prefix):
                    name = other + raw.removeprefix(prefix)
            if name in _OURS:
                name = ""
        if len(self._names) < _MAX_NAMES:
            self._names[raw] = name
        return name


def _usable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a vocabulary may reckon with: anybody may have written them."""
    usable = {
        name: value for name, value in arguments.items()
        if isinstance(value, str) or (type(value) in (int, float) and 0 < value < 2**31)
        or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    }
    if not isinstance(usable.get("loss_type", ""), (str, list)):
        del usable["loss_type"]
    return usable


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without secrets, and without what is too long or too deep to be one."""
    redacted: dict[str, Any] = redact({
        name: value for name, value in arguments.items()
        if _is_argument(value) and name != _NO_ARGUMENT and not name.startswith("_")  # trackers' own
    })
    return redacted


def _is_argument(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return len(value) <= _LONGEST and not any(isinstance(item, (list, dict)) for item in items)
    return not isinstance(value, str) or len(value) <= _LONGEST
