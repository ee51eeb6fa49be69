"""Alerts and the summary reach the real trackers; one that fails or hangs costs the run nothing but its messages."""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
import threading
import time

import pytest

from rldk.event import Alert, Event
from rldk.report import build_report
from rldk.sinks import trackers
from rldk.sinks.trackers import MAX_MESSAGES, TrackerSink
from rldk.summary import Summary

EVENT = Event(1, 0.0, {"loss": 1.0})


def alert(code="kl_divergence", step=3, severity="warning", **more):
    return Alert(code, "KL", severity, step, 0.0, "kl", 0.7, 0.5, "kl is 0.7, above 0.5.", "Raise beta.", **more)


def escalated(step=3, at=5):
    return alert(step=step, severity="critical", evidence={"escalated_from": "warning", "escalated_at": at})


def report_of(*alerts, status="completed", folder="/home/somebody/rldk_logs"):
    """The report of a run of three steps with these alerts, and they as they stand in their file."""
    summary = Summary()
    for step in range(1, 4):
        summary.add(Event(step, float(step), {"loss": 1.0}))
    coverage = [{"code": "kl_divergence", "state": "quiet"}, {"code": "clip_fraction", "state": "unseen"}]
    report = build_report(
        run_id="r", status=status, summary=summary, alerts=alerts, dropped_alerts=0, coverage=coverage,
        extra={"files": {"page": f"{folder}/r_report.html", "alerts": f"{folder}/r_alerts.json"}},
    )
    return report, [alert.to_dict() for alert in alerts]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Writer:
    """A writer of the user's own."""

    def __init__(self):
        self.texts = []

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))


class Closable(Writer):
    """One that opens another file when it is told more after it was closed, like torch's."""

    def __init__(self):
        super().__init__()
        self.closed = False

    def add_text(self, tag, text, step):
        self.closed = False
        super().add_text(tag, text, step)

    def close(self):
        self.closed = True


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
    "MLFLOW_ALLOW_FILE_STORE": "true",  # the default is a database, which takes seconds to set up
    "MLFLOW_DISABLE_TELEMETRY": "true", "SWANLAB_MODE": "offline", "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline", "WANDB_SILENT": "true",
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


def records_of(data):
    """The records of an offline file of wandb's or SwanLab's: LevelDB's log format behind a header of 7 bytes."""
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
    """What the offline file holds: the alerts, and rldk's part of the summary."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = [wandb_internal_pb2.Record.FromString(data) for data in records_of(file.read_bytes())]
    alerts = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    items = [item for record in records for item in record.summary.update]
    summary = {item.key: json.loads(item.value_json) for item in items if item.key.startswith("rldk/")}
    return [(alert.title, alert.level, alert.text) for alert in alerts], summary


def mlflow_rows(database):
    """The tags and metrics of rldk's in an SQLite store."""
    with sqlite3.connect(database) as connection:
        tags = dict(connection.execute("select key, value from tags where key like 'rldk.%'"))
        metrics = dict(connection.execute("select key, value from latest_metrics where key like 'rldk.%'"))
    connection.close()
    return tags, metrics


def swanlab_rows(folder):
    """By key, the steps and texts that the offline file names, from the files beside it."""
    from swanlab.proto.swanlab.record.v1 import record_pb2

    (file,) = folder.glob("swanlog/run-*/run-*.swanlab")
    found = {}
    for record in (record_pb2.Record.FromString(data) for data in records_of(file.read_bytes())):
        media = record.media
        if media.key.startswith("rldk/"):
            texts = [(file.parent / "media" / "text" / item.filename).read_text() for item in media.value.items]
            found.setdefault(media.key, []).append((media.step, *texts))
    return found


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
    assert text.startswith("13 more alerts or changes of alerts were held back.")
    status = json.loads(done.stdout.splitlines()[-1])
    assert status == {"trackio": {"sent": MAX_MESSAGES + 1, "held_back": 13, "lost": 0, "error": None}}


def test_wandb_records_them_offline(run_script, tmp_path):
    done = run_script(
        BEGIN + "import wandb\nrun = wandb.init(project='p', dir='.')\nsink = TrackerSink(['wandb'])\n"
        "speak(sink)\nsink.close()\nrun.finish()\nprint(json.dumps(sink.status()))\n",
        **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    alerts, summary = wandb_rows(tmp_path)
    assert alerts == [
        ("rldk: kl_divergence", "WARN", FIRST),
        ("rldk: kl_divergence", "ERROR", WORSE),
        ("rldk: silence", "WARN", QUIET),
    ]
    assert summary == {}  # there was no report
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


def test_swanlab_stores_them_as_text(run_script, tmp_path):
    """It drops the second value of a key at one step, and is told the same as the others all the same."""
    done = run_script(
        BEGIN + "import swanlab\nswanlab.init(project='p')\nsink = TrackerSink(['swanlab'])\nspeak(sink, crowd=30)\n"
        "sink.alert(t.alert('kl_divergence', 5, 'critical'))\nsink.close()\nsink.alert(t.alert('kl_divergence', -1))\n"
        "swanlab.finish()\nsink.close()\nprint(json.dumps(sink.status()))\n",
        **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    rows = swanlab_rows(tmp_path)
    assert rows.pop("rldk/kl_divergence") == [
        (3, f"**warning** {FIRST}"), (5, f"**critical** {WORSE}"), (6, f"**critical** {FIRST.replace('3', '5', 1)}"),
    ]
    assert rows.pop("rldk/silence") == [(6, f"**warning** {QUIET}")]
    assert len(rows.pop("rldk/crowd")) == MAX_MESSAGES - 3
    ((_, text),) = rows.pop("rldk/held_back")
    assert not rows and "13 more alerts or changes of alerts were held back." in text
    status = json.loads(done.stdout.splitlines()[-1])
    assert status == {"swanlab": {"sent": MAX_MESSAGES + 2, "held_back": 14, "lost": 1, "error": None}}


def test_what_a_run_that_is_gone_was_not_told_is_logged(run_script):
    """W&B takes nothing for a run that has ended."""
    done = run_script(
        BEGIN + "import logging, wandb\nlogging.basicConfig()\nlogging.getLogger('rldk').setLevel('INFO')\n"
        "with wandb.init(project='p', dir='.'):\n    sink = TrackerSink(['wandb'])\n"
        "sink.summarise(*t.report_of())\nsink.close()\nassert sink.lost == 1\n"
        "assert not [thread for thread in threading.enumerate() if thread.name == 'rldk-wandb']\n",
        **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    assert "INFO:rldk:rldk: wandb has no run any more, and was not told: 1 of 2 detectors could judge" in done.stderr


ALL = ["mlflow", "swanlab", "tensorboard", "trackio", "wandb"]

MODEL = """
import swanlab, torch, transformers

swanlab.init(project="p")  # since transformers 5.23 cannot: it asks for a run, and SwanLab 0.10 raises where there is none

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the data ran out")
        return {"loss": self.layer(x).square().mean()}

def arguments():
    return transformers.TrainingArguments(
        "out", max_steps=4, logging_steps=1, report_to=t.ALL, use_cpu=True, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, run_name="n",
    )

data = [{"x": torch.ones(1)}] * 8
"""

TRAINER = BEGIN + MODEL + """
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
trainer = transformers.Trainer(Model(), arguments(), train_dataset=data, callbacks=[last])
trainer.callback_handler.callbacks.insert(0, first)
trainer.train()
import mlflow
(run,) = mlflow.MlflowClient().search_runs(["0"])
swanlab.finish()  # it would have the last word
print(json.dumps([run.data.tags, first.sink.status(), last.sink.status()]))
"""


def places(folder):
    """Where the trackers of a script keep what they are told."""
    return {
        "TRACKIO_DIR": str(folder / "trackio"), "WANDB_DIR": str(folder), "TENSORBOARD_LOGGING_DIR": str(folder / "tb"),
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(), **QUIETLY,
    }


def test_they_reach_the_trackers_of_a_trainer(run_script, tmp_path):
    """The callbacks of transformers begin and end the runs; rldk's may stand behind them or before them."""
    done = run_script(TRAINER, **places(tmp_path))
    assert done.returncode == 0, done.stderr
    tags, *statuses = json.loads(done.stdout.splitlines()[-1])
    for status in statuses:
        assert status == {name: {"sent": 2, "held_back": 0, "lost": 0, "error": None} for name in ALL}
    codes = ["kl_divergence", "kl_divergence", "setup", "setup"]
    assert {key for key in tags if key.startswith("rldk.")} == {"rldk.kl_divergence", "rldk.setup"}
    assert sorted(row[0] for row in trackio_rows(tmp_path / "trackio")) == [f"rldk: {code}" for code in codes]
    assert sorted(row[0] for row in wandb_rows(tmp_path)[0]) == [f"rldk: {code}" for code in codes]
    for rows in (tensorboard_rows(tmp_path / "tb"), swanlab_rows(tmp_path)):
        assert {tag: len(texts) for tag, texts in rows.items()} == {"rldk/kl_divergence": 2, "rldk/setup": 2}


RECORDED = BEGIN + MODEL + """
import sys
from rldk.integrations.trl import RLDKCallback

model, lasts = Model(), int(sys.argv[1])
model.left = lasts
recorder = RLDKCallback("rldk_logs", run_id="r", alert_thresholds={"gradient_norm": 1e-9}, enable_resource_monitoring=False)
trainer = transformers.Trainer(model, arguments(), train_dataset=data, callbacks=[recorder])
trainer.train()
swanlab.finish()
"""


def test_a_recorded_run_is_told_of_to_all(run_script, tmp_path):
    """An alert and the summary are in what each tracker stored, MLflow's a database; the trainer's own runs have ended."""
    folder = places(tmp_path)
    folder["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = run_script(RECORDED, "99", **folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "rldk_logs" / "r_final_report.json").read_text())
    assert report["trackers"] == {name: {"sent": 2, "held_back": 0, "lost": 0, "error": None} for name in ALL}
    (alert,) = json.loads((tmp_path / "rldk_logs" / "r_alerts.json").read_text())
    said = f"Step 1: {alert['message']} {alert['advice']} {alert['docs']}"
    verdict = "1 warning, still open at the end."
    text = (
        f"{verdict} Completed, 4 steps. Alerts: 0 critical, 1 warning, 0 info. Files: rldk_logs/r_report.html, r_alerts.json."
    )
    counts = {"alerts_critical": 0, "alerts_warning": 1, "alerts_info": 0}
    words = {"verdict": verdict, "status": "completed", "report": "rldk_logs/r_report.html"}

    assert trackio_rows(tmp_path / "trackio") == [
        ("rldk: gradient_norm", "warn", 1, said), ("rldk: summary", "info", 4, text),
    ]
    assert wandb_rows(tmp_path) == (
        [("rldk: gradient_norm", "WARN", said)], {f"rldk/{name}": value for name, value in {**words, **counts}.items()},
    )
    assert mlflow_rows(tmp_path / "mlflow.db") == (
        {"rldk.gradient_norm": f"warning: {said}", **{f"rldk.{name}": value for name, value in words.items()}},
        {f"rldk.{name}": value for name, value in counts.items()},
    )
    texts = {"rldk/gradient_norm": [(1, f"**warning** {said}")], "rldk/summary": [(4, text)]}
    assert tensorboard_rows(tmp_path / "tb") == texts
    assert swanlab_rows(tmp_path) == texts


def test_a_run_that_died_is_told_of_too(run_script, tmp_path):
    """Before the trackers' own ends at the interpreter's exit. Only SwanLab's comes earlier, at the exception."""
    done = run_script(RECORDED, "2", **places(tmp_path))
    assert done.returncode == 1 and "RuntimeError: the data ran out" in done.stderr
    assert "nothing more goes to" not in done.stderr
    report = json.loads((tmp_path / "rldk_logs" / "r_final_report.json").read_text())
    lost = {name: entry["lost"] for name, entry in report["trackers"].items()}
    assert lost == {"mlflow": 0, "swanlab": 1, "tensorboard": 0, "trackio": 0, "wandb": 0}
    assert wandb_rows(tmp_path)[1]["rldk/status"] == "failed"
    assert [path.read_text() for path in tmp_path.glob("mlruns/*/*/tags/rldk.status")] == ["failed"]
    text = "The run failed. 1 warning, still open at the end. Failed after 2 steps: RuntimeError: the data ran out."
    assert trackio_rows(tmp_path / "trackio")[-1][3].startswith(text)
    assert tensorboard_rows(tmp_path / "tb")["rldk/summary"][0][1].startswith(text)
    assert list(swanlab_rows(tmp_path)) == ["rldk/gradient_norm"]


def test_a_healthy_run_is_told_of_once(tmp_path, monkeypatch):
    """Not while it runs; and not again for an evaluation after it that changes nothing."""
    import zoo  # here, since the scripts import this module, and some look for what is loaded

    from rldk.integrations.trl import RLDKCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    recorder = RLDKCallback("rldk_logs", run_id="r", enable_resource_monitoring=False)
    trainer = zoo.trainer("sft", tmp_path, callbacks=[recorder], max_steps=2, report_to=["tensorboard"])
    trainer.train()
    trainer.evaluate()
    rows = tensorboard_rows(tmp_path / "tb")
    assert list(rows) == ["rldk/summary"]
    ((step, text),) = rows["rldk/summary"]
    assert step == 2 and "could judge this run, and found nothing. Completed, 2 steps." in text
    assert recorder.report["trackers"]["tensorboard"] == {"sent": 1, "held_back": 0, "lost": 0, "error": None}


def test_a_stray_module_of_that_name_is_one_warning(run_script, tmp_path):
    """A file trackio.py, such as transformers takes for the real one. None, if nobody asked for trackio."""
    (tmp_path / "trackio.py").write_text("def init(**kwargs): ...\n")
    done = run_script(
        "import logging, trackio, test_trackers as t\nfrom rldk.sinks.trackers import TrackerSink\nlogging.basicConfig()\n"
        "sink = TrackerSink(['trackio'], kept_in='here.json')\nsink.alert(t.alert())\nsink.alert(t.alert())\nsink.close()\n"
        "assert sink.lost == 2\n"
        "unasked = TrackerSink(['trackio'], asked=False)\nunasked.alert(t.alert())\nunasked.close()\n"
        "assert unasked.lost == 0 and unasked.status() == {}\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "WARNING:rldk:rldk: nothing more goes to trackio (AttributeError: module 'trackio' has no attribute "
        "'context_vars'). Training is not affected; all alerts are in here.json.\n"
    )


def test_nothing_is_imported_or_started(run_script):
    """Not what the run does not report to, not what is not loaded, and no run where there is none."""
    done = run_script(
        "import sys, threading, test_trackers as t\nfrom rldk.sinks.trackers import TrackerSink\n"
        "had = set(sys.modules)\n"
        "sink = TrackerSink([*t.ALL, 'comet_ml'])\nsink.alert(t.alert())\nassert set(sys.modules) == had\n"
        "import wandb, mlflow, swanlab\nsys.modules['trackio'] = None\nsink.alert(t.alert())\nsink.write(t.EVENT)\n"
        "sink.summarise(*t.report_of())\nsink.close()\n"
        "assert wandb.run is None and mlflow.active_run() is None and not swanlab.has_run()\n"
        "assert not [thread for thread in threading.enumerate() if thread.name.startswith('rldk-')]\n"
        "assert sink.lost == 0 and sink.status() == {}\n", **QUIETLY,
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


def test_what_came_first_does_not_keep_what_is_worse_from_coming():
    """Infos take half of the room, and critical alerts find more."""
    writer = Writer()
    sink = tensorboard_sink(writer)
    for severity in ("info", "warning", "critical"):
        for step in range(25):
            sink.alert(alert(severity, step, severity))
    sink.close()
    codes = [tag.removeprefix("rldk/") for tag, _, _ in writer.texts]
    assert codes == ["info"] * 10 + ["warning"] * 10 + ["critical"] * 10 + ["held_back"]
    assert "45 more alerts or changes of alerts were held back, 15 of them critical." in writer.texts[-1][1]
    assert sink.status()["tensorboard"]["held_back"] == 45


def test_the_summary_is_told_again_only_if_the_outcome_changed():
    writer = Writer()
    sink = tensorboard_sink(writer)
    for report in (report_of(), report_of(), report_of(escalated()), report_of(escalated(), status="failed")):
        sink.summarise(*report)
        sink.close()
    texts = [text for _, text, _ in writer.texts]
    assert [tag for tag, _, _ in writer.texts] == ["rldk/summary"] * 3
    assert "Alerts: 0 critical" in texts[0] and "Alerts: 1 critical" in texts[1] and "The run failed." in texts[2]
    assert all(text.endswith("Files: rldk_logs/r_report.html, r_alerts.json.") for text in texts)


def test_no_path_leaves_the_machine():
    """A tracker may be public, and the path of a home folder names its owner."""
    writer = Writer()
    sink = tensorboard_sink(writer, kept_in="/home/somebody/rldk_logs/r_alerts.json")
    for step in range(MAX_MESSAGES + 1):
        sink.alert(alert(step=step))
    sink.summarise(*report_of())
    sink.close()
    assert [tag for tag, _, _ in writer.texts[-2:]] == ["rldk/held_back", "rldk/summary"]
    assert "somebody" not in str(writer.texts)


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
        "rldk: nothing more goes to tensorboard (not done with 21 messages within 0.5 s). Training is not affected; all "
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


def test_a_writer_that_was_closed_still_hears_the_end():
    """The trainer closes TensorBoard's writer before the callbacks behind its own. Nothing of it is left open."""
    writers = [Closable()]
    sink = TrackerSink(["tensorboard"], lambda: writers)
    for step in range(MAX_MESSAGES + 5):
        sink.alert(alert(step=step))
    for _ in range(100):
        if sink.status()["tensorboard"]["sent"] == MAX_MESSAGES:
            break
        time.sleep(0.05)
    writer = writers.pop()
    writer.closed = True
    sink.summarise(*report_of())
    sink.close()
    assert [tag for tag, _, _ in writer.texts[MAX_MESSAGES:]] == ["rldk/held_back", "rldk/summary"]
    assert writer.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "rldk-tensorboard"]


def test_foreign_text_is_made_harmless():
    """A metric's name may hold anything; trackio prints to the terminal."""
    writer = Writer()
    sink = tensorboard_sink(writer)
    sink.alert(alert()._replace(message="\x1b[31mkl\n" + "x" * 10_000))
    sink.close()
    text = writer.texts[0][1]
    assert text.isprintable() and len(text) < 5_000
