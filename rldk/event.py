"""The event: what one log call said, in rldk's vocabulary. And the alert: what a detector said of it.

One event is one line of the stream (see docs/events.md for the schema). Both are immutable values; time is passed in.
A metric that was not logged is absent. A metric that was logged as NaN, Inf or None is there: as a float NaN or Inf,
or None, in memory; as `null` on disk, with `nonfinite` saying which.
"""

from __future__ import annotations

import datetime
import enum
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

__all__ = ["PHASES", "Alert", "Event", "Severity", "decode", "encode", "sanitised", "timestamp"]

PHASES = ("train", "eval", "checkpoint", "summary")

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# Numpy scalars that a caller hands over are numbers too; keys that are not str are not expected here.
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
# Spares the named tuple's own constructor, where a million lines are read.
_new = tuple.__new__


class Severity(str, enum.Enum):
    """How bad. `critical`: the run is wasting compute. `warning`: look soon. `info`: worth knowing."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical."""
        return ("info", "warning", "critical").index(self.value)


class Event(NamedTuple):
    """One log call.

    Attributes:
        step: The trainer's global step, in optimizer steps (PPO: in updates).
        wall_time: Seconds since the run began; goes on counting across a resume.
        metrics: Canonical name to value; NaN, Inf and None are values.
        phase: `train`, `eval`, `checkpoint` or `summary`.
        rng: `seed`, and `state`, a short digest of the random state, where known.
        data_slice: `tokens_in`, the tokens processed since the event before, where the trainer counts them.
        model_info: `run_id`, `git_sha`, `trainer` (the family), `tags`, in the run's first event `setup` (what was known
            when training began); what is not known is absent.
        notes: Messages of the alerts raised or made worse at this step, of a resume, of a silence.
        time: UTC time of the log call, ISO 8601 with milliseconds.
    """

    step: int
    wall_time: float
    metrics: Mapping[str, float | int | None]
    phase: str = "train"
    rng: Mapping[str, Any] = {}
    data_slice: Mapping[str, int] = {}
    model_info: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    time: str = ""

    @property
    def run_id(self) -> str:
        """The run that the event belongs to; empty if it does not say."""
        return str(self.model_info.get("run_id", ""))


class Alert(NamedTuple):
    """One episode of a bad state: where it began, what was seen, what to try, and where it passed.

    Attributes:
        code: The detector's code, such as `non_finite`.
        name: The detector's name for people.
        severity: `info`, `warning` or `critical`.
        step: The step at which it was raised.
        wall_time: Seconds since the run began.
        metric: Canonical name of the metric that gave it away.
        value: The metric's value at that step; NaN is kept as a string in files.
        threshold: What the value was held against, if there is one number.
        message: What happened, with the numbers.
        advice: What to try first, in TRL's own parameter names.
        evidence: Further numbers, by name.
        resolved_step: The first step at which the state had passed; None while it lasts.
        docs: Address of the page about this code.
    """

    code: str
    name: str
    severity: str
    step: int
    wall_time: float
    metric: str
    value: float | None
    threshold: float | None
    message: str
    advice: str
    evidence: Mapping[str, Any] = {}
    resolved_step: int | None = None
    docs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The alert as it stands in alerts.json: plain values, NaN and Inf as strings."""
        return {key: _plain(value) for key, value in self._asdict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _nonfinite_name(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _nonfinite_name(value: float) -> str:
    return "nan" if value != value else "inf" if value > 0 else "-inf"


def _nonfinite_kind(value: Any) -> str:
    """What the line calls a value that JSON has no number for; empty for all others, None included."""
    try:
        return "" if value is None or math.isfinite(value) else _nonfinite_name(value)
    except TypeError:
        return ""  # no number at all
    except OverflowError:
        return _nonfinite_name(value)  # an integer beyond the largest float


def timestamp(seconds: float) -> str:
    """Formats seconds since the epoch as UTC, ISO 8601 with milliseconds: ``2026-11-21T07:00:00.123Z``."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def encode(event: Event) -> bytes:
    """Serialises an event to its line, newline included: keys in the schema's order, always valid JSON."""
    step, wall_time, metrics, phase, rng, data_slice, model_info, notes, time = event
    line: dict[str, Any] = {
        "step": step,
        "wall_time": wall_time,
        "metrics": metrics,
        "rng": rng,
        "data_slice": data_slice,
        "model_info": {**model_info, "phase": phase},
        "notes": notes,
        "time": time,
    }
    # The sum is finite exactly when every value is (or overflows, and then the loop finds nothing): one C call
    # instead of a test a metric. None and foreign values take the slow path too.
    try:
        clean = math.isfinite(sum(metrics.values()))  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        clean = False
    if not clean:
        nonfinite = {name: kind for name, value in metrics.items() if (kind := _nonfinite_kind(value))}
        if nonfinite:
            line["nonfinite"] = nonfinite
    try:
        return orjson.dumps(line, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # Lone surrogates in a name or integers beyond 64 bits: rare, and never worth losing the line.
        return orjson.dumps(sanitised(line), option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)


def sanitised(value: Any) -> Any:
    """A copy of a value that JSON can hold: no lone surrogates, no integers beyond 64 bits, plain types."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {sanitised(str(key)): sanitised(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [sanitised(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _as_float(value)
    return str(value)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def decode(record: Mapping[str, Any]) -> Event | None:
    """Reads one parsed line back. Returns None if the record is not an event (wrong types, no step).

    What is of a wrong type inside an event is left out of it, so that who reads events can trust their types.
    """
    get = record.get
    step, metrics = get("step"), get("metrics")
    if type(step) is not int or type(metrics) is not dict or not -(2**63) <= step < 2**63:
        return None
    try:
        sum(metrics.values())  # one C call that fails on all but numbers, instead of a test a metric
    except TypeError:
        metrics = {name: value for name, value in metrics.items() if value is None or isinstance(value, (int, float))}
    nonfinite = get("nonfinite")
    if type(nonfinite) is dict:
        for name, kind in nonfinite.items():
            if name in metrics and type(kind) is str:
                metrics[name] = _NONFINITE.get(kind)
    wall_time, info = get("wall_time"), get("model_info")
    info = dict(info) if type(info) is dict else {}
    phase = info.pop("phase", "train")
    if "run_id" in info and type(info["run_id"]) is not str:
        run_id = info.pop("run_id")
        if type(run_id) in (int, float):
            info["run_id"] = str(run_id)
    if type(info.get("trainer", "")) is not str:
        del info["trainer"]
    rng, data, notes, time = get("rng"), get("data_slice"), get("notes"), get("time")
    return _new(Event, (
        step,
        wall_time if isinstance(wall_time, (float, int)) else math.nan,
        metrics,
        phase if type(phase) is str else "train",
        rng if type(rng) is dict else {},
        data if type(data) is dict else {},
        info,
        tuple(note for note in notes if type(note) is str) if notes and type(notes) is list else (),
        time if type(time) is str else "",
    ))
