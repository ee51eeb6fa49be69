"""However a run ends, its record says so, and nothing that was logged is lost."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import rldk
from rldk.lifecycle import Ending
from rldk.rebuild import KILLED, rebuild_run

TRAIN = """
import os, sys, zoo
from transformers import TrainerCallback
from rldk.integrations.trl import RLDKCallback

class Step(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            at_step_three(control)

{body}

callback = RLDKCallback(output_dir="logs", run_id="run", log_interval=0)
trainer = zoo.trainer("sft", "out", callbacks=[callback, Step()], max_steps=6, save_strategy="no")
{call}
"""


def report():
    return json.loads(Path("logs/run_final_report.json").read_text())


class TestEnds:
    def test_an_exception_that_nobody_catches(self, run_script):
        """The report says failed, with the exception's name and message."""
        done = run_script(TRAIN.format(
            body="def at_step_three(control): raise ValueError('bad batch\\nsecond line')", call="trainer.train()"))
        assert done.returncode == 1
        assert (report()["status"], report()["reason"]) == ("failed", "ValueError: bad batch")
        assert report()["metrics"]["loss"]["count"] == 2

    def test_an_exception_that_the_program_catches(self, run_script):
        """The program goes on; while it does, the report already says failed."""
        done = run_script(TRAIN.format(
            body="def at_step_three(control): raise ValueError('caught')",
            call="import json, time\ntry:\n    trainer.train()\nexcept ValueError:\n    pass\n"
                 "for _ in range(100):\n    time.sleep(0.1)\n"
                 "    if json.load(open('logs/run_final_report.json'))['status'] == 'failed':\n"
                 "        print('noticed')\n        break"))
        assert "noticed" in done.stdout
        assert report()["status"] == "failed"

    def test_ctrl_c(self, run_script):
        """A KeyboardInterrupt is a stop by a person, not a failure."""
        run_script(TRAIN.format(body="def at_step_three(control): raise KeyboardInterrupt", call="trainer.train()"))
        assert (report()["status"], report()["reason"]) == ("stopped", "KeyboardInterrupt")

    def test_an_early_stop(self, run_script):
        """A run that was asked to stop before its last step is stopped, and one that ended is completed."""
        run_script(TRAIN.format(
            body="def at_step_three(control): control.should_training_stop = True", call="trainer.train()"))
        assert report()["status"] == "stopped" and report()["totals"]["steps"] == 3

    def test_sigterm(self, run_script):
        """SIGTERM ends the process as it would have, and the report says why."""
        done = run_script(TRAIN.format(
            body="import signal\ndef at_step_three(control): os.kill(os.getpid(), signal.SIGTERM)",
            call="trainer.train()"))
        assert done.returncode == -signal.SIGTERM
        assert (report()["status"], report()["reason"]) == ("failed", "SIGTERM")

    def test_sigterm_that_someone_else_handles(self, run_script):
        """A handler that was there first decides; the run ends in its own way."""
        done = run_script(TRAIN.format(
            body="import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('mine'))\n"
                 "def at_step_three(control): os.kill(os.getpid(), signal.SIGTERM)",
            call="trainer.train()\nassert signal.getsignal(signal.SIGTERM).__name__ == '<lambda>'"))
        assert done.returncode == 0, done.stderr
        assert "mine" in done.stdout and report()["status"] == "completed"

    def test_while_it_runs(self, run_script):
        """The report says running from the first moment on."""
        run_script(TRAIN.format(
            body="import json\ndef at_step_three(control):\n"
                 "    print(json.load(open('logs/run_final_report.json'))['status'])\n    os._exit(9)",
            call="trainer.train()"))
        assert report()["status"] == "running"
        assert rebuild_run("logs")["status"] == "failed"

    def test_a_data_loader_worker_is_not_the_run(self, run_script):
        """A forked worker that gets SIGTERM does not end the run of its parent."""
        run_script(TRAIN.format(
            body="import signal\ndef at_step_three(control):\n"
                 "    child = os.fork()\n"
                 "    if child == 0:\n        os.kill(os.getpid(), signal.SIGTERM)\n        os._exit(0)\n"
                 "    assert os.waitpid(child, 0)[1] == signal.SIGTERM",
            call="trainer.train()"))
        assert report()["status"] == "completed"

    def test_sigterm_with_two_callbacks(self, run_script):
        """Each of several recorders of one process gets its word in."""
        done = run_script(TRAIN.format(
            body="import signal\ndef at_step_three(control): os.kill(os.getpid(), signal.SIGTERM)",
            call="trainer.add_callback(RLDKCallback(output_dir='logs', run_id='other'))\ntrainer.train()"))
        assert done.returncode == -signal.SIGTERM
        other = json.loads(Path("logs/other_final_report.json").read_text())
        assert report()["reason"] == other["reason"] == "SIGTERM"

    def test_sigterm_after_a_run_that_crashed(self, run_script):
        """A run whose exception was caught, and noticed by the watching thread, leaves no handler in the next one's way."""
        done = run_script(TRAIN.format(
            body="import signal, time\ndef at_step_three(control):\n"
                 "    if callback.run_id == 'first':\n        raise ValueError\n"
                 "    os.kill(os.getpid(), signal.SIGTERM)",
            call="first, callback = callback, RLDKCallback(output_dir='logs', run_id='first')\n"
                 "try:\n    zoo.trainer('sft', 'out', callbacks=[callback, Step()], save_strategy='no').train()\n"
                 "except ValueError:\n    pass\n"
                 "while callback.report['status'] == 'running':\n    time.sleep(0.1)\n"
                 "callback = first\ntrainer.train()"))
        assert done.returncode == -signal.SIGTERM, done.stderr
        assert (report()["status"], report()["reason"]) == ("failed", "SIGTERM")

    def test_a_training_inside_a_training(self, run_script):
        """A probe that is trained in a hook is a run of its own and does not end the outer one."""
        run_script(TRAIN.format(
            body="def at_step_three(control):\n"
                 "    inner = RLDKCallback(output_dir='logs', run_id='inner')\n"
                 "    zoo.trainer('sft', 'inner', callbacks=[inner], max_steps=2, save_strategy='no').train()",
            call="trainer.train()"))
        assert report()["status"] == "completed" and report()["totals"]["steps"] == 6
        assert json.loads(Path("logs/inner_final_report.json").read_text())["status"] == "completed"

    def test_an_evaluation_alone(self, run_script):
        """Without training the run is complete after each evaluation, and nothing of rldk's runs on."""
        done = run_script(TRAIN.format(
            body="import json, threading",
            call="for _ in range(2):\n    trainer.evaluate()\n"
                 "    print('status', json.load(open('logs/run_final_report.json'))['status'])\n"
                 "print([t.name for t in threading.enumerate() if 'rldk' in t.name])"))
        assert done.stdout.count("status completed") == 2 and "[]" in done.stdout
        assert report()["totals"]["events"] == {"eval": 2}


class _Walked:
    """Stands for a trainer whose `train()` spends its time in generators, deep down."""

    callback_handler = None

    def train(self, seconds):
        self.ending = Ending(lambda *end: self.ended.append(end), self)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended:
            for _ in self.deep(15):
                pass
        self.ending.release()

    def deep(self, levels):
        if levels:
            yield from self.deep(levels - 1)
        else:
            yield None


def test_a_running_training_is_never_taken_for_a_gone_one():
    """The stack is walked by another thread while it changes: a walk that was cut short says nothing."""
    trainer = _Walked()
    trainer.ended = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # as on a crowded machine: threads change places in the middle of a walk
    try:
        thread = threading.Thread(target=trainer.train, args=(0.5,))
        thread.start()
        while thread.is_alive():
            if hasattr(trainer, "ending"):
                trainer.ending.poll()
    finally:
        sys.setswitchinterval(interval)
    assert trainer.ended == []


KILLS = """
import json, os, random, signal, sys, time, zoo
from transformers import TrainerCallback
from rldk.integrations.trl import RLDKCallback

class Acknowledge(TrainerCallback):
    "Comes after rldk: what it writes has been recorded."
    def __init__(self, pipe):
        self.pipe = pipe
    def on_log(self, args, state, control, logs=None, **kwargs):
        os.write(self.pipe, f"{state.global_step}\\n".encode())

def train(folder, pipe):
    sys.stdout = open(os.devnull, "w")
    zoo.trainer("sft", folder + "/out", max_steps=100000, save_strategy="no", eval_strategy="no", callbacks=[
        RLDKCallback(output_dir=folder + "/logs", run_id="run", log_interval=0), Acknowledge(pipe)]).train()

moments = random.Random(20261121)
acknowledged = []
for attempt in range(20):
    reading, writing = os.pipe()
    child = os.fork()  # from a process that has imported everything: a run a second
    if child == 0:
        train(str(attempt), writing)
    os.close(writing)
    lines, wait_for = b"", moments.randint(1, 60)
    while lines.count(b"\\n") < wait_for:
        lines += os.read(reading, 65536)
    time.sleep(moments.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while block := os.read(reading, 65536):
        lines += block
    os.close(reading)
    acknowledged.append(lines.count(b"\\n"))
print(json.dumps(acknowledged))
"""


def test_sigkill_loses_nothing_that_was_logged(tmp_path, run_script):
    """SIGKILL at a random moment, 20 times: every event whose log call had returned is readable, and rebuilt."""
    done = run_script(KILLS, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert len(counts) == 20
    for attempt, acknowledged in enumerate(counts):
        df = rldk.ingest_runs(tmp_path / str(attempt) / "logs")
        assert df.step.tolist() == list(range(1, len(df) + 1))
        assert len(df) >= acknowledged > 0
        assert df.attrs["skipped_lines"] == 0
    report = rebuild_run(tmp_path / "19" / "logs")
    assert (report["status"], report["reason"]) == ("failed", KILLED)
    assert report["metrics"]["loss"]["count"] == len(df)


def test_rebuild_gives_what_the_live_run_gave(tmp_path, run_script):
    """Alerts, CSV and report made anew from the events are those of the live run."""
    done = run_script("""
import math, zoo
from transformers import TrainerCallback
from rldk.integrations.trl import RLDKCallback

class Odd(RLDKCallback):
    def on_log(self, args, state, control, logs, **kwargs):
        logs["odd"] = math.nan if 3 <= state.global_step < 5 else 1.0
        logs["kl"] = float(state.global_step)
        super().on_log(args, state, control, logs, **kwargs)

zoo.trainer("kto", "out", max_steps=8, callbacks=[Odd(output_dir="logs", run_id="run", log_interval=0,
            alert_thresholds={"kl_divergence": 5, "gradient_norm": 1e-9})]).train()
""")
    assert done.returncode == 0, done.stderr
    alerts = json.loads(Path("logs/run_alerts.json").read_text())
    assert {alert["code"] for alert in alerts} == {"non_finite", "kl_divergence", "gradient_norm"}
    assert next(alert for alert in alerts if alert["code"] == "non_finite")["resolved_step"] is not None
    rebuilt = rebuild_run(
        "logs", output_dir="again", alert_thresholds={"kl_divergence": 5, "gradient_norm": 1e-9})
    assert json.loads(Path("again/run_alerts.json").read_text()) == alerts
    assert Path("again/run_metrics.csv").read_text() == Path("logs/run_metrics.csv").read_text()
    live = report()
    assert rebuilt["metrics"] == live["metrics"] and rebuilt["alerts"] == live["alerts"]
    assert rebuilt["coverage"] == live["coverage"]


def test_rebuild_of_nothing(tmp_path):
    """No stream, an empty one and two streams are errors that say what was looked for."""
    with pytest.raises(rldk.exceptions.NoLogsError, match="no logs in folder"):
        rebuild_run(tmp_path)
    (tmp_path / "a_events.jsonl").write_text("\n")
    with pytest.raises(rldk.exceptions.EmptyLogError, match="no event"):
        rebuild_run(tmp_path)
    (tmp_path / "b_events.jsonl").write_text("\n")
    with pytest.raises(rldk.exceptions.NoLogsError, match="holds 2 streams"):
        rebuild_run(tmp_path)
