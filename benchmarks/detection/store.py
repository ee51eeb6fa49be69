"""The store of recorded runs: what a trainer logged and what rldk added to it, small enough to live in the repository.

One file a scenario, `streams/<scenario>.jsonl.xz`; one run a line. Inside a run a metric is a column, a string of
comma-separated numbers, because like values beside each other compress best. Numbers keep five significant digits, whole
numbers all of theirs; absent, None, NaN and the infinities are kept apart.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rldk.event import Event
from rldk.vocabulary import Vocabulary, families

__all__ = [
    "ARGUMENTS", "STREAMS", "Header", "Key", "Recording", "Row", "decode_line", "encode_line", "events", "keys",
    "path_of", "raw_rows", "read", "write",
]

STREAMS = Path(__file__).parent / "streams"

# What of the trainer's arguments a judge, the vocabulary or a reader of the table could want to know.
ARGUMENTS = (
    "beta", "cliprange", "cliprange_value", "completion_only_loss", "desirable_weight", "epsilon", "epsilon_high",
    "eval_steps", "eval_strategy", "gamma", "gradient_accumulation_steps", "importance_sampling_level", "kl_coef",
    "kl_estimator", "label_smoothing", "lam", "learning_rate", "logging_nan_inf_filter", "logging_steps", "loss_type",
    "lr_scheduler_type", "mask_truncated_completions", "max_completion_length", "max_grad_norm", "max_length",
    "max_steps", "missing_eos_penalty", "multi_objective_aggregation", "num_generations", "num_iterations",
    "num_mini_batches", "num_ppo_epochs", "num_train_epochs", "optim", "packing", "per_device_train_batch_size",
    "response_length", "reward_weights", "scale_rewards", "seed", "steps_per_generation", "temperature",
    "undesirable_weight", "vf_coef", "warmup_ratio", "warmup_steps", "weight_decay", "world_size",
)  # fmt: skip

_PHASES = {"T": "train", "E": "eval", "C": "checkpoint", "S": "summary", "U": "setup"}
_LETTERS = {phase: letter for letter, phase in _PHASES.items()}
_TICKS_A_SECOND = 10_000  # of the wall clock: a step of the fastest run is some hundred ticks
_ABSENT = object()


class Key(NamedTuple):
    """What sets one run apart from all others."""

    scenario: str
    seed: int
    logging_steps: int
    trl: str

    def __str__(self) -> str:
        """As it is named in listings."""
        return f"{self.scenario} seed={self.seed} logging_steps={self.logging_steps} trl={self.trl}"


@dataclass(frozen=True)
class Header:
    """What is known of a run beside its rows.

    Attributes:
        scenario: Name of the scenario.
        trainer: The family.
        trl: Version of TRL that it ran on.
        transformers: Version of transformers.
        seed: Its seed.
        logging_steps: As of the trainer's arguments.
        onset: The step after which the fault acted when it was recorded.
        arguments: Those of the trainer's arguments that are in `ARGUMENTS`.
        died: The exception that ended the run, or None.
    """

    scenario: str
    trainer: str
    trl: str
    transformers: str
    seed: int
    logging_steps: int
    onset: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    died: str | None = None

    @property
    def key(self) -> Key:
        """What sets it apart."""
        return Key(self.scenario, self.seed, self.logging_steps, self.trl)


class Row(NamedTuple):
    """One event of a run.

    Attributes:
        step: The global step.
        wall_time: Seconds since the run began.
        phase: As of the event.
        raw: The trainer's own dictionary; None for an event of rldk's own making.
        extra: Canonical metrics of the event that do not follow from `raw`.
        info: What the event's `model_info` held beyond what every event's does.
    """

    step: int
    wall_time: float
    phase: str
    raw: dict[str, float | int | None] | None
    extra: dict[str, float | int | None]
    info: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """A recorded run."""

    header: Header
    rows: list[Row]


def path_of(scenario: str, folder: Path = STREAMS) -> Path:
    """The file of a scenario's runs."""
    return folder / f"{scenario}.jsonl.xz"


def write(path: Path, lines: Iterable[str]) -> None:
    """Writes a scenario's runs, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with lzma.open(partial, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
        file.writelines(f"{line}\n" for line in lines)
    partial.replace(path)


def read(path: Path) -> Iterator[Recording]:
    """Yields a scenario's runs."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield decode_line(line)


def keys(path: Path) -> set[Key]:
    """The runs of a scenario that are stored."""
    if not path.exists():
        return set()
    with lzma.open(path, "rt", encoding="utf-8") as file:
        records = map(json.loads, file)
        return {Key(*(record[name] for name in Key._fields)) for record in records}


# A run and its line


def encode_line(recording: Recording) -> str:
    """A run as one line of JSON."""
    rows = recording.rows
    ticks = [round(row.wall_time * _TICKS_A_SECOND) for row in rows]
    # An event of rldk's own making is a lower-case letter.
    kinds = "".join(_LETTERS[row.phase] if row.raw is not None else _LETTERS[row.phase].lower() for row in rows)
    record = {
        **vars(recording.header),
        "kinds": kinds,
        "steps": _differences([row.step for row in rows]),
        "ticks": _differences(ticks),
        "raw": _columns([row.raw or {} for row in rows]),
        "extra": _columns([row.extra for row in rows]),
        "info": _spans([row.info for row in rows]),
    }
    return json.dumps(record, separators=(",", ":"))


def decode_line(line: str) -> Recording:
    """The run of a line."""
    record = json.loads(line)
    kinds, raw, extra = record.pop("kinds"), record.pop("raw"), record.pop("extra")
    count = len(kinds)
    steps, ticks = _sums(record.pop("steps")), _sums(record.pop("ticks"))
    raws, extras = _rows(raw, count), _rows(extra, count)
    infos: list[dict[str, Any]] = [{}] * count
    for first, length, info in record.pop("info"):
        infos[first : first + length] = [info] * length
    rows = [
        Row(step, tick / _TICKS_A_SECOND, _PHASES[kind.upper()], own if kind.isupper() else None, added, info)
        for kind, step, tick, own, added, info in zip(kinds, steps, ticks, raws, extras, infos)
    ]
    return Recording(Header(**record), rows)


def _columns(rows: list[dict[str, Any]]) -> dict[str, str]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in sorted(names):
        values = [row.get(name, _ABSENT) for row in rows]
        floats = any(isinstance(value, float) for value in values)
        whole = any(type(value) is int for value in values)
        # The first letter says what the numbers are: floats, integers, or both, where an integer then wears a mark.
        kind = "m" if floats and whole else "i" if whole else "f"
        columns[name] = kind + ",".join(_text(value, kind == "m") for value in values)
    return columns


def _text(value: Any, mixed: bool) -> str:
    if value is _ABSENT:
        return ""
    if value is None:
        return "n"
    if type(value) is int:
        return f"{'#' if mixed else ''}{value}"
    if not math.isfinite(value):
        return str(float(value))
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    if abs(value) < 1e15 and value == int(value):
        return str(int(value))
    text = f"{value:.5g}".replace("e-0", "e-").replace("e+", "e")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _number(text: str) -> Any:
    return None if text == "n" else int(text[1:]) if text[0] == "#" else float(text)


def _rows(columns: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in columns.items():
        convert = {"f": float, "i": int}.get(column[0], _number)
        for row, text in zip(rows, column[1:].split(",")):
            if text:
                row[name] = None if text == "n" else convert(text)
    return rows


def _differences(values: list[int]) -> str:
    return ",".join(str(value - before) for value, before in zip(values, [0, *values]))


def _sums(text: str) -> list[int]:
    total, sums = 0, []
    for part in text.split(",") if text else ():
        total += int(part)
        sums.append(total)
    return sums


def _spans(infos: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Consecutive rows of the same info as (first row, how many, info); rows without any are left out."""
    spans: list[tuple[int, int, dict[str, Any]]] = []
    for index, info in enumerate(infos):
        if info and spans and sum(spans[-1][:2]) == index and spans[-1][2] == info:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1, info)
        elif info:
            spans.append((index, 1, info))
    return spans


# A run and its readers


def events(recording: Recording) -> Iterator[Event]:
    """Yields the run's events as the live callback made them, but for rounding, notes, clock time and random states.

    Raw names are translated by rldk's vocabulary as it is now: a benchmark of old streams with new code.
    """
    header = recording.header
    vocabulary = vocabulary_of(header)
    always = {"run_id": str(header.key), "trainer": header.trainer}
    tokens = 0
    for step, wall_time, phase, raw, extra, info in recording.rows:
        metrics, data_slice = extra, {}
        if raw is not None:
            metrics = {**vocabulary.translate(raw).metrics, **extra}
            count = metrics.get("num_tokens")
            if phase == "train" and count is not None and count == count:
                data_slice = {"tokens_in": int(count - tokens if count >= tokens else count)}
                tokens = count
        yield Event(step, wall_time, metrics, phase, {"seed": header.seed}, data_slice, {**always, **info} if info else always)


def vocabulary_of(header: Header) -> Vocabulary:
    """The vocabulary of a run."""
    known = families()
    return Vocabulary(known.get(header.trainer, known["generic"]), header.trl, header.arguments)


def raw_rows(recording: Recording) -> Iterator[tuple[int, dict[str, float | int | None]]]:
    """Yields what the trainer logged, in its own names: step and dictionary, evaluations and the last row included."""
    for row in recording.rows:
        if row.raw is not None:
            yield row.step, row.raw
