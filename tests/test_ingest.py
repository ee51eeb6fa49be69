"""Logs of every format become one DataFrame, whatever their files have been through."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from captures import capture, captures

from rldk.adapters import formats
from rldk.adapters.trl import TRLAdapter
from rldk.emit import EventWriter
from rldk.event import Event, encode, timestamp
from rldk.exceptions import ConfigurationError, EmptyLogError, IngestError, NoLogsError, UnknownSchemaError
from rldk.ingest import events_of, find_logs, ingest_runs, open_log
from rldk.rebuild import rebuild_run
from rldk.timeline import resume_note
from rldk.vocabulary import Vocabulary, families

FIRST = ["step", "wall_time", "run_id", "phase"]


# One run in each format: rows of raw metrics with their step, as transformers keeps them.


def translated(run):
    """What the run's rows are in canonical terms, by another road than a file."""
    words = Vocabulary(families()[run.family], run.trl)
    return [(row["step"], *words.translate(logs)[:2]) for row, logs in zip(run.rows, run.logs, strict=True)]


def as_events(run, folder):
    path = folder / "run_events.jsonl"
    events = [
        Event(step, 10.0 * step, metrics, phase, {"seed": 1}, {}, {"run_id": "run"}, (), timestamp(step))
        for step, phase, metrics in translated(run)
    ]
    path.write_bytes(b"".join(map(encode, events)))
    return path


def as_named_values(run, folder):
    path = folder / "run.jsonl"
    with path.open("w") as file:
        for step, _, metrics in translated(run):
            for name, value in metrics.items():
                file.write(json.dumps({"name": name, "value": value, "step": step}) + "\n")
    return path


def as_flat_lines(run, folder):
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in run.rows))
    return path


def as_trainer_state(run, folder):
    path = folder / "out" / "checkpoint-6" / "trainer_state.json"
    path.parent.mkdir(parents=True)
    state = {"best_metric": None, "global_step": 6, "log_history": run.rows, "stateful_callbacks": {"x": {}}}
    path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    return path


WRITERS = {"rldk": as_events, "named_values": as_named_values, "trl": as_flat_lines, "trainer_state": as_trainer_state}


def same(frame, rows):
    """Whether each row has exactly the values of its metrics, and NaN in every other column."""
    assert len(frame) == len(rows)
    for (_, found), (step, metrics) in zip(frame.iterrows(), rows, strict=True):
        assert found["step"] == step
        for name in frame.columns[4:]:
            value = metrics.get(name)
            assert found[name] == value or (math.isnan(found[name]) and (value is None or math.isnan(value))), name


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def event(at, kind="train", run="r", notes=(), **metrics):
    return Event(at, float(at), metrics, kind, {}, {}, {"run_id": run}, tuple(notes))


def stream(path, *events):
    path.write_bytes(b"".join(map(encode, events)))
    return path


@pytest.mark.parametrize("run", captures(), ids=str)
@pytest.mark.parametrize("name", WRITERS)
def test_formats(name, run, tmp_path):
    """Each format of each trainer's log is recognised, and gives every value under its canonical name."""
    path = WRITERS[name](run, tmp_path)
    assert open_log(path).name == name
    frame = ingest_runs(path)
    assert list(frame.columns[:4]) == FIRST
    assert frame["step"].dtype == np.int64
    assert frame.attrs["skipped_lines"] == 0
    assert {str(frame[column].dtype) for column in frame.columns[4:]} == {"float64"}
    rows = translated(run)
    assert set(frame.columns[4:]) == {metric for _, _, metrics in rows for metric in metrics}
    if name == "named_values":  # has no phases: what one step logged stands together, a name that comes again apart
        for step, values in frame.groupby("step"):
            logged = {metric: value for at, _, metrics in rows if at == step for metric, value in metrics.items()}
            assert values.iloc[:, 4:].dropna(axis=1, how="all").ffill().iloc[-1].to_dict() == logged
        return
    same(frame, [(step, metrics) for step, _, metrics in rows])
    assert list(frame["phase"]) == [phase for _, phase, _ in rows]
    if name == "rldk":
        assert list(frame["wall_time"]) == [10.0 * step for step, _, _ in rows]
        assert set(frame["run_id"]) == {"run"}


def test_every_format_is_tested():
    """A new format without a test here, below, or in test_importers.py, is noticed."""
    assert set(formats()) == {*WRITERS, "flexible", "mlflow", "tensorboard", "trackio", "wandb"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (
            "1.16.0_grpo",
            ["kl_mean", "reward_mean", "loss", "clip_frac", "grad_norm", "lr", "entropy_mean", "truncated_frac"],
        ),
        ("0.23.1_ppo", ["kl_mean", "reward_mean", "clip_frac", "policy_loss", "value_loss", "entropy_mean"]),
        ("1.16.0_sft", ["loss", "grad_norm", "lr", "token_accuracy"]),
    ],
)
def test_columns_just_work(name, columns, tmp_path):
    """The columns that users ask for are there, with a value at every training step."""
    frame = ingest_runs(as_trainer_state(capture(name), tmp_path))
    assert frame.loc[frame["phase"] == "train", columns].notna().all(axis=None)


def test_evaluation_rows_leave_loss_alone(tmp_path):
    """Evaluation and summary rows put nothing into `loss`, and share no row with training."""
    frame = ingest_runs(as_flat_lines(capture("1.16.0_dpo"), tmp_path))
    assert frame["loss"].notna().equals(frame["phase"] == "train")
    assert frame["eval_loss"].notna().equals(frame["phase"] == "eval")
    assert frame["train_loss"].notna().equals(frame["phase"] == "summary")


class TestFlexible:
    def test_any_names(self, tmp_path):
        """Nested objects are flattened, synonyms and names of the step are understood, text is left out."""
        rows = [
            {"iteration": i, "time": i / 2, "train": {"kl": i * 0.1, "note": "x"}, "kl": i, "mine": [1]}
            for i in range(3)
        ]
        frame = ingest_runs(write(tmp_path / "x.jsonl", *rows))
        assert list(frame.columns) == [*FIRST, "kl_mean", "train/kl"]
        assert list(frame["step"]) == [0, 1, 2]
        assert list(frame["wall_time"]) == [0.0, 0.5, 1.0]
        assert list(frame["kl_mean"]) == [0, 1, 2]

    def test_what_a_person_types_in_flat_lines(self, tmp_path):
        """Where no trainer is recognised, `kl` and `reward` are the canonical ones; an accuracy may be of anything."""
        rows = [{"step": i, "loss": 1.0, "reward": 0.5, "kl": 0.1, "accuracy": 0.9, "learning_rate": 1e-5} for i in range(3)]
        frame = ingest_runs(write(tmp_path / "x.jsonl", *rows))
        assert {"loss", "reward_mean", "kl_mean", "accuracy", "lr"} <= set(frame.columns)

    def test_synonyms_that_meet(self, tmp_path):
        """Columns that would get one name keep their own instead."""
        frame = ingest_runs(write(tmp_path / "x.jsonl", {"step": 1, "clipfrac": 0.1, "clip_fraction": 0.2}))
        assert frame.iloc[0][["clip_frac", "clip_fraction"]].tolist() == [0.1, 0.2]

    @pytest.mark.parametrize("field_map", [
        {"it": "step", "policy/kld": "kl_mean", "score": "reward"},
        {"step": "it", "kl_mean": "policy/kld", "reward": "score"},
        {"it": "step", "kl": "policy/kld", "score": "reward_mean"},
    ], ids=str)
    def test_field_map(self, field_map, tmp_path):
        """A field map may be written either way round, with synonyms, and reaches into nested objects."""
        path = write(tmp_path / "x.jsonl", *({"it": i, "policy": {"kld": i * 0.5}, "score": -i} for i in (1, 2)))
        frame = ingest_runs(path, field_map=field_map)
        assert list(frame["step"]) == [1, 2]
        assert list(frame["kl_mean"]) == [0.5, 1.0]
        assert list(frame["reward_mean"]) == [-1, -2]

    @pytest.mark.parametrize("name", WRITERS)
    def test_field_map_in_every_format(self, name, tmp_path):
        """A field map renames custom metrics in the formats that rldk knows, too, and touches no other."""
        run = capture("1.16.0_sft")
        path = WRITERS[name](run._replace(rows=[{**row, "my_kl": row["step"] / 8} for row in run.rows]), tmp_path)
        plain = ingest_runs(path)
        for field_map in ({"my_kl": "kl_mean"}, {"kl": "my_kl"}):
            mapped = ingest_runs(path, field_map=field_map)
            assert list(mapped["kl_mean"]) == [step / 8 for step in mapped["step"]]
            others = [column for column in plain.columns if column != "my_kl"]
            pd.testing.assert_frame_equal(mapped[others], plain[others])
            assert "my_kl" not in mapped.columns

    def test_hint(self, tmp_path):
        """A hint forces a format; one that does not exist is refused with the nearest known one."""
        path = as_flat_lines(capture("1.16.0_sft"), tmp_path)
        assert ingest_runs(path, adapter_hint="flexible")["loss"].notna().sum() == 6
        with pytest.raises(ConfigurationError, match="'trainer_state'"):
            ingest_runs(path, adapter_hint="trainer_stat")
        with pytest.raises(UnknownSchemaError):
            ingest_runs(path, adapter_hint="rldk")


class TestNamedValues:
    def test_steps_and_runs(self, tmp_path):
        """Lines of one step and run are one row; a name that comes again begins another; times are read."""
        path = write(
            tmp_path / "x.jsonl",
            {"name": "kl", "value": 0.1, "step": 1, "wall_time": 5}, {"name": "reward", "value": 1, "step": 1},
            {"name": "kl", "value": 0.2, "step": 1}, {"name": "loss", "value": None, "step": 2, "run_id": "b"},
            {"name": "loss", "value": 3, "step": 2.0, "run_id": "c"},
        )
        frame = ingest_runs(path)
        assert list(zip(frame["run_id"], frame["step"], strict=True)) == [("x", 1), ("x", 1), ("b", 2), ("c", 2)]
        assert frame["kl_mean"].tolist()[:2] == [0.1, 0.2]
        assert frame["reward_mean"].tolist()[0] == 1
        assert frame["wall_time"].tolist()[0] == 5.0
        assert frame["loss"].tolist()[3] == 3

    def test_damage(self, tmp_path):
        """Lines of the older stream without a name, a whole step or a number are counted."""
        path = write(
            tmp_path / "x.jsonl",
            {"name": "a", "value": 1, "step": 1},
            {"name": 5, "value": 1, "step": 1},
            {"name": "a", "value": "x", "step": 1},
            {"name": "a", "value": 1, "step": 1.5},
            {"name": "a", "value": True, "step": 1},
            {"name": "a", "step": 2, "value": 1},
        )
        with pytest.warns(UserWarning, match="line 2, 3, 4, 5"):
            frame = ingest_runs(path)
        assert list(frame["step"]) == [1, 2]


class TestTrainerState:
    def test_bare_nan(self, tmp_path):
        """A state with Python's bare NaN, as transformers writes it with its filter off, is read."""
        path = tmp_path / "trainer_state.json"
        rows = [{"step": 1, "loss": math.nan, "grad_norm": math.inf}, {"step": 2, "loss": 1.0, "grad_norm": -math.inf}]
        path.write_text(json.dumps({"log_history": rows}, indent=2))
        assert "NaN" in path.read_text()
        frame = ingest_runs(path)
        assert np.isnan(frame["loss"][0])
        assert frame["grad_norm"].tolist() == [math.inf, -math.inf]
        assert frame.attrs["skipped_lines"] == 0

    @pytest.mark.parametrize(
        "layout", ["indented", "one line", "a row a line", "an array", "an array, a row a line", "bom", "crlf"]
    )
    def test_layouts(self, layout, tmp_path):
        """However a document is laid out over lines, all of its rows are read."""
        rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 6)]
        text = {
            "indented": json.dumps({"log_history": rows}, indent=2),
            "one line": json.dumps({"log_history": rows}),
            "a row a line": '{"log_history": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n",
            "an array": json.dumps(rows),
            "an array, a row a line": "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
            "bom": "\ufeff" + json.dumps({"log_history": rows}, indent=2),
            "crlf": json.dumps({"log_history": rows}, indent=2).replace("\n", "\r\n"),
        }[layout]
        path = tmp_path / "trainer_state.json"
        path.write_bytes(text.encode())
        assert ingest_runs(path)["loss"].tolist() == [1.0 / step for step in range(1, 6)]

    def test_lines_after_a_log_line(self, tmp_path):
        """Lines of JSON below a line that begins with a bracket are still lines of JSON."""
        path = tmp_path / "train.json"
        path.write_text('[INFO] begins\n{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        with pytest.warns(UserWarning, match="line 1"):
            assert ingest_runs(path)["loss"].tolist() == [2.0, 1.0]

    def test_lines_in_a_json_file(self, tmp_path):
        """Lines of JSON in a file called .json are lines of JSON."""
        assert len(ingest_runs(write(tmp_path / "log.json", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}))) == 2

    def test_highest_checkpoint(self, tmp_path):
        """Of a trainer's folder the state of the highest checkpoint is read, by number and not by name."""
        for number in (9, 10, 100):
            folder = tmp_path / f"checkpoint-{number}"
            folder.mkdir()
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": number, "loss": 1.0}]}))
        frame = ingest_runs(tmp_path)
        assert list(frame["step"]) == [100]
        assert list(frame["run_id"]) == [tmp_path.name]

    def test_rows_that_are_none(self, tmp_path):
        """Rows that are no objects, or have no step, are counted by their number."""
        path = tmp_path / "trainer_state.json"
        path.write_text(
            json.dumps({"log_history": [{"step": 1, "loss": 1.0}, 5, {"loss": 1.0}, None, {"step": 2, "loss": 2.0}]})
        )
        with pytest.warns(UserWarning, match="3 malformed"):
            frame = ingest_runs(path)
        assert frame.attrs["skipped_lines"] == 3
        assert list(frame["step"]) == [1, 2]


class TestDamage:
    def test_malformed_lines(self, tmp_path):
        """Malformed lines are skipped, counted, and reported once, with the numbers of the first."""
        path = tmp_path / "r_events.jsonl"
        lines = [encode(event(step, loss=1.0)) for step in range(20)]
        for index in (1, 4, 5, 7, 11, 13):
            lines[index] = b'{"step": 1, "metrics"\n'
        path.write_bytes(b"".join(lines))
        with pytest.warns(UserWarning, match=r"6 malformed \(line 2, 5, 6, 8, 12, \.\.\.\)") as caught:
            frame = ingest_runs(path)
        assert len(caught) == 1
        assert Path(caught[0].filename) == Path(__file__)
        assert frame.attrs["skipped_lines"] == 6
        assert len(frame) == 14

    @pytest.mark.parametrize(
        "line",
        [
            b"\0\0\0\0",
            b"\xff\xfe\x00garbage",
            b"[1, 2]",
            b"5",
            b'"text"',
            b"null",
            b'{"a": 1}',
            b'{"step": "x", "metrics": {}}',
            b"{" * 5000,
            b'{"step": 1' + b"0" * 5000 + b', "metrics": {"a": NaN}}',
        ],
        ids=lambda line: repr(line[:12]),
    )
    def test_lines_that_are_no_events(self, line, tmp_path):
        """Garbage, other JSON, and objects that are no events count as malformed; the lines around them are read."""
        path = tmp_path / "r_events.jsonl"
        path.write_bytes(encode(event(1, loss=1.0)) + line + b"\n" + encode(event(2, loss=2.0)))
        with pytest.warns(UserWarning, match=r"1 malformed \(line 2\)"):
            frame = ingest_runs(path)
        assert list(frame["loss"]) == [1.0, 2.0]

    @pytest.mark.parametrize("cut", [1, 2, 30, 60])
    def test_torn_last_line(self, cut, tmp_path):
        """A last line that a crash cut off is no error, and not malformed; one that lacks only its newline counts."""
        path = tmp_path / "r_events.jsonl"
        path.write_bytes((encode(event(1, loss=1.0)) + encode(event(2, loss=2.0)))[:-cut])
        frame = ingest_runs(path)
        assert list(frame["step"]) == ([1, 2] if cut == 1 else [1])
        assert frame.attrs["skipped_lines"] == 0

    def test_blank_lines(self, tmp_path):
        """Blank lines, as healing leaves them, are nothing."""
        path = tmp_path / "r_events.jsonl"
        path.write_bytes(b"\n  \n" + encode(event(1, loss=1.0)) + b" " * 50 + b"\n\r\n")
        assert ingest_runs(path).attrs["skipped_lines"] == 0

    @pytest.mark.parametrize("mangle", [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n").rstrip(),
    ], ids=["bom", "crlf", "both"])
    @pytest.mark.parametrize("name", ["rldk", "named_values", "trl"])
    def test_editors(self, name, mangle, tmp_path):
        """A byte order mark and carriage returns, as editors leave them, change nothing."""
        path = WRITERS[name](capture("1.16.0_grpo"), tmp_path)
        before = ingest_runs(path)
        path.write_bytes(mangle(path.read_bytes()))
        pd.testing.assert_frame_equal(ingest_runs(path), before)

    def test_wild_numbers(self, tmp_path):
        """Numbers that fit no column become the nearest that do; a step that fits none makes a line malformed."""
        path = tmp_path / "r_events.jsonl"
        huge = "1" * 400
        path.write_text(
            f'{{"step": 1, "wall_time": {huge}, "metrics": {{"a": {huge}, "b": NaN, "c": true, "d": "x"}}}}\n'
            f'{{"step": {2**63}, "metrics": {{"a": 1}}}}\n'
            f'{{"step": 3, "metrics": {{"a": {2**64 - 1}, "b": {-(2**70)}}}}}\n'
        )
        with pytest.warns(UserWarning, match="line 2"):
            frame = ingest_runs(path)
        assert list(frame.columns) == [*FIRST, "a", "b", "c"]
        assert frame["a"].tolist() == [math.inf, 2.0**64]
        assert frame["b"].tolist()[1] == -(2.0**70)
        assert frame["c"].tolist()[0] == 1.0

    def test_names_that_columns_have(self, tmp_path):
        """Metrics called like the frame's own columns stand beside them."""
        path = stream(
            tmp_path / "r_events.jsonl", event(1, **{"step": 5.0, "metrics/step": 6.0, "phase": 7.0, "run_id": 8.0})
        )
        row = ingest_runs(path).iloc[0]
        assert (row["step"], row["phase"], row["run_id"]) == (1, "train", "r")
        assert sorted(row.iloc[4:]) == [5.0, 6.0, 7.0, 8.0]

    def test_lone_surrogates(self, tmp_path):
        """Names that UTF-8 cannot hold do not reach the frame, which could not hold them either."""
        path = tmp_path / "x.jsonl"
        path.write_text('{"step": 1, "loss": NaN, "\\ud800": 1.0, "run_id": "\\udfff"}\n')
        frame = ingest_runs(path)
        assert list(frame.columns[4:]) == ["loss", "?"]
        assert list(frame["run_id"]) == ["?"]


class TestRows:
    def test_late_keys(self, tmp_path):
        """A metric that appears late, or for one row, has a complete column: NaN where it was not logged."""
        rows = [event(step, **({"a": 1.0 * step} if step % 2 else {"b": -1.0 * step})) for step in range(5000)]
        rows.append(event(5000, late=7.0))
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *rows))
        assert len(frame) == 5001
        assert frame["late"].notna().tolist() == [False] * 5000 + [True]
        assert frame["a"].dropna().tolist() == list(range(1, 5000, 2))
        assert frame["b"].dropna().tolist() == [-step for step in range(0, 5000, 2)]

    def test_many_layouts(self, tmp_path):
        """Rows with ever-changing sets of keys are read like any others."""
        rows = [
            event(step, always=float(step), **{f"m{step % 97}": step + 0.5, f"n{step % 13}": step - 0.5})
            for step in range(3000)
        ]
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *rows))
        assert frame["always"].tolist() == list(range(3000))
        for step in (0, 500, 2999):
            assert frame[f"m{step % 97}"][step] == step + 0.5
            assert frame[f"n{step % 13}"][step] == step - 0.5
        assert frame.iloc[:, 5:].notna().sum(axis=1).eq(2).all()

    def test_none_and_nan(self, tmp_path):
        """NaN, infinities and None are what they were; None reads as NaN."""
        frame = ingest_runs(
            stream(
                tmp_path / "r_events.jsonl",
                event(1, a=math.nan, b=math.inf, c=None, d=1),
                event(2, a=1, b=-math.inf, c=2, d=3),
            )
        )
        assert frame["b"].tolist() == [math.inf, -math.inf]
        assert frame["a"].isna().tolist() == [True, False]
        assert frame["c"].isna().tolist() == [True, False]

    def test_step_order(self, tmp_path):
        """Rows are in step order within a run; what was logged at one step keeps its order."""
        path = stream(
            tmp_path / "r_events.jsonl",
            event(1, a=1.0),
            event(3, a=3.0),
            event(3, "eval", eval_a=3.5),
            event(2, "checkpoint", c=2.0),
            event(4, a=4.0),
        )
        frame = ingest_runs(path)
        assert list(frame["step"]) == [1, 2, 3, 3, 4]
        assert list(frame["phase"]) == ["train", "checkpoint", "train", "eval", "train"]

    def test_notes_alone_make_no_row(self, tmp_path):
        """Events without metrics, such as marks, make no row."""
        assert len(ingest_runs(stream(tmp_path / "r_events.jsonl", event(0, notes=["hello"]), event(1, a=1.0)))) == 1


class TestResume:
    before = [event(step, loss=float(step)) for step in range(1, 9)]
    after = [event(step, loss=100.0 + step) for step in (6, 7)]

    def test_without_a_mark(self, tmp_path):
        """Steps that were recorded again keep the newest recording."""
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *self.before, *self.after))
        assert list(frame["step"]) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert list(frame["loss"]) == [1, 2, 3, 4, 5, 106, 107, 8]

    def test_with_a_mark(self, tmp_path):
        """What was recorded beyond the checkpoint of a marked resume is dropped, even before it is recorded again."""
        mark = event(5, notes=[resume_note(5)])
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *self.before, mark, *self.after))
        assert list(frame["loss"]) == [1, 2, 3, 4, 5, 106, 107]
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *self.before, mark))
        assert list(frame["step"]) == [1, 2, 3, 4, 5]

    def test_twice(self, tmp_path):
        """Each resume drops what came before it, and a later one to an earlier step drops more."""
        marks = [event(6, notes=[resume_note(6)]), event(2, notes=[resume_note(2)])]
        again = [event(7, loss=207.0), event(8, loss=208.0)]
        last = [event(3, loss=303.0)]
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *self.before, marks[0], *again, marks[1], *last))
        assert list(frame["step"]) == [1, 2, 3]
        assert list(frame["loss"]) == [1, 2, 303]

    def test_other_phases(self, tmp_path):
        """Evaluations of dropped steps go with them; those of kept steps stay, and the new ones have their place."""
        mark = event(5, notes=[resume_note(5)])
        evals = [event(4, "eval", eval_loss=4.0), event(8, "eval", eval_loss=8.0)]
        frame = ingest_runs(
            stream(
                tmp_path / "r_events.jsonl",
                *self.before[:4],
                evals[0],
                *self.before[4:],
                evals[1],
                mark,
                *self.after,
                event(7, "eval", eval_loss=107.0),
            )
        )
        assert frame.loc[frame["phase"] == "eval", "step"].tolist() == [4, 7]
        assert frame["eval_loss"].dropna().tolist() == [4.0, 107.0]

    def test_only_its_own_run(self, tmp_path):
        """A resume of one run leaves another in the same file alone."""
        other = [event(step, run="other", loss=-float(step)) for step in range(1, 9)]
        mixed = [item for pair in zip(self.before, other, strict=True) for item in pair]
        frame = ingest_runs(stream(tmp_path / "r_events.jsonl", *mixed, event(5, notes=[resume_note(5)]), *self.after))
        assert frame.groupby("run_id", observed=True)["loss"].apply(list).to_dict() == {
            "r": [1, 2, 3, 4, 5, 106, 107], "other": [-1, -2, -3, -4, -5, -6, -7, -8],
        }

    def test_flat_lines(self, tmp_path):
        """A trainer's own lines that a resumed run appended to keep the newest, too."""
        rows = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)] + [
            {"step": step, "loss": 10.0 * step} for step in (3, 4, 5)
        ]
        assert ingest_runs(write(tmp_path / "x.jsonl", *rows))["loss"].tolist() == [1, 2, 30, 40, 50]


class TestSources:
    def test_runs_in_a_folder(self, tmp_path):
        """All event streams of a folder are read, each its own run, and other files are not."""
        for run in ("a", "b"):
            stream(tmp_path / f"{run}_events.jsonl", event(1, run=run, loss=1.0), event(2, run=run, loss=2.0))
        write(tmp_path / "other.jsonl", {"step": 1, "loss": 9.0})
        (tmp_path / "a_alerts.json").write_text("[]")
        frame = ingest_runs(tmp_path)
        assert list(zip(frame["run_id"], frame["step"], strict=True)) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]

    def test_one_level_below(self, tmp_path):
        """Streams one level below are found; so are other lines of JSON, and directories called like files are not."""
        (tmp_path / "x_events.jsonl").mkdir()
        (tmp_path / "logs").mkdir()
        stream(tmp_path / "logs" / "a_events.jsonl", event(1, loss=1.0))
        assert find_logs(tmp_path) == [tmp_path / "logs" / "a_events.jsonl"]

    def test_glob(self, tmp_path):
        """A pattern may match files, folders, and folders without logs."""
        for run in ("a1", "a2", "b1"):
            (tmp_path / run).mkdir()
        stream(tmp_path / "a1" / "x_events.jsonl", event(1, run="a1", loss=1.0))
        stream(tmp_path / "a3_events.jsonl", event(1, run="a3", loss=1.0))
        frame = ingest_runs(str(tmp_path / "a*"))
        assert set(frame["run_id"]) == {"a1", "a3"}
        with pytest.raises(NoLogsError, match="matches"):
            ingest_runs(str(tmp_path / "b*"))

    def test_brackets_in_a_name(self, tmp_path):
        """A file whose name looks like a pattern is read as the file that it is."""
        path = stream(tmp_path / "run[1]_events.jsonl", event(1, loss=1.0))
        assert len(ingest_runs(path)) == 1

    @pytest.mark.parametrize("content", ["", "  \n", '{"step": 1, "met'])
    def test_an_empty_run_beside_others(self, content, tmp_path):
        """A run that has only begun, or died at once, is named and does not hide the others of its folder."""
        stream(tmp_path / "a_events.jsonl", event(1, loss=1.0))
        (tmp_path / "b_events.jsonl").write_text(content)
        with pytest.warns(UserWarning, match=r"skipped files.*b_events\.jsonl"):
            frame = ingest_runs(tmp_path)
        assert len(frame) == 1
        assert [found.step for found in events_of(tmp_path)] == [1]

    def test_names_of_runs(self, tmp_path):
        """A run whose events do not say is called by its file."""
        with EventWriter(tmp_path / "mine_events.jsonl") as writer:
            writer.log(1, {"loss": 1.0})
        assert list(ingest_runs(tmp_path)["run_id"]) == ["mine"]

    def test_text_and_path(self, tmp_path):
        """A source may be a text or a path."""
        path = stream(tmp_path / "a_events.jsonl", event(1, loss=1.0))
        pd.testing.assert_frame_equal(ingest_runs(str(path)), ingest_runs(path))


class TestErrors:
    def test_no_file(self, tmp_path):
        """A path that is not there is an error that names it and where one looked."""
        with pytest.raises(NoLogsError, match=r"no such file.*nothing\.jsonl") as caught:
            ingest_runs(tmp_path / "nothing.jsonl")
        assert isinstance(caught.value, FileNotFoundError)
        assert os.getcwd() in str(caught.value)

    @pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
    def test_no_path(self, path):
        """Text that can be no path is the same error."""
        with pytest.raises(NoLogsError):
            find_logs(path or "./none")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"garbage\n",
            b"\0" * 100,
            b"[]\n",
            b"5\n",
            b'{"torn": ',
            b'{"log_history": []}',
        ],
    )
    @pytest.mark.parametrize("name", ["x.jsonl", "trainer_state.json"])
    def test_empty(self, name, content, tmp_path):
        """A file without a single record is empty, and the error names it."""
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EmptyLogError, match=name):
            ingest_runs(tmp_path / name)

    def test_folder_without_logs(self, tmp_path):
        """A folder without logs is an error that says what was looked for."""
        (tmp_path / "notes.txt").touch()
        with pytest.raises(NoLogsError, match=r"_events\.jsonl.*trainer_state\.json"):
            ingest_runs(tmp_path)

    def test_unknown_schema(self, tmp_path):
        """Records that nobody understands are an error that shows their keys and suggests a field map that works."""
        path = write(tmp_path / "x.jsonl", *({"global_iter_no": i, "my/kl_means": 0.1 * i, "who": "x"} for i in (1, 2)))
        with pytest.raises(UnknownSchemaError, match="global_iter_no") as caught:
            ingest_runs(path)
        suggested = str(caught.value).partition("field_map=")[2]
        assert suggested == "{'global_iter_no': 'step', 'my/kl_means': 'kl_mean'}"
        frame = ingest_runs(path, field_map={"global_iter_no": "step", "my/kl_means": "kl_mean"})
        assert list(frame["kl_mean"]) == [0.1, 0.2]

    def test_unknown_schema_in_a_state(self, tmp_path):
        """A document whose rows have no step is an error that shows the rows' keys, however it is laid out."""
        path = tmp_path / "trainer_state.json"
        path.write_text(json.dumps({"log_history": [{"my_step": 1, "loss": 1.0}]}, indent=2))
        with pytest.raises(UnknownSchemaError, match="my_step, loss"):
            ingest_runs(path)
        assert ingest_runs(path, field_map={"my_step": "step"})["loss"].tolist() == [1.0]

    def test_nothing_to_suggest(self, tmp_path):
        """Without any number there is still a field map to show."""
        with pytest.raises(UnknownSchemaError, match="field_map"):
            ingest_runs(write(tmp_path / "x.jsonl", {"a": "b"}))

    def test_hostile_keys(self, tmp_path):
        """Keys of a file reach a terminal only with their control characters escaped."""
        with pytest.raises(UnknownSchemaError) as caught:
            ingest_runs(write(tmp_path / "x.jsonl", {"\x1b[31m": 1, "\r\n": 2, "\u202e": 3}))
        assert str(caught.value).isprintable()

    def test_ten_thousand_keys(self, tmp_path):
        """A record of very many keys is refused as quickly as any other."""
        with pytest.raises(UnknownSchemaError):
            ingest_runs(write(tmp_path / "x.jsonl", {f"key_{i}_of_many": i for i in range(10_000)}))

    def test_other_json(self, tmp_path):
        """A JSON document that is no log is not taken for one."""
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model_type": "llama", "rope": {"theta": 1e4}}, indent=2))
        with pytest.raises(EmptyLogError, match="log_history"):
            ingest_runs(path)
        assert not TRLAdapter(path).can_handle()

    @pytest.mark.parametrize("error", [NoLogsError, EmptyLogError, UnknownSchemaError])
    def test_tree(self, error):
        """All errors of reading are of one family, and of a built-in one."""
        assert issubclass(error, IngestError)
        assert issubclass(error, (FileNotFoundError, ValueError))


class TestRebuild:
    def test_a_hostile_run_id(self, tmp_path):
        """A run id out of a stream from elsewhere names no file outside the stream's folder."""
        folder = tmp_path / "inner"
        folder.mkdir()
        stream(folder / "x_events.jsonl", event(1, run="../../evil", loss=1.0))
        report = rebuild_run(folder)
        assert report["run_id"] == "../../evil"
        assert os.listdir(tmp_path) == ["inner"]
        assert (folder / "x_final_report.json").exists()

    def test_a_damaged_stream(self, tmp_path):
        """Text for numbers, NaN for counts and garbage between cost what they stand for; no detector fails on them."""
        path = tmp_path / "r_events.jsonl"
        damaged = {
            "step": 2,
            "wall_time": 1.0,
            "metrics": {"loss": "high", "kl_mean": 0.5},
            "data_slice": {"tokens_in": math.nan},
        }
        path.write_bytes(
            encode(event(1, loss=1.0)) + b"garbage\n" + json.dumps({**damaged, "model_info": {"run_id": "r"}}).encode()
        )
        report = rebuild_run(path)
        assert report["rldk_failures"] == {}
        assert report["totals"]["steps"] == 2
        assert report["metrics"]["loss"]["count"] == report["metrics"]["kl_mean"]["count"] == 1


class TestTRLAdapter:
    @pytest.mark.parametrize("name", WRITERS)
    def test_known_formats(self, name, tmp_path):
        """Each known format can be handled, and loads as `ingest_runs` does."""
        path = WRITERS[name](capture("1.16.0_grpo"), tmp_path)
        adapter = TRLAdapter(path)
        assert adapter.can_handle()
        pd.testing.assert_frame_equal(adapter.load(), ingest_runs(path))

    def test_others(self, tmp_path):
        """What needs guessing, or is not there, is not claimed."""
        assert not TRLAdapter(tmp_path / "nothing").can_handle()
        assert not TRLAdapter(tmp_path).can_handle()
        assert not TRLAdapter(write(tmp_path / "x.jsonl", {"iteration": 1, "my_number": 2})).can_handle()
        with pytest.raises(NoLogsError):
            TRLAdapter(tmp_path / "nothing").load()

    @pytest.mark.parametrize("run", captures(), ids=str)
    def test_extract(self, run):
        """Every metric of every raw record is found by its canonical name."""
        for row, (_, _, metrics) in zip(run.rows, translated(run), strict=True):
            for name, value in metrics.items():
                assert TRLAdapter("logs")._extract_trl_metric(row, name) == value

    @pytest.mark.parametrize(
        ("record", "name", "value"),
        [
            ({"objective/kl": 3.5}, "kl_mean", 3.5),
            ({"kl": 0.5}, "kl_mean", 0.5),
            ({"kl": 0.5}, "kl", 0.5),
            ({"policy/clipfrac_avg": 0.25}, "clip_fraction", 0.25),
            ({"learning_rate": 1e-3}, "lr", 1e-3),
            ({"step": 1, "metrics": {"kl_mean": 2}}, "kl", 2.0),
            ({"eval_loss": 2.0}, "eval_loss", 2.0),
            ({"eval_loss": 2.0}, "loss", None),
            ({"kl": None}, "kl_mean", None),
            ({"kl": "high"}, "kl_mean", None),
            ({"my_metric": 1}, "my_metric", 1.0),
            ({}, "kl_mean", None),
        ],
        ids=str,
    )
    def test_extract_from_little(self, record, name, value):
        """Records with too few keys to tell their trainer, events, and records without the metric are answered."""
        assert TRLAdapter("logs")._extract_trl_metric(record, name) == value
