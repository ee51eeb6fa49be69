"""metrics.csv: what was logged, in a table that pandas and a spreadsheet read."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from captures import captures

from rldk.event import Event
from rldk.sinks.metrics_csv import MetricsCsvSink
from rldk.vocabulary import Vocabulary, families

ROOT = Path(__file__).resolve().parents[1]


def event(at, kind="train", metrics=None, **more):
    return Event(at, at / 4, {**(metrics or {}), **more}, kind)


def write(path, *events, resume_at=None):
    sink = MetricsCsvSink(path, resume_at)
    for item in events:
        sink.write(item)
    sink.close()
    assert sink.lost == 0
    return path


def cells(path):
    """The rows as texts; each must be as wide as the header."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in rows] if rows else []


def expected(events):
    """One row a step, in the order of the steps: the last value of each metric that was logged at it."""
    rows: dict[int, dict] = {}
    for item in events:
        rows.setdefault(item.step, {"step": item.step, "wall_time": item.wall_time}).update(item.metrics)
    return pd.DataFrame(list(rows.values())).astype({"step": "int64"})


def same(path, events):
    """Compares what pandas reads, to its own precision (pandas 2 errs in the last digit), and the cells exactly."""
    found, wanted = pd.read_csv(path), expected(events)
    assert list(found.columns) == list(wanted.columns)
    pd.testing.assert_frame_equal(found, wanted.astype(found.dtypes.to_dict()), rtol=1e-14)
    for row, values in zip(cells(path), wanted.to_dict("records"), strict=True):
        for name, value in values.items():
            assert float(row[name]) == value if row[name] not in ("", "nan") else math.isnan(value)


@pytest.mark.parametrize("run", captures(), ids=str)
def test_captures(run, tmp_path):
    """What real trainers logged is read back by pandas, value for value, training and evaluation in one row."""
    words = Vocabulary(families()[run.family], run.trl)
    events = [
        Event(row["step"], 0.5 * row["step"], metrics, phase)
        for row, (phase, metrics, _) in zip(run.rows, map(words.translate, run.logs), strict=True)
    ]
    path = write(tmp_path / "m.csv", *events)
    same(path, events)
    assert pd.read_csv(path)["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 320, 321, 1000])
def test_any_length(count, tmp_path):
    """However many rows there are, all of them are there once the run has ended, in order."""
    events = [event(step, a=step / 3, b=float(step)) for step in range(count)]
    same(write(tmp_path / "m.csv", *events), events)


def test_late_keys(tmp_path):
    """A metric that appears late has a complete column: its rows before are empty."""
    events = [event(step, a=1.0 * step, **({"late": -1.0 * step} if step >= 900 else {})) for step in range(1000)]
    path = write(tmp_path / "m.csv", *events)
    same(path, events)
    assert [row["late"] for row in cells(path)] == [""] * 900 + [f"-{step}.0" for step in range(900, 1000)]


def test_a_hundred_columns_over_time(tmp_path):
    """A new metric every few steps, and rows that lack most of them, make one whole table."""
    events = []
    for step in range(1500):
        names = random.Random(step).sample(range(1 + step // 12), min(5, 1 + step // 12))
        events.append(event(step, metrics={f"m{name}": step + name / 128 for name in names}, always=float(step)))
    path = write(tmp_path / "m.csv", *events)
    same(path, events)
    assert len(pd.read_csv(path).columns) > 100


def test_phases_share_a_row(tmp_path):
    """Training, evaluation and checkpoint of one step are one row, a checkpoint's late result included."""
    events = [
        event(3, loss=1.0), event(3, "eval", eval_loss=2.0), event(4, loss=0.5), event(5, loss=0.25),
        event(3, "checkpoint", param_norm=9.0), event(5, "summary", train_loss=0.75),
    ]
    path = write(tmp_path / "m.csv", *events)
    assert [list(row.values()) for row in cells(path)] == [
        ["3", "0.75", "1.0", "2.0", "9.0", ""], ["4", "1.0", "0.5", "", "", ""], ["5", "1.25", "0.25", "", "", "0.75"],
    ]


def test_kinds_of_values(tmp_path):
    """NaN and infinities are words that pandas knows, None and what was not logged are empty, integers are exact."""
    path = write(
        tmp_path / "m.csv",
        event(1, a=math.nan, b=math.inf, c=-math.inf, d=None, e=2**53 + 1, f=-0.0),
        event(2, a=1.5, e=None, f=1e-300),
    )
    assert cells(path) == [
        {
            "step": "1",
            "wall_time": "0.25",
            "a": "nan",
            "b": "inf",
            "c": "-inf",
            "d": "",
            "e": str(2**53 + 1),
            "f": "-0.0",
        },
        {"step": "2", "wall_time": "0.5", "a": "1.5", "b": "", "c": "", "d": "", "e": "", "f": "1e-300"},
    ]
    read = pd.read_csv(path)
    assert read["b"][0] == math.inf
    assert math.isnan(read["a"][0])


def test_none_beside_nan(tmp_path):
    """A row with both None and NaN keeps them apart."""
    row = cells(write(tmp_path / "m.csv", event(1, a=None, b=math.nan, c=1, d=None)))[0]
    assert (row["a"], row["b"], row["c"], row["d"]) == ("", "nan", "1", "")


def test_names_of_the_fixed_columns(tmp_path):
    """Metrics called `step` or `wall_time` have columns of their own and do not overwrite the row's."""
    row = cells(write(tmp_path / "m.csv", event(7, metrics={"step": 99.0, "wall_time": 98.0})))[0]
    assert row == {"step": "7", "wall_time": "1.75", "metrics/step": "99.0", "metrics/wall_time": "98.0"}


HOSTILE = {
    "=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0",
    "+1": "'+1",
    "-1": "'-1",
    "@SUM(A1)": "'@SUM(A1)",
    'quo"te': 'quo"te',
    "com,ma": "com,ma",
    "new\nline": "new\\nline",
    "re\rturn": "re\\rturn",
    "\t=1": "\\t=1",
    "\x1b[31mred": "\\x1b[31mred",
    "\u202eover": "\\u202eover",
    "nul\0": "nul\\x00",
    "\ud800": "?",
    "ünï\U0001f600": "ünï\U0001f600",
    " =x": " =x",
}


def test_hostile_names(tmp_path):
    """Formulas, quotes, newlines and control characters in names neither run nor break the table."""
    path = write(tmp_path / "m.csv", event(1, metrics={name: float(index) for index, name in enumerate(HOSTILE)}))
    row = cells(path)[0]
    assert list(row)[2:] == list(HOSTILE.values())
    assert list(row.values())[2:] == [f"{index}.0" for index in range(len(HOSTILE))]
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_text(encoding="utf-8").replace("\n", "").isprintable()
    assert pd.read_csv(path).shape == (1, 2 + len(HOSTILE))


class TestResume:
    def test_rows_up_to_the_step(self, tmp_path):
        """A resumed run keeps the rows up to its step, drops those beyond, and goes on."""
        first = [event(step, a=1.0 * step, b=2.0) for step in range(1, 11)]
        second = [event(step, a=-1.0 * step, b=2.0) for step in range(6, 9)]
        write(tmp_path / "m.csv", *first)
        write(tmp_path / "m.csv", *second, resume_at=5)
        same(tmp_path / "m.csv", first[:5] + second)

    def test_columns(self, tmp_path):
        """After a resume a metric goes on in its column, wherever it comes, and new ones have theirs, complete."""
        write(tmp_path / "m.csv", *(event(step, a=1.0, b=2.0, c=3.0) for step in (1, 2)))
        write(tmp_path / "m.csv", event(3, c=30.0, new=40.0), event(4, a=10.0), resume_at=2)
        assert [list(row.values())[2:] for row in cells(tmp_path / "m.csv")] == [
            ["1.0", "2.0", "3.0", ""], ["1.0", "2.0", "3.0", ""], ["", "", "30.0", "40.0"], ["10.0", "", "", ""],
        ]

    def test_hostile_columns(self, tmp_path):
        """Names that the header escapes go on in their columns too."""
        metrics = dict.fromkeys([*HOSTILE, "step"], 1.0)
        write(tmp_path / "m.csv", event(1, metrics=metrics))
        header = cells(tmp_path / "m.csv")[0].keys()
        write(tmp_path / "m.csv", event(2, metrics=metrics), resume_at=1)
        rows = cells(tmp_path / "m.csv")
        assert rows[1].keys() == header
        assert [row["step"] for row in rows] == ["1", "2"]
        assert list(rows[0].values())[2:] == list(rows[1].values())[2:]

    @pytest.mark.parametrize("tail", ["3,0.75,", "3", "x,y,z\n", "\0\0\0\n", "9,2.25,1.0\n"])
    def test_a_torn_row(self, tail, tmp_path):
        """What a crash left of a row, and rows of no step, are dropped."""
        write(tmp_path / "m.csv", event(1, a=1.0, b=1.0), event(2, a=2.0, b=2.0))
        with open(tmp_path / "m.csv", "a") as file:
            file.write(tail)
        write(tmp_path / "m.csv", event(3, a=3.0, b=3.0), resume_at=2)
        found = [row["step"] for row in cells(tmp_path / "m.csv")]
        assert found in (["1", "2", "3"], ["3"])  # a file that no CSV reader takes begins anew
        assert found == ["1", "2", "3"] or "\0" in tail

    @pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"step\n1\n", b"\0\n"])
    def test_a_file_of_others(self, content, tmp_path):
        """A file that is none of ours is replaced by a whole one."""
        (tmp_path / "m.csv").write_bytes(content)
        events = [event(3, a=3.0), event(4, a=4.0)]
        same(write(tmp_path / "m.csv", *events, resume_at=2), events)

    def test_no_file(self, tmp_path):
        """Without an earlier file a resumed run begins one."""
        same(write(tmp_path / "m.csv", event(3, a=3.0), resume_at=2), [event(3, a=3.0)])

    def test_a_new_run(self, tmp_path):
        """Without a resume an earlier file is not mixed in."""
        write(tmp_path / "m.csv", event(1, old=1.0))
        same(write(tmp_path / "m.csv", event(1, new=2.0)), [event(1, new=2.0)])


def test_a_deleted_file(tmp_path):
    """If somebody deletes the file in the middle of a run, what follows is a table with a header again."""
    sink = MetricsCsvSink(tmp_path / "m.csv")
    for step in range(400):
        sink.write(event(step, a=1.0))
    (tmp_path / "m.csv").unlink()
    for step in range(400, 1000):
        sink.write(event(step, a=1.0))
    sink.close()
    steps = pd.read_csv(tmp_path / "m.csv")["step"]
    assert steps.tolist() == list(range(int(steps[0]), 1000))


def test_no_files_left_over(tmp_path):
    """Rewriting and resuming leave no temporary files."""
    write(tmp_path / "m.csv", *(event(step, metrics={f"m{step // 300}": 1.0}) for step in range(1500)))
    write(tmp_path / "m.csv", event(2000, z=1.0), resume_at=1400)
    assert os.listdir(tmp_path) == ["m.csv"]


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from rldk.event import Event
from rldk.sinks.metrics_csv import MetricsCsvSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
sink, errors = MetricsCsvSink(Path(sys.argv[1])), 0
for step in range(3000):
    if step == 1500:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    metrics = {"a": step / 3, "b": step / 7}
    if step >= 700:
        metrics["late"] = 1.0
    try:
        sink.write(Event(step, 0.5, metrics))
    except OSError:
        errors += 1
sink.close()
print(json.dumps([sink.lost, errors]))
"""


@pytest.mark.parametrize("room", [0, 100, 8000, 20000, 33333])
def test_full_disk(room, tmp_path):
    """On a full disk rows are lost in whole, and counted; no row is torn, and writing resumes when there is space."""
    path = tmp_path / "m.csv"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(room)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, timeout=60,
    )
    lost, errors = json.loads(done.stdout)
    rows = cells(path)
    steps = [int(row["step"]) for row in rows]
    assert errors > 0
    assert 0 < lost < 2000
    assert len(steps) + lost == 3000
    assert steps == sorted(set(steps))
    assert set(range(2000, 3000)) <= set(steps)
    assert all((float(row["a"]), float(row["b"])) == (int(row["step"]) / 3, int(row["step"]) / 7) for row in rows)
    assert all((row["late"] == "1.0") == (int(row["step"]) >= 700) for row in rows)
    assert os.listdir(tmp_path) == ["m.csv"]
