"""Alerts reach the real trackers, and a tracker that fails or hangs costs the run nothing but its messages."""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
import threading
import time

import pytest

from rldk.event import Alert, Event
from rldk.sinks import trackers
from rldk.sinks.trackers import MAX_MESSAGES, TrackerSink

EVENT = Event(1, 0.0, {"loss": 1.0})


def alert(code="kl_divergence", step=3, severity="warning", **more):
    return Alert(code, "KL", severity, step, 0.0, "kl", 0.7, 0.5, "kl is 0.7, above 0.5.", "Raise beta.", **more)


def escalated(step=3, at=5):
    return alert(step=step, severity="critical", evidence={"escalated_from": "warning", "escalated_at": at})


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Writer:
    """A writer of the user's own."""

    def __init__(self):
        self.texts = []

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))


class Hanging(Writer):
    """One whose disk or server has gone away."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()

    def add_text(self, tag, text, step):
        self.free.wait(40)
        super().add_text(tag, text, step)


class Raising(Writer):
    def __init__(self, error):
        super().__init__()
        self.error = error
        self.asked = 0

    def add_text(self, tag, text, step):
        self.asked += 1
        raise self.error


def tensorboard_sink(writer, **more):
    return TrackerSink(["tensorboard"], lambda: [writer], **more)


# None of them calls home from a test.
QUIETLY = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # the default, a database, needs SQLAlchemy
    "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline", "WANDB_SILENT": "true",
}

# What runs in a process of its own: the libraries keep global state, and trackio reads its folder on import.
BEGIN = """
import contextlib, json, threading, warnings
import test_trackers as t
from rldk.sinks.trackers import MAX_MESSAGES, TrackerSink

def speak(sink, *, crowd=0):
    warnings.simplefilter("error")  # here and not before: the libraries' own imports are not rldk's
    sink.alert(t.alert())
    sink.alert(t.escalated())
    other = threading.Thread(target=sink.alert, args=(t.alert("silence", 6),))  # as from rldk's watch for silence
    other.start()
    other.join()
    sink.alert(t.escalated()._replace(resolved_step=9))
    for step in range(crowd):
        sink.alert(t.alert("crowd", step))
"""


def trackio_rows(folder):
    (database,) = folder.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select title, level, step, text from alerts order by rowid").fetchall()
    connection.close()
    return rows


def wandb_records(data):
    """The offline file's records: LevelDB's log format behind a header of 7 bytes; wandb 0.31 ships no reader."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no room for a record's header in this block
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def wandb_rows(folder):
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = [wandb_internal_pb2.Record.FromString(data) for data in wandb_records(file.read_bytes())]
    alerts = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    return [(alert.title, alert.level, alert.text) for alert in alerts]


def tensorboard_rows(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag.removesuffix("/text_summary"): [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"] if tag.startswith("rldk/")
    }


FIRST = "Step 3: kl is 0.7, above 0.5. Raise beta."
WORSE = "Since step 3: kl is 0.7, above 0.5. Raise beta."
QUIET = "Step 6: kl is 0.7, above 0.5. Raise beta."
PASSED = f"critical: {WORSE} (passed at step 9)"


def test_trackio_stores_them_with_level_and_step(run_script, tmp_path):
    """Raised and worse, also from another thread; not that it passed, and what was too much as one number."""
    done = run_script(
        BEGIN + "import trackio\ntrackio.init(project='p', name='n')\ntrackio.log({'loss': 1.0})\n"
        "sink = TrackerSink(['trackio'])\nspeak(sink, crowd=30)\ntrackio.finish()\nsink.close()\n"
        "print(json.dumps(sink.status()))\n",
        TRACKIO_DIR=str(tmp_path / "trackio"), **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    rows = trackio_rows(tmp_path / "trackio")
    assert rows[:3] == [
        ("rldk: kl_divergence", "warn", 3, FIRST),
        ("rldk: kl_divergence", "error", 5, WORSE),
        ("rldk: silence", "warn", 6, QUIET),
    ]
    assert len(rows) == MAX_MESSAGES + 1
    title, level, _, text = rows[-1]
    assert (title, level) == ("rldk: held_back", "info")
    assert text.startswith("13 more alerts or changes of alerts came after the first 20.")
    status = json.loads(done.stdout.splitlines()[-1])
    assert status == {"trackio": {"sent": MAX_MESSAGES + 1, "held_back": 13, "lost": 0, "error": None}}


def test_wandb_records_them_offline(run_script, tmp_path):
    done = run_script(
        BEGIN + "import wandb\nrun = wandb.init(project='p', dir='.')\nsink = TrackerSink(['wandb'])\n"
        "speak(sink)\nsink.close()\nrun.finish()\nprint(json.dumps(sink.status()))\n",
        **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    assert wandb_rows(tmp_path) == [
        ("rldk: kl_divergence", "WARN", FIRST),
        ("rldk: kl_divergence", "ERROR", WORSE),
        ("rldk: silence", "WARN", QUIET),
    ]
    assert json.loads(done.stdout.splitlines()[-1])["wandb"] == {"sent": 3, "held_back": 0, "lost": 0, "error": None}


def test_mlflow_keeps_a_tag_an_alert_and_says_when_it_passed(run_script, tmp_path):
    done = run_script(
        BEGIN + "import mlflow, pathlib\n"
        "mlflow.set_tracking_uri((pathlib.Path.cwd() / 'mlruns').as_uri())\n"
        "run = mlflow.start_run()\nsink = TrackerSink(['mlflow'])\nspeak(sink)\nmlflow.end_run()\nsink.close()\n"
        "tags = mlflow.MlflowClient().get_run(run.info.run_id).data.tags\n"
        "runs = len(mlflow.MlflowClient().search_runs(['0']))\n"
        "print(json.dumps([runs, tags, sink.status()]))\n",
        **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    runs, tags, status = json.loads(done.stdout.splitlines()[-1])
    assert runs == 1
    assert {key: value for key, value in tags.items() if key.startswith("rldk.")} == {
        "rldk.kl_divergence": PASSED, "rldk.silence": f"warning: {QUIET}",
    }
    assert status == {"mlflow": {"sent": 4, "held_back": 0, "lost": 0, "error": None}}


def test_tensorboard_shows_them_as_text(tmp_path):
    """Also while the writer is still open: a run is looked at before it ends."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "tb") as writer:
        sink = tensorboard_sink(writer)
        sink.alert(alert())
        sink.alert(escalated())
        sink.alert(escalated()._replace(resolved_step=9))
        sink.close()
        assert tensorboard_rows(tmp_path / "tb") == {
            "rldk/kl_divergence": [(3, f"**warning** {FIRST}"), (5, f"**critical** {WORSE}")],
        }
    assert sink.status()["tensorboard"]["sent"] == 2


TRAINER = BEGIN + """
import torch, transformers

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}

class Callback(transformers.TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.sink = TrackerSink(args.report_to, self.writers)
        self.sink.alert(t.alert("setup", 0))

    def writers(self):
        found = (getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks)
        return [writer for writer in found if writer is not None]

    def on_log(self, args, state, control, **kwargs):
        self.sink.write(t.EVENT)
        if state.global_step == 2:
            self.sink.alert(t.alert(step=2))

    def on_train_end(self, args, state, control, **kwargs):
        self.sink.close()

class First(Callback):
    # Where rldk itself stands before the trackers in report_to.
    pass

first, last = First(), Callback()
arguments = transformers.TrainingArguments(
    "out", max_steps=4, logging_steps=1, report_to=["mlflow", "tensorboard", "trackio", "wandb"], use_cpu=True,
    save_strategy="no", remove_unused_columns=False, disable_tqdm=True, run_name="n",
)
data = [{"x": torch.ones(1)}] * 8
trainer = transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[last])
trainer.callback_handler.callbacks.insert(0, first)
trainer.train()
import mlflow
(run,) = mlflow.MlflowClient().search_runs(["0"])
print(json.dumps([run.data.tags, first.sink.status(), last.sink.status()]))
"""


def test_they_reach_the_trackers_of_a_trainer(run_script, tmp_path):
    """The callbacks of transformers begin and end the runs; rldk's may stand behind them or before them."""
    done = run_script(
        TRAINER, TRACKIO_DIR=str(tmp_path / "trackio"), WANDB_DIR=str(tmp_path),
        MLFLOW_TRACKING_URI=(tmp_path / "mlruns").as_uri(), TENSORBOARD_LOGGING_DIR=str(tmp_path / "tb"), **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    tags, *statuses = json.loads(done.stdout.splitlines()[-1])
    for status in statuses:
        assert status == {
            name: {"sent": 2, "held_back": 0, "lost": 0, "error": None} for name in ("mlflow", "tensorboard", "trackio", "wandb")
        }
    codes = ["kl_divergence", "kl_divergence", "setup", "setup"]
    assert {key for key in tags if key.startswith("rldk.")} == {"rldk.kl_divergence", "rldk.setup"}
    assert sorted(row[0] for row in trackio_rows(tmp_path / "trackio")) == [f"rldk: {code}" for code in codes]
    assert sorted(row[0] for row in wandb_rows(tmp_path)) == [f"rldk: {code}" for code in codes]
    rows = tensorboard_rows(tmp_path / "tb")
    assert {tag: len(texts) for tag, texts in rows.items()} == {"rldk/kl_divergence": 2, "rldk/setup": 2}


def test_a_stray_module_of_that_name_is_one_warning(run_script, tmp_path):
    """A file trackio.py, such as transformers takes for the real one."""
    (tmp_path / "trackio.py").write_text("def init(**kwargs): ...\n")
    done = run_script(
        "import logging, trackio, test_trackers as t\nfrom rldk.sinks.trackers import TrackerSink\nlogging.basicConfig()\n"
        "sink = TrackerSink(['trackio'], kept_in='here.json')\nsink.alert(t.alert())\nsink.alert(t.alert())\nsink.close()\n"
        "assert sink.lost == 2\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "WARNING:rldk:rldk: no more alerts go to trackio (AttributeError: module 'trackio' has no attribute "
        "'context_vars'). Training is not affected; all alerts are in here.json.\n"
    )


def test_nothing_is_imported_or_started(run_script):
    """Not what the run does not report to, not what is not loaded, and no run where there is none."""
    done = run_script(
        "import sys, threading, test_trackers as t\nfrom rldk.sinks.trackers import TrackerSink\n"
        "sink = TrackerSink(['trackio', 'wandb', 'mlflow', 'tensorboard', 'comet_ml'])\nsink.alert(t.alert())\n"
        "assert not {'trackio', 'wandb', 'mlflow', 'tensorboard', 'torch'} & set(sys.modules)\n"
        "import wandb, mlflow\nsys.modules['trackio'] = None\nsink.alert(t.alert())\nsink.write(t.EVENT)\nsink.close()\n"
        "assert wandb.run is None and mlflow.active_run() is None\n"
        "assert not [thread for thread in threading.enumerate() if thread.name.startswith('rldk-')]\n"
        "assert sink.lost == 0\n", **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_a_writer_of_its_own_kind_will_do():
    writer = Writer()
    sink = tensorboard_sink(writer)
    sink.alert(alert(docs="https://docs/kl"))
    sink.close()
    assert writer.texts == [("rldk/kl_divergence", f"**warning** {FIRST} https://docs/kl", 3)]


def test_what_came_before_the_run_goes_out_when_it_begins():
    writers = []
    sink = TrackerSink(["tensorboard"], lambda: writers)
    sink.alert(alert())
    writers.append(Writer())
    sink.write(EVENT)
    sink.close()
    assert len(writers[0].texts) == 1


def test_an_evaluation_after_training_may_still_alert():
    writer = Writer()
    sink = tensorboard_sink(writer)
    for step in range(MAX_MESSAGES + 2):
        sink.alert(alert(step=step))
    sink.close()
    sink.close()
    sink.alert(alert("overfit"))
    sink.close()
    assert sink.status()["tensorboard"] == {"sent": MAX_MESSAGES + 2, "held_back": 3, "lost": 0, "error": None}
    told = [text for tag, text, _ in writer.texts if tag == "rldk/held_back"]
    assert [text.split()[1] for text in told] == ["2", "3"]


def test_a_tracker_that_hangs_holds_nobody_up(caplog, monkeypatch):
    """Neither the training, nor the end beyond its bound, nor the other trackers."""
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.5)
    writer = Hanging()
    sink = tensorboard_sink(writer, kept_in="here.json")
    began = time.monotonic()
    for step in range(1, 30):
        sink.alert(alert(step=step))
    assert time.monotonic() - began < 0.5
    sink.close()
    assert 0.4 < time.monotonic() - began < 2.0
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 0.2
    assert warnings_of(caplog) == [
        "rldk: no more alerts go to tensorboard (not done with 21 alerts within 0.5 s). Training is not affected; all "
        "alerts are in here.json."
    ]
    assert sink.lost == MAX_MESSAGES + 1
    writer.free.set()  # and what was let go does not wake up to talk
    for thread in threading.enumerate():
        if thread.name == "rldk-tensorboard":
            thread.join(10)
    assert len(writer.texts) == 1


def test_the_bound_is_five_seconds():
    assert trackers.CLOSE_SECONDS == 5.0


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_a_tracker_that_fails_is_switched_off_after_one_warning(caplog, error):
    writer = Raising(error)
    sink = tensorboard_sink(writer)
    for step in range(50):
        sink.alert(alert(step=step))
    sink.close()
    assert writer.asked == 1
    assert len(warnings_of(caplog)) == 1 and "tensorboard" in warnings_of(caplog)[0] and str(error) in warnings_of(caplog)[0]
    status = sink.status()["tensorboard"]
    assert status["sent"] == 0 and status["lost"] + status["held_back"] >= 50
    assert status["error"] == f"{type(error).__name__}: {error}"


def test_writers_that_cannot_be_had_are_a_failure_too(caplog):
    def writers():
        raise RuntimeError("no trainer")

    sink = TrackerSink(["tensorboard"], writers)
    sink.alert(alert())
    sink.close()
    assert len(warnings_of(caplog)) == 1
    assert sink.lost == 1


def test_the_count_of_what_was_held_back_is_logged_where_the_run_is_gone(caplog):
    """The trainer closes TensorBoard's writer before the callbacks behind its own."""
    caplog.set_level(logging.INFO, "rldk")
    writers = [Writer()]
    sink = TrackerSink(["tensorboard"], lambda: writers)
    for step in range(MAX_MESSAGES + 5):
        sink.alert(alert(step=step))
    writer = writers.pop()
    sink.close()
    sink.close()
    assert len(writer.texts) == MAX_MESSAGES
    (record,) = caplog.records
    assert "5 more alerts or changes of alerts came after the first 20." in record.getMessage()
    assert not [thread for thread in threading.enumerate() if thread.name == "rldk-tensorboard"]


def test_foreign_text_is_made_harmless():
    """A metric's name may hold anything; trackio prints to the terminal."""
    writer = Writer()
    sink = tensorboard_sink(writer)
    sink.alert(alert()._replace(message="\x1b[31mkl\n" + "x" * 10_000))
    sink.close()
    text = writer.texts[0][1]
    assert text.isprintable() and len(text) < 5_000
