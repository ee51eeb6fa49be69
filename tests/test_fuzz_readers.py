"""Whatever bytes are in a log: a DataFrame, or an error that rldk documents. Thirteen thousand files."""

from __future__ import annotations

import importlib.util
import json
import math
import sqlite3
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from captures import captures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rldk.adapters import formats
from rldk.adapters.trl import TRLAdapter
from rldk.detectors import make_detectors
from rldk.event import Event, encode
from rldk.exceptions import IngestError
from rldk.ingest import events_of, ingest_runs, open_log, oriented, run_name
from rldk.monitor import Monitor
from rldk.summary import Summary
from rldk.vocabulary import Vocabulary, families

# One for the whole module: a folder for each of thousands of files would cost more than reading them.
FOLDER = tempfile.TemporaryDirectory(prefix="rldk-fuzz-")
FIXED = ["step", "wall_time", "run_id", "phase"]
THRESHOLDS = dict.fromkeys(("kl_divergence", "clip_fraction", "gradient_norm", "memory_usage"), 0.5)
COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
NAMES = st.sampled_from(["x.jsonl", "x.json", "trainer_state.json", "x_events.jsonl"])
HINTS = st.sampled_from([None, None, None, *formats()])
FIELD_MAPS = st.sampled_from([None, None, {"a": "step"}, {"step": "b", "kl": "loss"}, {"loss": "x", "metrics": "kl"}])


def read(content: bytes, name: str, hint: str | None = None, field_map=None) -> None:
    """Reads a file in every way there is, and checks what comes of it against the contract."""
    path = Path(FOLDER.name) / name
    path.write_bytes(content)
    check(path, hint, field_map)


def check(path: Path, hint: str | None = None, field_map=None) -> None:
    """Reads what is there."""
    assert TRLAdapter(path).can_handle() in (True, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = ingest_runs(path, adapter_hint=hint, field_map=field_map)
        except IngestError as error:
            assert str(error)
            return
    for warning in caught:
        assert str(warning.message).startswith("rldk: skipped lines: ")
        assert warning.category is UserWarning
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns[:4]) == FIXED
    assert frame.columns.is_unique
    assert frame["step"].dtype == np.int64
    assert all(dtype == np.float64 for dtype in list(frame.dtypes)[4:])
    steps, runs = frame["step"].to_numpy(), frame["run_id"].cat.codes.to_numpy()
    assert np.array_equal(np.lexsort((steps, runs)), np.arange(len(frame)))
    assert (frame.attrs["skipped_lines"] > 0) == bool(caught)
    compare(frame, path, hint, field_map)
    judge(path, hint)


def compare(frame: pd.DataFrame, path: Path, hint: str | None, field_map) -> None:
    """Checks the frame against the file's events, one by one, where no resume made any of them void."""
    everything = list(open_log(path, hint, oriented(field_map)).events())
    runs = list(dict.fromkeys(event.run_id or run_name(path) for event in everything))
    events = [event for event in everything if event.metrics]
    names = {
        name for event in events for name in event.metrics if name not in FIXED and not name.startswith("metrics/")
    }
    assert names <= set(frame.columns)
    assert len(frame) <= len(events)
    if len(frame) < len(events):
        return
    events.sort(key=lambda event: (runs.index(event.run_id or run_name(path)), event.step))
    assert frame["step"].tolist() == [event.step for event in events]
    assert frame["phase"].tolist() == [event.phase for event in events]
    assert frame["run_id"].tolist() == [event.run_id or run_name(path) for event in events]
    for name in names:
        values = [event.metrics.get(name) for event in events]
        expected = np.array([math.nan if value is None else float(value) for value in values])
        assert np.array_equal(frame[name].to_numpy(), expected, equal_nan=True)


def judge(path: Path, hint: str | None) -> None:
    """Runs the events through the engine: no detector may fail on them, and each must be fit to be written again."""
    monitor, summary = Monitor(make_detectors(THRESHOLDS)), Summary()
    for event in events_of(path, hint):
        monitor.observe(event)
        summary.add(event)
        line = json.loads(encode(event))
        assert all(value is None or isinstance(value, (int, float)) for value in line["metrics"].values())
    assert summary.totals()["steps"] >= 0
    assert summary.metrics() is not None
    assert monitor.guard.failures == {}
    assert len(monitor.coverage()) == len(make_detectors(THRESHOLDS))


scalars = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=8)
    | st.integers()
    | st.sampled_from(
        [
            2**31,
            2**53 + 1,
            2**63 - 1,
            2**63,
            2**64,
            -(2**63),
            -(2**63) - 1,
            10**40,
            10**400,
            -(10**400),
            1e308,
            -0.0,
            "NaN",
            "nan",
            "1",
        ]
    )
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
deep = st.integers(1, 1500).map(lambda depth: "[" * depth + "]" * depth) | st.integers(1, 1500).map(
    lambda depth: '{"a":' * depth + "1" + "}" * depth
)

ARGUMENTS = [
    "beta", "learning_rate", "lr_scheduler_type", "logging_steps", "max_grad_norm", "max_steps", "warmup_steps", "num_train_epochs",
    "loss_type", "epsilon_high", "generation_kwargs", "importance_sampling_level", "max_completion_length", "reward_weights",
    "vllm_importance_sampling_mode", "trainer",
]
FACTS = [
    "trainable_frac", "uses_adapter", "warmup_frac", "eos_label_frac", "empty_label_frac", "ref_shared_frac", "kto_balance",
]
event_keys = ["step", "wall_time", "metrics", "rng", "data_slice", "model_info", "notes", "time", "nonfinite"]
raw_keys = [
    "step",
    "loss",
    "grad_norm",
    "kl",
    "reward",
    "reward_std",
    "objective/kl",
    "val/ratio",
    "eval_loss",
    "train_loss",
    "train_runtime",
    "name",
    "value",
    "a",
    "_step",
    "timestamp",
    "run_id",
    "param_nonfinite",
    "rewards/f/mean",
]
steps = st.integers(-3, 12) | st.integers(-3, 12).map(float) | scalars
metrics = st.dictionaries(
    st.sampled_from(raw_keys) | st.text(max_size=4), st.floats() | st.integers() | st.none() | anything, max_size=6
)
event_like = st.fixed_dictionaries(
    {"step": steps, "metrics": metrics | anything},
    optional={
        "wall_time": scalars,
        "model_info": st.fixed_dictionaries(
            {},
            optional={
                "run_id": st.sampled_from(["a", "b"]) | anything,
                "phase": st.sampled_from(["train", "eval", "checkpoint", "summary"]) | anything,
                "trainer": st.sampled_from(["ppo", "grpo"]) | anything,
                "setup": st.fixed_dictionaries(
                    {},
                    optional={
                        "step": steps,
                        "wall_time": scalars,
                        "trainer": st.sampled_from(["kto", "sft"]) | anything,
                        "arguments": st.dictionaries(st.sampled_from(ARGUMENTS), anything, max_size=3) | anything,
                        "facts": st.dictionaries(st.sampled_from(FACTS), anything, max_size=3) | anything,
                    },
                )
                | anything,
            },
        )
        | anything,
        "notes": st.lists(st.sampled_from(["resumed from step 3", "resumed from step x"]) | anything, max_size=2)
        | anything,
        "nonfinite": st.dictionaries(
            st.sampled_from(raw_keys), st.sampled_from(["nan", "inf", "-inf"]) | anything, max_size=3
        )
        | anything,
        "data_slice": st.dictionaries(
            st.sampled_from(["tokens_in", "steps", "events", "wall_time"]), scalars, max_size=3
        )
        | anything,
        "rng": anything,
        "time": anything,
    },
)
# Events as rldk writes them, but for a place or two: what a reader that trusts whole lines would stumble over.
WHOLE = {
    "step": 1,
    "wall_time": 1.5,
    "metrics": {"a": 1.0},
    "rng": {},
    "data_slice": {},
    "model_info": {"run_id": "a", "phase": "train"},
    "notes": [],
    "time": "",
}
nearly_whole = st.builds(
    lambda step, changes: {**WHOLE, "step": step, **changes},
    st.integers(0, 9),
    event_like.map(lambda record: dict(list(record.items())[1:3])),
)
flat_like = st.builds(
    lambda step, row: {**row, **step},
    st.fixed_dictionaries({}, optional={"step": steps, "global_step": steps}),
    metrics,
)
named_like = st.fixed_dictionaries(
    {"name": st.sampled_from(["kl", "loss"]) | scalars, "value": scalars | anything, "step": steps},
    optional={"run_id": scalars, "wall_time": scalars, "time": anything},
)
state_like = st.fixed_dictionaries(
    {"log_history": st.lists(flat_like | anything, max_size=5) | anything},
    optional={"global_step": scalars, "best_metric": anything},
)


def dump(value) -> str:
    """JSON as Python writes it: bare NaN, integers of any length, escaped surrogates."""
    return json.dumps(value)


lines = st.lists(
    event_like.map(dump)
    | flat_like.map(dump)
    | named_like.map(dump)
    | state_like.map(dump)
    | anything.map(dump)
    | deep
    | st.text(max_size=6),
    max_size=6,
)
alike = st.one_of(
    st.lists(kind.map(dump), min_size=1, max_size=6) for kind in (event_like, nearly_whole, flat_like, named_like)
)
endings = st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\n\0\n"])
tails = st.sampled_from(["", "\n", '{"step": 1, "met', "\0\0", "\ufeff"])


@given(st.binary(max_size=200), NAMES)
@settings(max_examples=4500, **COMMON)
def test_bytes(content, name):
    """Any bytes at all."""
    read(content, name)


@given(lines, endings, tails, NAMES, HINTS, FIELD_MAPS)
@settings(max_examples=1500, **COMMON)
def test_mixed_lines(records, ending, tail, name, hint, field_map):
    """Lines of all formats, of other JSON and of no JSON, in one file."""
    read((ending.join(records) + tail).encode("utf-8", "surrogatepass"), name, hint, field_map)


@given(alike, endings, tails, NAMES, FIELD_MAPS)
@settings(max_examples=1500, **COMMON)
def test_lines_of_one_format(records, ending, tail, name, field_map):
    """Lines that look like events, like flat logs or like the older stream, with anything in any place."""
    read((ending.join(records) + tail).encode("utf-8", "surrogatepass"), name, None, field_map)


@given(state_like | st.lists(flat_like | anything, max_size=5), st.sampled_from([None, 2]), NAMES, HINTS, FIELD_MAPS)
@settings(max_examples=1200, **COMMON)
def test_documents(document, indent, name, hint, field_map):
    """Documents that look like a trainer's state, with anything in any place."""
    read(json.dumps(document, indent=indent).encode(), name, hint, field_map)


def _files() -> list[tuple[str, bytes]]:
    files = []
    for run in captures()[::3]:
        words = Vocabulary(families()[run.family], run.trl)
        translated = [(row["step"], *words.translate(logs)[:2]) for row, logs in zip(run.rows, run.logs, strict=True)]
        files.append(("x.jsonl", "".join(dump(row) + "\n" for row in run.rows).encode()))
        files.append(("trainer_state.json", json.dumps({"log_history": run.rows}, indent=2).encode()))
        files.append(
            (
                "x_events.jsonl",
                b"".join(
                    encode(Event(step, 1.0 * step, {**values, "nan": math.nan}, phase, model_info={"run_id": "r"}))
                    for step, phase, values in translated
                ),
            )
        )
    return files


FILES = _files()
snippets = st.sampled_from(
    [
        b"",
        b"\n",
        b"\0",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"step":',
        b"\\ud800",
        b"\xff",
        b"null",
        b"true",
        b"9" * 30,
        b"9" * 5000,
    ]
)
mutations = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 40), snippets), min_size=1, max_size=6)


@given(st.integers(0, len(FILES) - 1), mutations, st.floats(0.1, 1))
@settings(max_examples=2300, **COMMON)
def test_mutated_files(index, changes, kept):
    """Real logs with pieces cut out and put in, and cut off at some place."""
    name, content = FILES[index]
    content = content[: int(len(content) * kept)]
    for where, length, snippet in changes:
        at = int(where * len(content))
        content = content[:at] + snippet + content[at + length :]
    read(content, name)


@pytest.mark.parametrize("index", range(len(FILES)))
def test_unmutated_files(index):
    """The files that are mutated are whole before: nothing is skipped."""
    name, content = FILES[index]
    read(content, name)
    path = Path(FOLDER.name) / name
    assert ingest_runs(path).attrs["skipped_lines"] == 0


# The stores of trackers. Their schemas are those of the real ones, which tests/test_importers.py has made by the trackers themselves.

TRACKIO = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {id}timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)",
    "CREATE TABLE configs (id INTEGER PRIMARY KEY AUTOINCREMENT, {id}run_name TEXT, config TEXT, created_at TEXT)",
)
MLFLOW = (
    "CREATE TABLE runs (run_uuid VARCHAR(32), name VARCHAR(250), lifecycle_stage VARCHAR(20))",
    "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), step BIGINT, is_nan BOOLEAN)",
    "CREATE TABLE tags (key, value, run_uuid)",
    "CREATE TABLE params (key, value, run_uuid)",
)
tracked_keys = st.sampled_from([
    *raw_keys, *(f"train/{key}" for key in raw_keys), *(f"eval/{key}" for key in raw_keys), "train/global_step", "__step", "_type",
    "train/epoch", "epoch", "objective/kl", "val/ratio", "val/ratio_var", "loss/value_avg", "system/gpu", "profiling/Time taken: x", "wall_time", "", "train/",
])
tracked_values = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from(["NaN", "Infinity", "-Infinity", "x"]) | anything
tracked_rows = st.dictionaries(tracked_keys | st.text(max_size=4), tracked_values, max_size=6)
# Those that a vocabulary reckons with, if it can tell the trainer.
RECKONED = ["loss_type", "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs"]
configs = st.dictionaries(st.sampled_from([*ARGUMENTS, "seed", *RECKONED]), anything, max_size=5).map(dump) | st.fixed_dictionaries(
    dict.fromkeys(RECKONED, st.integers(-2, 9) | scalars)
).map(dump)
columns = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from(["a", "b", "2026-11-21T18:34:07+00:00", "9"]),
)
usual = st.sampled_from(["a", "b"])


def mostly(normal, odd=columns):
    """One in eight is odd: where all are, little is read."""
    return st.integers(0, 7).flatmap(lambda number: odd if number == 7 else normal)




def database(statements, tables) -> bytes:
    """The bytes of a database with these tables and rows."""
    connection = sqlite3.connect(":memory:")
    for statement in statements:
        connection.execute(statement)
    for table, rows in tables.items():
        for row in rows:
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    with tempfile.NamedTemporaryFile(suffix=".db", dir=FOLDER.name) as file:
        target = sqlite3.connect(file.name)
        connection.backup(target)
        target.close()
        connection.close()
        return Path(file.name).read_bytes()


def numbered(rows):
    return [(number, *row) for number, row in enumerate(rows, 1)]


@given(
    st.booleans(),
    st.lists(st.tuples(mostly(usual), columns, mostly(usual), mostly(st.integers(-3, 12)), mostly(tracked_rows.map(dump))), max_size=8),
    st.lists(st.tuples(mostly(usual), mostly(usual), mostly(configs), columns), max_size=2),
    FIELD_MAPS,
)
@settings(max_examples=500, **COMMON)
def test_databases_of_trackio(by_id, rows, settings_of_runs, field_map):
    """Rows with anything in any column, by the schemas of both kinds of versions."""
    first = 0 if by_id else 1
    statements = [statement.format(id="run_id TEXT, " if by_id else "") for statement in TRACKIO]
    content = database(statements, {
        "metrics": numbered(row[first:] for row in rows), "configs": numbered(row[first:] for row in settings_of_runs),
    })
    read(content, "x.db", None, field_map)


@given(
    st.lists(st.tuples(usual, mostly(usual), st.sampled_from(["active", "active", "deleted", None])), min_size=1, max_size=3),
    st.lists(
        st.tuples(
            mostly(tracked_keys), mostly(st.floats()), mostly(st.integers(0, 3)), mostly(usual), mostly(st.integers(-3, 12)),
            mostly(st.booleans()),
        ),
        max_size=12,
    ),
    st.lists(st.tuples(mostly(st.sampled_from(ARGUMENTS)), mostly(configs), mostly(usual)), max_size=4),
    FIELD_MAPS,
)
@settings(max_examples=500, **COMMON)
def test_databases_of_mlflow(runs, points, params, field_map):
    """Points with anything in any column."""
    read(database(MLFLOW, {"runs": runs, "metrics": points, "params": params}), "x.db", None, field_map)


@given(
    st.dictionaries(st.sampled_from(["loss", "rewards/a/mean", "eval_loss", "epoch", "objective/kl"]), st.lists(
        mostly(st.tuples(mostly(st.integers(0, 9), scalars), mostly(st.floats(), scalars), mostly(st.integers(-3, 9), scalars)).map(
            lambda parts: " ".join(map(str, parts)).encode("utf-8", "surrogatepass") + b"\n"
        ), st.binary(max_size=20)), max_size=6,
    ), min_size=1, max_size=3),
    st.binary(max_size=30), st.dictionaries(st.sampled_from(ARGUMENTS), st.binary(max_size=10) | configs.map(str.encode), max_size=2),
)
@settings(max_examples=300, **COMMON)
def test_file_stores_of_mlflow(metrics_of_run, meta, params):
    """A run's folder with anything in its files."""
    with tempfile.TemporaryDirectory(dir=FOLDER.name) as name:
        folder = Path(name)
        for place, files in (("metrics", metrics_of_run), ("params", params), ("tags", {})):
            (folder / place).mkdir()
            for file, content in files.items():
                path = folder / place / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
        (folder / "meta.yaml").write_bytes(meta)
        check(folder)


def _stores() -> list[tuple[str, bytes]]:
    """A small store of each kind, as the libraries write it. wandb's is of records that wandb's own classes made."""
    run = captures()[1]
    rows = [{"train/global_step": row["step"], **{f"train/{name}": value for name, value in logs.items()}}
            for row, logs in zip(run.rows, run.logs, strict=True)]
    files = [("x.db", database(
        [statement.format(id="run_id TEXT, ") for statement in TRACKIO],
        {"metrics": numbered(("a", f"2026-11-21T18:34:{at:02d}+00:00", "a", at, dump(row)) for at, row in enumerate(rows)),
         "configs": numbered([("a", "a", '{"beta": 0.1}', "")])},
    ))]
    files.append(("x.db", database(MLFLOW, {
        "runs": [("a", "a", "active")], "params": [("beta", "0.1", "a")],
        "metrics": [
            (name, value, row["step"], "a", row["step"], 0)
            for row, logs in zip(run.rows, run.logs, strict=True) for name, value in logs.items() if isinstance(value, (int, float))
        ],
    })))
    if importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder) as writer:
                writer.add_text("args", '{"beta": 0.1}')
                for row in rows:
                    for name, value in row.items():
                        if isinstance(value, (int, float)):
                            writer.add_scalar(name, value, row["train/global_step"])
            (path,) = Path(folder).iterdir()
            files.append(("events.out.tfevents.1.host", path.read_bytes()))
    if importlib.util.find_spec("wandb"):
        from wandb.proto import wandb_internal_pb2 as proto

        records = [proto.Record(run=proto.RunRecord(run_id="a", display_name="a"))]
        for row in rows:
            items = [proto.HistoryItem(key=name, value_json=dump(value)) for name, value in row.items()]
            records.append(proto.Record(history=proto.HistoryRecord(item=items)))
        content = b":W&B\xe1\xbe\x00"
        for record in records:
            data = record.SerializeToString()
            assert len(content) + len(data) < 32768
            content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(b"\x01")), len(data), 1) + data
        files.append(("x.wandb", content))
    return files


STORES = _stores()


@given(st.integers(0, len(STORES) - 1), mutations, st.floats(0.1, 1))
@settings(max_examples=700, **COMMON)
def test_mutated_stores(index, changes, kept):
    """Stores with pieces cut out and put in, and cut off at some place."""
    name, content = STORES[index]
    content = content[: int(len(content) * kept)]
    for where, length, snippet in changes:
        at = int(where * len(content))
        content = content[:at] + snippet + content[at + length :]
    read(content, name)


@given(st.integers(0, len(STORES) - 1), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
@settings(max_examples=700, **COMMON)
def test_flipped_bytes_in_stores(index, changes):
    """Damage that moves nothing."""
    name, content = STORES[index]
    damaged = bytearray(content)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    read(bytes(damaged), name)


@pytest.mark.parametrize("index", range(len(STORES)))
def test_unmutated_stores(index):
    """They are whole before."""
    name, content = STORES[index]
    read(content, name)
    frame = ingest_runs(Path(FOLDER.name) / name)
    assert frame.attrs["skipped_lines"] == 0
    assert frame["step"].tolist() == [row["step"] for row in captures()[1].rows]


@given(st.binary(max_size=100), st.sampled_from(["mlflow", "tensorboard", "trackio", "wandb"]), st.sampled_from([b"", b"SQLite format 3\0", b":W&B"]))
@settings(max_examples=200, **COMMON)
def test_anything_by_the_hint_of_a_tracker(content, hint, magic):
    read(magic + content, "x.jsonl", hint)
