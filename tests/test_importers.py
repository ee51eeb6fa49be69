"""Stores of trackio, wandb, TensorBoard and MLflow, written by these libraries themselves, read as the run that they are of."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from captures import captures
from test_trackers import QUIETLY

import rldk
from rldk.compare import compare
from rldk.exceptions import EmptyLogError, IngestError, MissingLibraryError, NoLogsError, UnknownSchemaError
from rldk.ingest import events_of, find_logs, ingest_all, ingest_runs, open_log, run_name
from rldk.live import WatchedRun
from rldk.rebuild import rebuild_run
from rldk.replay import replay
from rldk.runs import find_runs
from rldk.vocabulary import Vocabulary, recognise

ROOT = Path(__file__).resolve().parents[1]
TRACKERS = ("trackio", "wandb", "tensorboard", "mlflow")


def script(folder, source, *, check=True, **environment):
    """Runs a script in a folder and a process of its own, with all trackers writing there and none calling anybody."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    (folder / "script.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=300,
        env={
            **inherited, **QUIETLY, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "TRACKIO_DIR": str(folder / "trackio"), "WANDB_DIR": str(folder), "TENSORBOARD_LOGGING_DIR": str(folder / "tb"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", **environment,
        },
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def command(*arguments, **environment):
    """Runs rldk as from a shell."""
    return subprocess.run(
        [sys.executable, "-m", "rldk", *map(str, arguments)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
    )


RUN = """
import zoo
from rldk.integrations.trl import RLDKCallback

recorder = RLDKCallback(output_dir="rldk_logs", run_id="stream", enable_resource_monitoring=False, enable_checkpoint_analysis=False)
trainer = zoo.trainer(
    "FAMILY", "out", callbacks=[recorder], report_to=["mlflow", "tensorboard", "trackio", "wandb"], run_name="tracked",
    project="shop", save_strategy="no", MORE,
)
trainer.train()
trainer.evaluate()
"""


def stores(folder):
    """Where each tracker has put its run."""
    (wandb,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return {"trackio": folder / "trackio" / "shop.db", "wandb": wandb, "tensorboard": folder / "tb", "mlflow": folder / "mlflow.db"}


@pytest.fixture(scope="module", params=["sft", "grpo"])
def trained(request, tmp_path_factory):
    """A run in which all four trackers and rldk took part; the one of SFT diverges."""
    folder = tmp_path_factory.mktemp(request.param)
    more = "max_steps=6" if request.param == "grpo" else "max_steps=24, eval_steps=12, learning_rate=5.0"
    script(folder, RUN.replace("FAMILY", request.param).replace("MORE", more))
    return folder


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_run_reads_as_its_stream(trained, tracker):
    """The same steps, phases and numbers under the same names, but for what rldk alone knows."""
    stream = ingest_runs(trained / "rldk_logs")
    path = stores(trained)[tracker]
    frame = ingest_runs(path)
    assert open_log(path).name == tracker
    assert frame.attrs["skipped_lines"] == 0
    name = "tb" if tracker == "tensorboard" else "tracked"
    if tracker == "mlflow":
        # transformers lets MLflow end the run with the training; what evaluate() logs begins another one.
        assert frame["run_id"].nunique() == 2
        frame = frame[frame["run_id"] == name].reset_index(drop=True)
        stream = stream.drop(index=stream.index[(stream["phase"] == "eval")][-1]).reset_index(drop=True)
    assert set(frame["run_id"]) == {name}
    assert frame["step"].tolist() == stream["step"].tolist()
    assert frame["phase"].tolist() == stream["phase"].tolist()
    ours = {"samples_per_second", "tokens_per_second", "param_unmoved_frac"}
    lost = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
    assert set(stream) - set(frame) == (ours & set(stream)) | (lost if tracker == "trackio" else set())
    assert set(frame) <= set(stream)
    for column in frame.columns[4:]:
        # TensorBoard keeps 32 bits of each number.
        assert np.allclose(frame[column], stream[column], rtol=1e-6, atol=0, equal_nan=True), column
    assert (frame["wall_time"].diff().dropna() >= 0).all()
    assert 0 <= frame["wall_time"].iloc[-1] < 300


@pytest.mark.parametrize("tracker", TRACKERS)
def test_it_is_judged_as_it_was_live(trained, tracker):
    """The alerts of the live callback, with the same numbers; the set-up is known from the config that the tracker keeps."""
    live = json.loads((trained / "rldk_logs" / "stream_alerts.json").read_text())
    (run,) = [run for run in replay([stores(trained)[tracker]]) if run.name in ("tracked", "tb")]
    keys = ("code", "severity", "step", "metric", "resolved_step")
    assert [[alert[key] for key in keys] for alert in run.alerts] == [[alert[key] for key in keys] for alert in live]
    assert run.trainer == trained.name.rstrip("0123456789")
    if run.trainer == "sft":
        assert [alert["code"] for alert in live] == ["loss_spike"]
        assert run.alerts[0]["value"] == pytest.approx(live[0]["value"], rel=1e-6)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_set_up_is_known(trained, tracker):
    first = next(event for event in events_of(stores(trained)[tracker]))
    arguments = first.model_info["setup"]["arguments"]
    assert arguments["max_steps"] in (6, 24)
    assert arguments["lr_scheduler_type"] == "linear"
    assert first.rng == {"seed": 0}
    assert not [name for name in arguments if name.startswith("_")]
    if trained.name.startswith("grpo"):
        assert arguments["beta"] == 0.04
        assert first.model_info["trainer"] == "grpo"


def test_the_commands_read_them(trained):
    """From the folder that somebody would name, without a traceback, and with the exit code of the verdict."""
    if trained.name.startswith("grpo"):
        pytest.skip("one run is enough")
    for source, run in (("trackio", "tracked"), ("wandb", "tracked"), ("tb", "tb"), ("mlflow.db", "tracked")):
        done = command("replay", trained / source)
        assert done.returncode == 1, done.stderr
        assert f"{run}: 1 critical alert" in done.stdout
        assert "loss_spike" in done.stdout
        done = command("watch", trained / source, "--once", *(["--run-id", "tracked"] if source == "mlflow.db" else []))
        assert done.returncode == 0, done.stderr
        assert "loss_spike" in done.stdout
        chosen = ["--run", "tracked"] if source == "mlflow.db" else []
        done = command("report", trained / source, "-f", "json", *chosen)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["health"]["verdict"] == "critical"
    done = command("ingest", trained / "trackio", trained / "wandb", "--json")
    assert [run["run_id"][:7] for run in json.loads(done.stdout)["runs"]] == ["shop/tr", "tracked"]
    found = compare([trained / "rldk_logs", trained / "trackio", trained / "wandb"])
    assert [run["name"] for run in found["runs"]] == ["stream", "tracked", "tracked"]
    assert [pair["step"] for pair in found["divergence"]] == [None, None]
    assert [pair["steps_compared"] for pair in found["divergence"]] == [24, 24]
    run = rldk.load(trained / "trackio")
    assert run.name == "tracked"
    assert [alert.code for alert in run.alerts] == ["loss_spike"]
    report = rebuild_run(trained / "trackio", output_dir=trained / "again")
    assert report["run_id"] == "tracked"
    assert report["totals"]["steps"] == 24


# What nine real runs logged, given to the trackers as transformers gives it to them.
RUNS = [run for run in captures() if str(run) == "1.12.0_ppo" or run.trl == "1.16.0"]
CAPTURED = """
import os
from test_importers import RUNS
from transformers.integrations.integration_utils import rewrite_logs

TOTALS = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}

def rows(run):
    for row, logs in zip(run.rows, run.logs):
        yield row["step"], {name: value for name, value in logs.items() if value is not None}

tracker = os.environ["TRACKER"]
if tracker == "trackio":
    import trackio
    for run in RUNS:
        trackio.init(project="shop", name=str(run))
        for step, logs in rows(run):
            logs = rewrite_logs({name: value for name, value in logs.items() if name not in TOTALS})
            trackio.log({**logs, "train/global_step": step})
        trackio.finish()
elif tracker == "wandb":
    import wandb
    for run in RUNS:
        its = wandb.init(project="shop", name=str(run), dir=".")
        for step, logs in rows(run):
            for name in TOTALS & logs.keys():
                its.summary[name] = logs[name]
            logs = rewrite_logs({name: value for name, value in logs.items() if name not in TOTALS})
            its.log({**logs, "train/global_step": step})
        its.finish()
elif tracker == "tensorboard":
    from torch.utils.tensorboard import SummaryWriter
    for run in RUNS:
        with SummaryWriter(f"tb/{run}") as writer:
            for step, logs in rows(run):
                for name, value in rewrite_logs(logs).items():
                    writer.add_scalar(name, value, step)
else:
    import mlflow
    for run in RUNS:
        with mlflow.start_run(run_name=str(run)):
            for step, logs in rows(run):
                mlflow.log_metrics(logs, step=step)
"""


@pytest.mark.parametrize(("tracker", "place"), [
    ("trackio", "trackio"), ("wandb", "wandb"), ("tensorboard", "tb"), ("mlflow", "mlflow.db"), ("mlflow", "mlruns"),
])
def test_many_runs(tracker, place, tmp_path):
    """A run of every trainer in a store: each its rows, its phases, its canonical names."""
    uri = {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri()} if place == "mlruns" else {}
    script(tmp_path, CAPTURED, TRACKER=tracker, **uri)
    frame = ingest_runs(tmp_path / place)
    assert set(frame["run_id"]) == {str(run) for run in RUNS}
    for run in RUNS:
        words = Vocabulary(recognise(key for row in run.rows for key in row))
        ours = frame[frame["run_id"] == str(run)].dropna(axis=1, how="all")
        expected = [(row["step"], *words.translate(logs)[:2]) for row, logs in zip(run.rows, run.logs, strict=True)]
        assert ours["step"].tolist() == [step for step, _, _ in expected]
        assert ours["phase"].tolist() == [phase for _, phase, _ in expected]
        for (_, row), (_, phase, metrics) in zip(ours.iterrows(), expected, strict=True):
            for name, value in metrics.items():
                if value is None or (tracker == "trackio" and phase == "summary" and name != "epoch"):
                    continue
                value = float(value)
                # TensorBoard has no more than 32 bits for a number.
                assert row[name] == pytest.approx(np.float32(value) if tracker == "tensorboard" else value, nan_ok=True), name
    judged = {run.name: run.trainer for run in replay([tmp_path / place])}
    assert judged.keys() == {str(run) for run in RUNS}
    for run in RUNS:
        assert judged[str(run)] == {"rloo": "grpo"}.get(run.family, run.family)
    if place == "trackio":
        assert len(find_runs(tmp_path / place)) == len(RUNS)
        assert len(compare([tmp_path / place])["runs"]) == len(RUNS)


def test_what_json_lacks_and_what_is_no_metric(tmp_path):
    """NaN, infinities, tables, names that trackers rename; a step of one's own."""
    script(tmp_path, """
import math, trackio, wandb, mlflow
values = {"loss": math.nan, "grad_norm": math.inf, "kl": -math.inf, "reward": 1, "profiling/Time taken: a": 0.1}
trackio.init(project="shop", name="mine")
for step in (10, 20):
    trackio.log({**values, "step": step, "text": "hello", "nested": {"a": 1}})
trackio.finish()
run = wandb.init(project="shop", name="mine", dir=".")
for step in (10, 20):
    run.log({**values, "text": "hello", "nested": {"a": 1}, "hist": wandb.Histogram([1, 2])}, step=step)
run.finish()
with mlflow.start_run(run_name="mine"):
    for step in (10, 20):
        for name, value in values.items():
            mlflow.log_metric(name.replace(":", ""), value, step=step)
""")
    for place in ("trackio", "wandb", "mlflow.db"):
        frame = ingest_runs(tmp_path / place)
        assert frame["step"].tolist() == [10, 20]
        assert frame["loss"].isna().all()
        assert frame["grad_norm"].tolist() == [math.inf] * 2
        assert frame["kl_mean" if "kl_mean" in frame else "kl"].tolist() == [-math.inf] * 2
        assert not [name for name in frame if name.startswith(("profiling", "hist", "text", "system", "_"))]
        assert [event.metrics["loss"] for event in events_of(tmp_path / place)] != [None, None]
        (run,) = replay([tmp_path / place])
        assert "non_finite" in [alert.code for alert in run.found]


def test_a_resumed_run(tmp_path):
    """What the first part logged beyond the checkpoint is void, in each of the trackers."""
    script(tmp_path, """
import trackio, wandb, mlflow
from torch.utils.tensorboard import SummaryWriter
run_id = None
for first, steps in ((1.0, range(1, 7)), (2.0, range(4, 9))):
    trackio.init(project="shop", name="again", resume="allow")
    its = wandb.init(project="shop", name="again", id="abc", dir=".", resume="allow")
    writer = SummaryWriter("tb")
    with mlflow.start_run(run_name="again", run_id=run_id) as run:
        run_id = run.info.run_id
        for step in steps:
            trackio.log({"train/loss": first, "train/global_step": step})
            its.log({"train/loss": first, "train/global_step": step})
            writer.add_scalar("train/loss", first, step)
            mlflow.log_metrics({"loss": first}, step=step)
    trackio.finish(); its.finish(); writer.close()
""")
    for place in ("trackio", "wandb", "tb", "mlflow.db"):
        frame = ingest_runs(tmp_path / place)
        assert frame["run_id"].nunique() == 1, place
        assert frame["step"].tolist() == list(range(1, 9)), place
        assert frame["loss"].tolist() == [1.0] * 3 + [2.0] * 5, place
        if place != "wandb":  # which keeps a file a process
            (run,) = replay([tmp_path / place])
            assert run.report()["totals"]["steps"] == 8


def test_runs_of_one_name(tmp_path):
    """Two runs of one name in a store, and in two stores, are four runs; the first of a store keeps its name."""
    script(tmp_path, """
import trackio, wandb, mlflow
for project in ("shop", "mill"):
    for value in (1.0, 2.0):
        trackio.init(project=project, name="same", resume="never")
        trackio.log({"loss": value}, step=1)
        trackio.finish()
for value in (1.0, 2.0):
    with mlflow.start_run(run_name="same"):
        mlflow.log_metric("loss", value, step=1)
    run = wandb.init(project="shop", name="same", dir=".")
    run.log({"loss": value}, step=1)
    run.finish()
""")
    frame = ingest_runs(tmp_path / "trackio" / "shop.db")
    assert frame["loss"].tolist() == [1.0, 2.0]
    assert frame["run_id"].tolist()[0] == "same"
    assert frame["run_id"].tolist()[1].startswith("same-")
    both = ingest_runs(tmp_path / "trackio")
    assert both["run_id"].nunique() == 4
    assert {"mill/same", "shop/same"} < set(both["run_id"])
    assert ingest_runs(tmp_path / "mlflow.db")["run_id"].nunique() == 2
    assert ingest_runs(tmp_path / "wandb")["run_id"].nunique() == 2
    watched = WatchedRun(tmp_path / "trackio" / "shop.db")
    assert watched.poll(1.0)
    assert watched.view().to_dict()["run_id"].startswith("same-")
    watched.close()
    watched = WatchedRun(tmp_path / "trackio" / "shop.db", run_id="same")
    watched.poll(1.0)
    assert watched.view().events == {"train": 1}
    watched.close()


@pytest.mark.parametrize("arguments, names", [({"lr": 0.1}, ["kl_mean", "reward_mean"]), ({"logging_steps": 1}, ["kl", "reward"])])
def test_a_loop_of_ones_own(arguments, names, tmp_path):
    """Its names are read as `rldk.trackio` records them; those of a trainer as `RLDKCallback` does."""
    script(tmp_path, f"""
import trackio
trackio.init(project="shop", name="mine", config={arguments})
for step in (1, 2):
    trackio.log({{"loss": 0.1, "kl": 0.2, "reward": 0.3}}, step=step)
trackio.finish()
""")
    assert sorted(ingest_runs(tmp_path / "trackio").columns[4:]) == [*names[:1], "loss", *names[1:]]


def test_two_names_of_one_metric_in_wandb(tmp_path):
    """The names of a row come shuffled; each row has the learning rate once, under one name."""
    script(tmp_path, """
import wandb
run = wandb.init(project="shop", name="mine", dir=".")
for step in range(1, 33):
    row = {"train/lr": 0.1, "train/learning_rate": 0.1, "train/objective/kl": 0.0, "train/policy/approxkl_avg": 0.0}
    run.log({**row, "train/global_step": step})
run.finish()
""")
    frame = ingest_runs(tmp_path / "wandb")
    assert frame["lr"].tolist() == [0.1] * 32
    assert "learning_rate" not in frame


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names of files are text")
def test_a_file_whose_name_is_no_text(tmp_path):
    """A run is called after it nevertheless, by what can be read of it."""
    folder = tmp_path / os.fsdecode(b"a\xff")
    folder.mkdir()
    for name in ("b", "c"):
        (folder / name).mkdir()
        (folder / name / os.fsdecode(b"run\xff_events.jsonl")).write_bytes(b'{"step": 1, "metrics": {"loss": 1.0}}\n')
    assert ingest_runs(folder)["run_id"].tolist() == ["b/run?", "c/run?"]
    assert ingest_runs(folder / "b")["run_id"].tolist() == ["run?"]
    assert [run.name for run in find_runs(folder / "b")] == ["run?"]


@pytest.fixture
def database(tmp_path):
    """A project of real trackio's, and a connection as its writer has one."""
    script(tmp_path, """
import trackio
trackio.init(project="shop", name="live", config={"beta": 0.1, "api_key": "hf_abcdefghijklmnopqrstuvwxyzabcdefgh"})
for step in range(1, 11):
    trackio.log({"train/loss": 1.0 / step, "train/global_step": step})
trackio.finish()
""")
    path = tmp_path / "trackio" / "shop.db"
    connection = sqlite3.connect(path, isolation_level=None)
    yield path, connection
    connection.close()


def add(connection, step, run="live"):
    connection.execute(
        "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) SELECT run_id, ?, run_name, ?, ? FROM metrics "
        "WHERE run_name = ? LIMIT 1", (f"2999-01-01T00:00:{step % 60:02d}+00:00", step, json.dumps({"train/loss": 0.5, "train/global_step": step}).encode(), run),
    )


def test_a_database_that_is_being_written(database):
    """In WAL mode, with rows that are only in the log beside it; its writer neither waits nor notices."""
    path, writer = database
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    add(writer, 11)
    assert path.with_name("shop.db-wal").stat().st_size
    assert ingest_runs(path)["step"].tolist() == list(range(1, 12))
    log = open_log(path)
    survey = log.survey()
    events = log.numbered()
    next(events)
    for step in range(12, 15):
        add(writer, step)  # in the middle of a reading
    assert len(list(events)) == 10
    assert survey.length == 11
    assert len(ingest_runs(path)) == 14
    watched = WatchedRun(path)
    watched.poll(1.0)
    assert watched.view().to_dict()["step"] == 14
    add(writer, 15)
    os.utime(path.with_name("shop.db-wal"))
    watched._read_whole = (watched._read_whole[0], 0.0)  # it looks every two seconds
    watched.poll(1.0)
    assert watched.view().to_dict()["step"] == 15
    watched.close()
    writer.execute("BEGIN EXCLUSIVE")
    assert len(ingest_runs(path)) == 15
    writer.execute("ROLLBACK")


def test_a_copy_without_what_lies_beside_it(database, tmp_path):
    """A copy alone lacks the rows of the log, and gets no files beside it; with the log of a writer that is gone it has them."""
    path, writer = database
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    add(writer, 11)
    for place, beside, rows in (("alone", (), 10), ("dead", ("-wal",), 11)):
        folder = tmp_path / place
        folder.mkdir()
        for end in ("", *beside):
            shutil.copy(f"{path}{end}", folder / f"shop.db{end}")
        assert len(ingest_runs(folder)) == rows
    assert [item.name for item in (tmp_path / "alone").iterdir()] == ["shop.db"]
    # As on a folder that cannot be written: no index of the log can be made there.
    folder = tmp_path / "closed"
    folder.mkdir()
    shutil.copy(path, folder)
    shutil.copy(f"{path}-wal", folder)
    (folder / "shop.db-shm").mkdir()
    assert len(ingest_runs(folder)) == 11


def test_nothing_needs_to_be_written(database, monkeypatch):
    """Not even to a place for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert len(ingest_runs(database[0])) == 10


def test_secrets_of_a_config_stay_there(database):
    path, _ = database
    first = next(events_of(path))
    assert first.model_info["setup"]["arguments"]["beta"] == 0.1
    assert "hf_abc" not in str(first)


def test_a_locked_database_is_one_line(tmp_path):
    path = tmp_path / "mlflow.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("CREATE TABLE metrics (key)")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(NoLogsError, match=r"cannot read .*mlflow\.db: database is locked"):
        ingest_runs(path)
    writer.close()


def test_hostile_rows(database):
    """What is no row is counted and passed over; the rest is read."""
    path, writer = database
    for metrics in (b"\xff\xfe", "{", "[1]", "null", 5, '{"train/loss": "x"}', '{"train/loss": 1e999, "train/global_step": "9"}'):
        writer.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) SELECT run_id, timestamp, run_name, 'x', ? FROM metrics LIMIT 1", (metrics,))
    writer.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (x'ff00', 7, CAST(x'ff1b5b' AS TEXT), 3, '{\"loss\": 1}')")
    writer.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (CAST(x'ff' AS TEXT), 'now', '\x1b[31mred', 3, '{\"loss\": 1}')")
    with pytest.warns(UserWarning, match="skipped lines"):
        frame = ingest_runs(path)
    assert frame[frame["run_id"] == "live"]["step"].tolist()[:10] == list(range(1, 11))
    assert frame.attrs["skipped_lines"] >= 5
    done = command("replay", path)
    assert done.returncode == 0, done.stderr
    assert "\x1b[31mred" not in done.stdout


def test_corrupt_pages(database, tmp_path):
    """An error of one line, or the rows that can still be read: never a traceback."""
    path, writer = database
    for step in range(11, 400):
        add(writer, step)
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.execute("PRAGMA journal_mode = DELETE")
    content = path.read_bytes()
    read = refused = 0
    for at in range(0, len(content), 4096):
        for damage in (content[:at] + b"\xff" * 2000 + content[at + 2000 :], content[:at]):
            damaged = tmp_path / "damaged.db"
            damaged.write_bytes(damage)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "rldk: skipped lines")
                    read += 0 < len(ingest_runs(damaged)) <= 399
            except IngestError as error:
                refused += 1
                assert "\n" not in str(error)
    assert read > 10
    assert refused > 10


def test_other_databases(tmp_path):
    """A database that is neither trackio's nor MLflow's is said to be one; a view is no table."""
    for name, statements in (
        ("other", ["CREATE TABLE people (name)"]), ("empty", ["CREATE TABLE t (a)", "DROP TABLE t"]),
        ("view", [
            "CREATE VIEW metrics AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) "
            "SELECT x AS run_name, x AS step, x AS timestamp, x AS metrics FROM n",
        ]),
    ):
        path = tmp_path / f"{name}.db"
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.close()
        with pytest.raises(UnknownSchemaError, match=f"{name}.db is an SQLite database, and neither trackio's nor MLflow's"):
            ingest_runs(path)
        done = command("replay", path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(NoLogsError, match=r"trackio's \*\.db.*mlruns.*wandb.*tfevents"):
        ingest_runs(tmp_path)
    (tmp_path / "x.wandb").write_bytes(b"nothing of the kind")
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"nothing of the kind")
    for name in ("x.wandb", "events.out.tfevents.1.host"):
        with pytest.raises(UnknownSchemaError, match="although it is called like one"):
            ingest_runs(tmp_path / name)


def test_a_folder_with_a_stream_reads_as_before(trained, tmp_path):
    shutil.copytree(trained / "rldk_logs", tmp_path / "logs")
    for name, path in stores(trained).items():
        if path.is_file():
            shutil.copy(path, tmp_path / "logs" / f"{name}{path.suffix}")
    assert [path.name for path in find_logs(tmp_path / "logs")] == ["stream_events.jsonl"]
    (tmp_path / "logs" / "stream_events.jsonl").unlink()
    assert [path.name for path in find_logs(tmp_path / "logs")] == ["trackio.db"]


def test_event_files(trained):
    """A folder is a run, and called by its name; a file alone is read alone. A torn end is no damage, a flipped bit is."""
    folder = stores(trained)["tensorboard"]
    files = sorted(folder.iterdir())
    assert len(files) > 1
    assert find_logs(folder.parent / "tb") == [folder]
    first = ingest_runs(files[0])
    assert set(first["run_id"]) == {"tb"}
    assert len(first) == len(ingest_runs(folder)) - 1
    assert run_name(files[0]) == run_name(folder) == "tb"
    content = files[0].read_bytes()
    cut = folder.parent / files[0].name
    cut.write_bytes(content[: len(content) * 2 // 3])
    assert ingest_runs(cut).attrs["skipped_lines"] == 0
    middle = len(content) * 2 // 3
    cut.write_bytes(content[:middle] + b"\xff\xff\xff" + content[middle + 3 :])
    with pytest.warns(UserWarning, match="1 malformed"):
        assert len(ingest_runs(cut))
    cut.unlink()


def test_scalars_of_tensorflow_2(tmp_path):
    """It writes them as tensors, with what they are beside the first."""
    script(tmp_path, """
import numpy
from torch.utils.tensorboard import SummaryWriter
writer = SummaryWriter("tb")
for step in range(3):
    writer.add_scalar("train/loss", 0.5 * step, step, new_style=True)
    writer.add_scalar("train/lr", 0.25, step, new_style=True, double_precision=True)
    writer.add_histogram("weights", numpy.ones(2), step)
    writer.add_text("note", "text", step)
writer.close()
""")
    frame = ingest_runs(tmp_path / "tb")
    assert frame["loss"].tolist() == [0.0, 0.5, 1.0]
    assert frame["lr"].tolist() == [0.25] * 3
    assert list(frame.columns[4:]) == ["loss", "lr"]


def test_records_of_wandb_across_blocks(trained, tmp_path):
    """A torn end is no damage; a flipped bit costs its record."""
    content = stores(trained)["wandb"].read_bytes()
    assert len(content) > 32768
    frame = ingest_runs(stores(trained)["wandb"])
    path = tmp_path / "run-x.wandb"
    path.write_bytes(content[: len(content) * 2 // 3])
    torn = ingest_runs(path)
    assert 0 < len(torn) < len(frame)
    assert torn.attrs["skipped_lines"] == 0
    at = content.index(b"train/loss")
    path.write_bytes(content[:at] + b"T" + content[at + 1 :])
    with pytest.warns(UserWarning, match="1 malformed"):
        assert len(ingest_runs(path)) in (len(frame), len(frame) - 1)


def test_a_file_store_with_damage(tmp_path):
    script(tmp_path, """
import mlflow
with mlflow.start_run(run_name="files") as run:
    mlflow.log_params({"beta": 0.1, "learning_rate": 1e-3})
    for step in range(1, 5):
        mlflow.log_metrics({"loss": 1.0 / step, "rewards/a/mean": float("nan")}, step=step)
with mlflow.start_run(run_name="gone") as gone:
    mlflow.log_metric("loss", 1.0, step=1)
mlflow.delete_run(gone.info.run_id)
""", MLFLOW_TRACKING_URI=(tmp_path / "mlruns").as_uri())
    (run,) = find_logs(tmp_path)
    assert find_logs(run) == find_logs(run.parent) == find_logs(run.parent.parent) == [run]
    frame = ingest_runs(tmp_path)
    assert set(frame["run_id"]) == {"files"}
    assert frame["loss"].tolist() == [1.0 / step for step in range(1, 5)]
    assert frame["rewards/a/mean"].isna().all()
    assert next(events_of(run)).model_info["setup"]["arguments"] == {"beta": 0.1, "learning_rate": 0.001}
    with open(run / "metrics" / "loss", "ab") as file:
        file.write(b"garbage\n1 2\n\xff \xff \xff\n5 1e999 99999999999999999999\n123 4.0 5")
    with pytest.warns(UserWarning, match="3 malformed"):
        assert len(ingest_runs(run)) >= 4


def test_an_empty_project_and_an_empty_run(tmp_path):
    script(tmp_path, """
import mlflow, trackio
trackio.init(project="shop", name="nothing")
trackio.finish()
with mlflow.start_run(run_name="nothing"):
    pass
""")
    with pytest.raises(EmptyLogError):
        ingest_runs(tmp_path / "mlflow.db")
    done = command("replay", tmp_path / "mlflow.db")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("wandb", "tensorboard", "trackio", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from rldk.cli import main
sys.argv = ["rldk", *SAY]
sys.exit(main())
"""


def test_without_the_libraries(trained, tmp_path):
    """MLflow and trackio are read without them; for the others one line says what to install."""
    for tracker, path in stores(trained).items():
        done = script(tmp_path, BLOCKED.replace("SAY", repr(["ingest", str(path)])), check=False)
        if tracker in ("trackio", "mlflow"):
            assert done.returncode == 0, done.stderr
            continue
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert f"needs {tracker}: pip install {tracker}" in line
    assert issubclass(MissingLibraryError, (IngestError, ImportError))


@pytest.mark.matrix
def test_the_installed_trackio(tmp_path):
    """Also of the oldest version, which knows a run by its name alone; as its Trainer's callback logs."""
    pytest.importorskip("trackio")  # beside the oldest and the newest TRL there is one
    script(tmp_path, """
import math, trackio
for name in ("a", "b"):
    trackio.init(project="shop", name=name, resume="allow", config={"beta": 0.1})
    for step in range(1, 7):
        trackio.log({"train/loss": 1.0 / step, "train/epoch": step / 6, "train/global_step": step})
        if step % 3 == 0:
            trackio.log({"eval/loss": math.nan, "eval/runtime": 1.0, "train/epoch": step / 6, "train/global_step": step})
    trackio.finish()
trackio.init(project="shop", name="a", resume="allow")
for step in range(5, 9):
    trackio.log({"train/loss": 2.0, "train/epoch": step / 6, "train/global_step": step})
trackio.finish()
""")
    frame = ingest_runs(tmp_path / "trackio")
    assert open_log(tmp_path / "trackio" / "shop.db").name == "trackio"
    one, two = (frame[(frame["run_id"] == name) & (frame["phase"] == "train")] for name in ("a", "b"))
    assert one["step"].tolist() == list(range(1, 9))
    assert one["loss"].tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4, 2.0, 2.0, 2.0, 2.0]
    assert two["loss"].tolist() == [1.0 / step for step in range(1, 7)]
    assert frame[frame["phase"] == "eval"]["step"].tolist() == [3, 6, 3]  # of b, and of a what stands
    assert frame["eval_loss"].isna().all()
    assert [run.name for run in replay([tmp_path / "trackio"])] == ["b", "a"]
    assert next(events_of(tmp_path / "trackio")).model_info["setup"]["arguments"]["beta"] == 0.1


def test_several_logs_at_once(trained):
    """Files of all kinds in one table, each run apart."""
    frame = ingest_all([trained / "rldk_logs", *stores(trained).values()])
    assert {"stream", "tb"} < set(frame["run_id"])
    assert frame["run_id"].nunique() >= 5
