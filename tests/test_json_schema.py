"""docs/event.schema.json is true of the lines that rldk writes, and false of others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from captures import captures
from hypothesis import given, settings
from hypothesis import strategies as st

from rldk.emit import EventWriter
from rldk.event import PHASES, Event, encode, timestamp
from rldk.vocabulary import Vocabulary, families

SCHEMA = json.loads((Path(__file__).resolve().parents[1] / "docs" / "event.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LINE = json.loads(encode(Event(1, 0.5, {"loss": math.nan, "a": 1.0}, time=timestamp(0.0))))


def check(line: bytes) -> None:
    record = json.loads(line)
    VALIDATOR.validate(record)
    # What a schema cannot say: the order of keys, and that `nonfinite` speaks of nulls.
    order = list(SCHEMA["properties"])
    assert list(record) == [key for key in order if key in record]
    assert all(record["metrics"][name] is None for name in record.get("nonfinite", {}))


def test_schema_is_a_schema():
    """The file itself is valid JSON Schema, draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")


def test_schema_knows_all_phases():
    """The schema's phases are those of the code."""
    assert tuple(SCHEMA["properties"]["model_info"]["properties"]["phase"]["enum"]) == PHASES


def test_lines_of_event_writer(tmp_path):
    """Every line that EventWriter writes fits."""
    path = tmp_path / "e.jsonl"
    with EventWriter(path, run_id="r", seed=1, tags=["a", "b"]) as writer:
        for phase in PHASES:
            writer.log(1, {"loss": 1.0, "n": 3, "none": None, "nan": math.nan}, phase=phase, notes=["note"])
        writer.log(
            2, {"inf": -math.inf, "np": np.float32("nan"), "bool": True, "huge": 10**400, "one": np.array([1.0])}
        )
        writer.log(3, {})
        writer.log(4, name="kl", value=0.1)
    for line in path.read_bytes().splitlines(keepends=True):
        check(line)


@pytest.mark.parametrize("capture", captures(), ids=str)
def test_lines_of_captures(capture):
    """What real trainers logged, translated and encoded, fits."""
    vocabulary = Vocabulary(families()[capture.family], capture.trl)
    for row, logs in zip(capture.rows, capture.logs, strict=True):
        phase, metrics, _ = vocabulary.translate(logs)
        check(
            encode(
                Event(
                    row["step"],
                    0.5,
                    metrics,
                    phase,
                    {"seed": 1, "state": "0a1b2c3d"},
                    {"tokens_in": 3},
                    {"run_id": "r"},
                    ("n",),
                    timestamp(1e9),
                )
            )
        )


@given(
    st.dictionaries(st.text(), st.none() | st.floats() | st.integers(), max_size=6),
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.sampled_from(PHASES), st.lists(st.text(), max_size=3),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_event(metrics, step, wall_time, phase, notes):
    """Whatever the names and numbers of an event, its line fits."""
    check(encode(Event(step, wall_time, metrics, phase, notes=tuple(notes))))


@pytest.mark.parametrize(
    "change",
    [
        {"step": 1.5},
        {"step": "1"},
        {"step": None},
        {"wall_time": "1"},
        {"metrics": {"a": "x"}},
        {"metrics": {"a": True}},
        {"metrics": []},
        {"notes": "text"},
        {"notes": [1]},
        {"model_info": {}},
        {"model_info": {"phase": "other"}},
        {"model_info": {"phase": "train", "run_id": 3}},
        {"time": "yesterday"},
        {"nonfinite": {"a": "NaN"}},
        {"nonfinite": {}},
        {"data_slice": {"tokens_in": -1}},
        {"more": 1},
    ],
    ids=str,
)
def test_schema_refuses(change):
    """The schema is no formality: a line that is wrong in one place does not fit."""
    assert VALIDATOR.is_valid(LINE)
    assert not VALIDATOR.is_valid({**LINE, **change})


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_required_keys(key):
    """A line without one of the first seven keys does not fit."""
    assert not VALIDATOR.is_valid({name: value for name, value in LINE.items() if name != key})
