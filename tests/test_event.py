"""The event line: what is written, and that reading it back gives the same."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rldk.event import PHASES, Alert, Event, Severity, decode, encode, sanitised, timestamp

KEYS = ["step", "wall_time", "metrics", "rng", "data_slice", "model_info", "notes"]

values = st.none() | st.floats() | st.integers(-(2**63), 2**64 - 1)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def strict(line: bytes):
    """Parses as RFC 8259 has it: a bare NaN is an error."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line.decode("utf-8"), parse_constant=refuse)


def same(left, right):
    """Equal, NaN being equal to itself, and of the same kind."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return left == right and type(left) is type(right)


def back(event: Event) -> Event:
    found = decode(orjson.loads(encode(event)))
    assert found is not None
    return found


def test_key_order():
    """Keys come in the schema's order, `time` after the seven, `nonfinite` last and only where it says something."""
    assert list(strict(encode(Event(1, 0.5, {"loss": 1.0})))) == [*KEYS, "time"]
    assert list(strict(encode(Event(1, 0.5, {"loss": math.nan})))) == [*KEYS, "time", "nonfinite"]


def test_bare_event_has_all_keys():
    """The first seven keys are there even when there is nothing to say."""
    line = strict(encode(Event(0, 0.0, {})))
    assert list(line)[:7] == KEYS
    assert line["metrics"] == line["rng"] == line["data_slice"] == {}
    assert line["notes"] == []
    assert line["model_info"] == {"phase": "train"}


@pytest.mark.parametrize("phase", PHASES)
def test_phase_stands_in_model_info(phase):
    """The phase is written into `model_info`, comes back from there, and is not left in it."""
    event = Event(3, 1.0, {"loss": 1.0}, phase, model_info={"run_id": "r", "tags": {"a": [1]}})
    assert strict(encode(event))["model_info"] == {"run_id": "r", "tags": {"a": [1]}, "phase": phase}
    assert back(event) == event


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (None, None),
        (np.float32("nan"), "nan"), (np.float64("-inf"), "-inf"), (np.float16("inf"), "inf"),
        (10**400, "inf"), (-(10**400), "-inf"),
    ],
    ids=repr,
)
def test_nonfinite_policy(value, kind):
    """NaN, Inf and None are null in `metrics`, and `nonfinite` says which; None needs no entry."""
    line = strict(encode(Event(1, 0.0, {"bad": value, "good": 2.5})))
    assert line["metrics"] == {"bad": None, "good": 2.5}
    assert line.get("nonfinite", {}) == ({} if kind is None else {"bad": kind})
    read = decode(line).metrics["bad"]
    assert read is None if kind is None else same(read, float(kind))


def test_infinities_that_cancel():
    """Values whose sum is finite by accident, NaN or an overflow hide nothing."""
    event = Event(1, 0.0, {"a": math.inf, "b": -math.inf, "c": 1e308, "d": 1e308, "e": None})
    line = strict(encode(event))
    assert line["nonfinite"] == {"a": "inf", "b": "-inf"}
    assert line["metrics"]["d"] == 1e308
    assert back(event) == event


@given(st.dictionaries(names, values, max_size=8), st.integers(-(2**63), 2**63 - 1), st.floats(0, 1e9))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_round_trip(metrics, step, wall_time):
    """Whatever the names and the numbers, decoding an encoded event gives them back, bit for bit."""
    event = Event(step, wall_time, metrics, "eval", {"seed": 1}, {"tokens_in": 7}, {"run_id": "r"}, ("n",), "t")
    strict(encode(event))
    read = back(event)
    assert read._replace(metrics={}) == event._replace(metrics={})
    assert list(read.metrics) == list(metrics)
    assert all(same(read.metrics[name], value) for name, value in metrics.items())


@pytest.mark.parametrize("name", ['quo"te', "new\nline", "back\\slash", "nul\0", "\x1b[31m", "\u2028", "é\U0001f600", "", "{}"])
def test_hostile_names(name):
    """Quotes, newlines and control characters in names and notes stay inside their line."""
    event = Event(1, 0.0, {name: 1.0, "nan": math.nan}, notes=(name,), model_info={"run_id": name})
    assert strict(encode(event))["metrics"][name] == 1.0
    assert back(event).notes == (name,)
    assert back(event).run_id == name


def test_lone_surrogates():
    """A lone surrogate, which UTF-8 cannot hold, costs the character and not the line."""
    line = strict(
        encode(Event(1, 0.0, {"a\ud800": math.nan, "b": 2}, notes=("\udfff",), model_info={"tags": ["\ud9ab"]}))
    )
    assert line["metrics"] == {"a?": None, "b": 2}
    assert line["nonfinite"] == {"a?": "nan"}
    assert line["notes"] == ["?"]


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 1, 10**30])
def test_integers_beyond_64_bits(value):
    """Integers that JSON readers cannot hold become the nearest float."""
    assert strict(encode(Event(1, 0.0, {"n": value})))["metrics"]["n"] == pytest.approx(value, rel=1e-15)
    assert back(Event(1, 0.0, {"n": value})).metrics["n"] == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_numpy_scalars(value):
    """Numpy's floats are written as numbers."""
    assert strict(encode(Event(1, 0.0, {"a": value})))["metrics"] == {"a": 0.5}


@pytest.mark.parametrize(
    "record",
    [
        {}, {"step": 1}, {"metrics": {}}, {"step": "1", "metrics": {}}, {"step": 1.0, "metrics": {}},
        {"step": True, "metrics": {}}, {"step": None, "metrics": {}}, {"step": 1, "metrics": []},
        {"step": 1, "metrics": None}, {"step": 2**63, "metrics": {}}, {"step": -(2**63) - 1, "metrics": {}},
    ],
    ids=str,
)
def test_not_an_event(record):
    """A record without a step that fits an integer column, or without a metrics object, is no event."""
    assert decode(record) is None


def test_wrong_types_inside():
    """What is of a wrong type inside an event is left out, so that every reader can trust the types."""
    deep = json.loads("[" * 900 + "]" * 900)
    event = decode(
        {
            "step": 1, "wall_time": "soon", "metrics": {"a": "x", "b": [1], "c": {}, "d": 4, "e": None},
            "rng": 5, "data_slice": [], "model_info": {"run_id": deep, "phase": 7}, "notes": ["n", 3, None],
            "time": deep, "nonfinite": {"e": "nan", "absent": "inf", "d": 3},
        }
    )
    assert event.metrics.keys() == {"d", "e"}
    assert event.metrics["d"] == 4
    assert math.isnan(event.metrics["e"])
    assert math.isnan(event.wall_time)
    assert (event.rng, event.data_slice, event.notes, event.time, event.phase) == ({}, {}, ("n",), "", "train")
    assert event.run_id == ""


def test_run_id_is_text():
    """A run id that another writer put down as a number is that number's text."""
    assert decode({"step": 1, "metrics": {}, "model_info": {"run_id": 17}}).run_id == "17"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_sanitised_is_json(value):
    """Whatever Python value comes in, its sanitised copy can be written."""
    strict(orjson.dumps(sanitised(value), option=orjson.OPT_APPEND_NEWLINE))


def test_alert_is_json():
    """An alert of NaN is written as plain values: NaN and infinities are strings, nested ones too."""
    alert = Alert(
        "c", "n", "critical", 3, math.nan, "loss", math.nan, math.inf, "m", "a", {"x": -math.inf, "y": {"z": math.nan}}
    )
    plain = strict(orjson.dumps(alert.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
    assert (plain["value"], plain["threshold"], plain["wall_time"]) == ("nan", "inf", "nan")
    assert plain["evidence"] == {"x": "-inf", "y": {"z": "nan"}}
    assert plain["resolved_step"] is None


def test_severities_are_ordered():
    """Info is below warning is below critical."""
    assert [severity.rank for severity in Severity] == [0, 1, 2]


@pytest.mark.parametrize("seconds", [0.0, 0.9996, 1795244400.1239, 4e9])
def test_timestamp(seconds):
    """Times are UTC with milliseconds, cut and not rounded."""
    text = timestamp(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert text.endswith(f".{int(seconds * 1000) % 1000:03d}Z")
