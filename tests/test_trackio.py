"""rldk.trackio: a logger that cannot end a run, with the real trackio, real servers, and what people pass to loggers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from trackio_server import TOKEN, TrackioServer

import rldk
from rldk.replay import replay
from rldk.session import Session

ROOT = Path(__file__).resolve().parents[1]


def lines(folder, run_id):
    return [json.loads(line) for line in (folder / f"{run_id}_events.jsonl").read_text().splitlines()]


def report(folder, run_id):
    return json.loads((folder / f"{run_id}_final_report.json").read_text())


def rows(folder, project, table="metrics"):
    """What trackio itself has kept: step and metrics of each row."""
    with sqlite3.connect(folder / f"{project}.db") as connection:
        if table == "metrics":
            found = connection.execute("select step, metrics from metrics order by id").fetchall()
            return [(step, json.loads(metrics)) for step, metrics in found]
        return connection.execute(f"select * from {table}").fetchall()


@pytest.fixture
def script(run_script, tmp_path):
    """Runs a script with trackio's folder in the test's own; fails with its output if it does not end well."""

    def run(source, *arguments, ok=True, **environment):
        done = run_script(
            "import logging; logging.basicConfig(level='WARNING', format='%(levelname)s %(message)s')\n"
            "import rldk.trackio as trackio\n" + source,
            *arguments, TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE=environment.pop("HF_HUB_OFFLINE", "1"),
            **environment,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def silent_server():
    """An address that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept():
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


# A run by hand

RUN = """
run_id = trackio.init(project="ppo", name="first", config={"learning_rate": 1e-5, "api_key": "sk-abcdefghijklmnopqrstuv"})
assert run_id == "first", run_id
trackio.config.update({"beta": 0.1}, allow_val_change=True, seed=42)
trackio.config.note = "by attribute"
assert trackio.config["beta"] == 0.1 and trackio.config.seed == 42
for step in range(0, 100, 10):
    trackio.log({"loss": 2.0 - step / 100, "learning_rate": 1e-5, "reward": step / 100, "my/metric": step}, step=step)
trackio.log_evaluation_results({"loss": 1.5, "accuracy": 0.5})
trackio.log_checkpoint("checkpoint-90", step=90, metrics={"score": 0.7})
trackio.log({"loss": float("nan"), "learning_rate": float("inf")}, step=100)
trackio.finish()
trackio.finish()
print(trackio.get_monitor().report["status"], [alert.code for alert in trackio.get_monitor().alerts])
"""


def test_a_run_is_recorded_judged_and_in_trackio(script, tmp_path):
    """One log call is an event of rldk's and a row of trackio's, both with the caller's step; NaN is an alert in both."""
    done = script(RUN)
    assert "completed ['non_finite'" in done.stdout
    events = lines(tmp_path / "rldk_logs", "first")
    train = [event for event in events if event["model_info"]["phase"] == "train"]
    assert [event["step"] for event in train] == [*range(0, 100, 10), 100]
    assert train[0]["metrics"]["lr"] == 1e-5 and train[0]["metrics"]["reward_mean"] == 0.0
    assert train[-1]["nonfinite"] == {"loss": "nan", "lr": "inf"}
    (evaluation,) = [event for event in events if event["model_info"]["phase"] == "eval"]
    assert evaluation["metrics"] == {"eval_loss": 1.5, "eval_accuracy": 0.5} and evaluation["step"] == 90
    (checkpoint,) = [event for event in events if event["model_info"]["phase"] == "checkpoint"]
    assert checkpoint["metrics"] == {"score": 0.7} and checkpoint["notes"] == ["checkpoint checkpoint-90"]
    kept = rows(tmp_path / "trackio", "ppo")
    assert [step for step, row in kept if "loss" in row] == [*range(0, 100, 10), 100]
    assert kept[3][1]["my/metric"] == 30
    assert [row for _, row in kept if row.get("eval/loss") == 1.5]
    alerts = rows(tmp_path / "trackio", "ppo", "alerts")
    assert any("non_finite" in str(alert) for alert in alerts)


@pytest.mark.matrix
def test_with_whichever_trackio_there_is(script, tmp_path):
    """The newest, one from a year before, or none at all: the same record, and trackio has its rows where there is one."""
    done = script(RUN)
    assert "completed ['non_finite'" in done.stdout
    events = lines(tmp_path / "rldk_logs", "first")
    assert [event["step"] for event in events if "loss" in event["metrics"]] == [*range(0, 100, 10), 100]
    if importlib.util.find_spec("trackio") is None:
        assert not (tmp_path / "trackio").exists() and "WARNING" not in done.stderr
    else:
        assert [step for step, row in rows(tmp_path / "trackio", "ppo") if "loss" in row] == [*range(0, 100, 10), 100]


def test_the_configuration_is_in_both_records_without_secrets(script, tmp_path):
    """What was configured before, in and after init; a key is in neither of rldk's files."""
    script("trackio.config.update({'early': 1})\n" + RUN)
    manifest = json.loads((tmp_path / "rldk_logs" / "first_run.json").read_text())
    assert {"early": 1, "beta": 0.1, "seed": 42, "note": "by attribute"}.items() <= manifest["arguments"].items()
    assert "sk-abcdefgh" not in json.dumps(manifest)
    configs = str(rows(tmp_path / "trackio", "ppo", "configs"))
    assert "beta" in configs and "early" in configs


def test_memory_and_speed_are_measured_and_sent_along(script, tmp_path):
    """What nobody logs by hand is in the events, and in trackio under rldk/."""
    script(
        "import time\ntrackio.init(project='p', name='slow')\n"
        "for step in range(5):\n    time.sleep(0.6)\n    trackio.log({'loss': 1.0, 'num_tokens': 100.0 * (step + 1)}, step=step)\n"
        "trackio.finish()\n"
    )
    last = lines(tmp_path / "rldk_logs", "slow")[-1]["metrics"]
    assert 0.5 < last["steps_per_second"] < 2 and 50 < last["tokens_per_second"] < 200
    assert any("memory_bytes" in event["metrics"] for event in lines(tmp_path / "rldk_logs", "slow"))
    kept = [row for _, row in rows(tmp_path / "trackio", "p")]
    assert kept[-1]["rldk/steps_per_second"] == pytest.approx(last["steps_per_second"])


def test_older_arguments_and_the_environment(script, tmp_path):
    """project_name and experiment_name, and no argument at all."""
    script(
        "import os\n"
        "assert trackio.init(project_name='old', experiment_name='e1', trackio_token='t', hf_token='hf_x') == 'e1'\n"
        "trackio.log({'loss': 1.0})\ntrackio.finish()\n"
        "os.environ['TRACKIO_PROJECT'] = 'from-env'\nrun_id = trackio.init()\nassert run_id.startswith('from-env-'), run_id\n"
        "trackio.log({'loss': 1.0})\ntrackio.finish()\n",
        RLDK_OUTPUT_DIR=str(tmp_path / "elsewhere"),
    )
    assert (tmp_path / "trackio" / "old.db").exists() and (tmp_path / "trackio" / "from-env.db").exists()
    assert len(list((tmp_path / "elsewhere").glob("*_events.jsonl"))) == 2


def test_a_resumed_run_goes_on_in_one_record(script, tmp_path):
    """resume="allow": the same files, the clock goes on, and what the resume made void is not read back."""
    script("trackio.init(project='p', name='r')\nfor s in range(10): trackio.log({'loss': 1.0}, step=s)\ntrackio.finish()\n")
    script("print(trackio.init(project='p', name='r', resume='allow'))\n"
           "for s in range(6, 12): trackio.log({'loss': 2.0}, step=s)\ntrackio.finish()\n")
    frame = rldk.ingest_runs(tmp_path / "rldk_logs")
    assert list(frame.step[frame.loss.notna()]) == list(range(12)) and list(frame.run_id.unique()) == ["r"]
    assert list(frame.loss.dropna())[5:7] == [1.0, 2.0]
    assert frame.wall_time.is_monotonic_increasing


# Nothing ends the run

HOSTILE = """
import math, threading
class Breaks:
    def __float__(self): raise RuntimeError("no")
    def __str__(self): raise RuntimeError("no")
    __repr__ = __str__
class BrokenMapping(dict):
    def items(self): raise KeyError("items")
def everything():
    trackio.log({"loss": 1.0})
    trackio.log({"loss": 1.0}, step="seven")
    trackio.log({"loss": 1.0}, step=2.5)
    trackio.log({"loss": 1.0}, step=float("nan"))
    trackio.log({"loss": 1.0}, step=10 ** 40)
    trackio.log({})
    trackio.log(None)
    trackio.log()
    trackio.log([1, 2])
    trackio.log({"a": 1}, {"b": 2}, 3, 4)
    trackio.log(BrokenMapping(loss=1.0))
    trackio.log({3: 4, None: 5, ("a",): 6, "": 7, "\\x1b[31m": 8, "=cmd()": 9, "x" * 100_000: 1})
    trackio.log({"text": "x", "list": [1, 2], "dict": {"a": 1}, "set": {1}, "none": None, "bool": True, "bytes": b"x",
                 "breaks": Breaks(), "huge": 10 ** 400, "lock": threading.Lock(), "function": everything, "\\ud800": 1.0})
    trackio.log({"nested": {"deep": {"deeper": [float("nan")]}}}, step=-5)
    trackio.log_config(None)
    trackio.log_config(3)
    trackio.log_config({"breaks": Breaks(), "lock": threading.Lock(), 5: 6})
    trackio.config.update(None)
    trackio.config.update(3, [4])
    trackio.config.lock = threading.Lock()
    trackio.log_checkpoint()
    trackio.log_checkpoint("no such folder")
    trackio.log_checkpoint(3, "x", metrics=7)
    trackio.log_evaluation_results({"loss": "x"})
    trackio.log_evaluation_results(None)
    trackio.log_evaluation_results({"eval_loss": 1.0}, step="last", more=Breaks())
    trackio.get_experiment_url(); trackio.is_available(); trackio.get_monitor()
    trackio.get_experiment_url(1); trackio.is_available(2); trackio.get_monitor(3)
everything()
assert trackio.get_monitor() is None and trackio.get_experiment_url() is None
trackio.finish(); trackio.finish("never heard of"); trackio.finish(1, 2, 3)
for arguments in (dict(project=3, name=4), dict(name="../../etc/passwd"), dict(name="a" * 500), dict(config="x"), dict(config=Breaks()),
                  dict(alert_thresholds={"nonsense": 1}), dict(tags=3), dict(output_dir=7), dict(resume="perhaps"), dict(nonsense=1),
                  dict(resume="must", name="never was"), dict(server_url="no url"), dict(project="../x"), dict(hub_dataset_id="a/b/c/d")):
    run_id = trackio.init(**arguments)
    everything()
    assert isinstance(run_id, str)
    trackio.finish()
trackio.init(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
trackio.init("p", "last")
everything()
trackio.finish()
everything()
print("to the end")
"""


def test_every_function_is_total(script, tmp_path):
    """Before init, after finish, with what no logger expects: nothing is raised, and the record is valid JSON."""
    done = script(HOSTILE)
    assert "to the end" in done.stdout
    for path in (tmp_path / "rldk_logs").glob("*_events.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    assert not (tmp_path / "etc").exists() and not (tmp_path.parent / "etc").exists()
    assert report(tmp_path / "rldk_logs", "last")["status"] == "completed"


def test_a_million_metrics(script, tmp_path):
    """In one call, and over many: the run goes on, and what was left out is said."""
    done = script(
        "import resource\ntrackio.init(project='p', name='many')\ntrackio.log({f'm{i}': float(i) for i in range(1_000_000)}, step=0)\n"
        "trackio.log({'loss': 1.0}, step=1)\n"
        "for i in range(20_000): trackio.log({f'step_{i}': 1.0}, step=i)\ntrackio.finish()\n"
        "print('took', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MB')\n"
    )
    assert int(re.search(r"took (\d+) MB", done.stdout)[1]) < 4000, done.stdout
    ended = report(tmp_path / "rldk_logs", "many")
    assert ended["status"] == "completed" and "10000 distinct metric names" in json.dumps(ended["skipped_values"])


@pytest.mark.parametrize("place", ["rldk", "trackio", "both"])
def test_nowhere_to_write(script, tmp_path, place):
    """A folder that cannot be made: the other record is whole, and one line says so."""
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "folder")
    environment = {}
    if place != "trackio":
        environment["RLDK_OUTPUT_DIR"] = nowhere
    elsewhere = nowhere if place != "rldk" else str(tmp_path / "trackio")
    done = script(
        f"import os\nos.environ['TRACKIO_DIR'] = {elsewhere!r}\ntrackio.init(project='p', name='n')\n"
        "for s in range(20): trackio.log({'loss': 1.0}, step=s)\ntrackio.finish()\nprint('to the end')\n", **environment,
    )
    assert "to the end" in done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("WARNING rldk")]
    assert len(said) == (0 if place == "trackio" else 1), done.stderr
    assert ("trackio failed to flush" in done.stderr) is (place != "rldk")  # trackio says its own
    if place == "trackio":
        assert len(lines(tmp_path / "rldk_logs", "n")) == 20
    if place == "rldk":
        assert len([row for _, row in rows(tmp_path / "trackio", "p") if "loss" in row]) == 20


def test_processes_beside_the_first_record_nothing(script, tmp_path):
    """With RANK set, as torchrun does, only rank 0 has a run."""
    script("assert trackio.init(project='p', name='n') == ''\ntrackio.log({'loss': 1.0})\ntrackio.finish()\n", RANK="1")
    assert not (tmp_path / "rldk_logs").exists() and not (tmp_path / "trackio" / "p.db").exists()


def test_two_runs_of_one_name_at_once(tmp_path):
    """Two processes, one name, one folder: two whole records."""
    code = (
        "import sys, rldk.trackio as trackio\nprint(trackio.init(project='p', name='same'), flush=True)\nsys.stdin.readline()\n"
        "for s in range(200): trackio.log({'loss': float(sys.argv[1])}, step=s)\ntrackio.finish()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "trackio")}
    both = [
        subprocess.Popen([sys.executable, "-c", code, number], cwd=tmp_path, env=environment, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in "12"
    ]
    outputs = [process.communicate("go\n", timeout=120) for process in both]
    assert all(process.returncode == 0 for process in both), outputs
    assert sorted(path.name for path in (tmp_path / "rldk_logs").glob("*_events.jsonl")) == [
        "same-2_events.jsonl", "same_events.jsonl",
    ]
    for run_id in ("same", "same-2"):
        events = lines(tmp_path / "rldk_logs", run_id)
        assert len(events) == 200 and len({event["metrics"]["loss"] for event in events}) == 1


def test_each_row_has_the_step_that_was_given(script, tmp_path):
    """Of texts alone too, which are no event; and with eight threads at once."""
    script("""
import concurrent.futures
trackio.init(project="p", name="n")
trackio.log({"sample": "text"}, step=10)
trackio.log({"loss": 1.0})
trackio.log_evaluation_results({"sample": "text"}, step=30)
trackio.log_checkpoint("c", step=40)
trackio.finish()
trackio.init(project="threads", name="t")
def speak(k):
    for s in range(200): trackio.log({f"m{k}": float(s)}, step=s)
with concurrent.futures.ThreadPoolExecutor(8) as pool: list(pool.map(speak, range(8)))
trackio.finish()
trackio.init(project="threads", name="t", resume="must")
with concurrent.futures.ThreadPoolExecutor(8) as pool: list(pool.map(lambda k: trackio.log({f"m{k}": 200.0}, step=200), range(8)))
trackio.finish()
""")
    assert [step for step, _ in rows(tmp_path / "trackio", "p")] == [10, 11, 30, 40]
    kept = [(step, value) for step, row in rows(tmp_path / "trackio", "threads") for name, value in row.items() if name[0] == "m"]
    assert len(kept) == 1608 and all(step == value for step, value in kept)
    events = lines(tmp_path / "rldk_logs", "t")
    assert len([event for event in events if any(name[:1] == "m" and name[1:].isdigit() for name in event["metrics"])]) == 1608
    assert len([event for event in events if event["notes"]]) == 1  # it went on once


def test_a_configuration_with_private_names(script, tmp_path):
    """`config=vars(args)`: trackio refuses a run for one name with an underscore in front."""
    script("trackio.init(project='p', name='n', config={'_n_gpu': 1, 'lr': 2})\ntrackio.config.update({'_private': 1, 'seed': 3})\n"
           "trackio.log({'loss': 1.0}, step=4)\ntrackio.finish()\n")
    assert [step for step, _ in rows(tmp_path / "trackio", "p")] == [4]
    configs = str(rows(tmp_path / "trackio", "p", "configs"))
    assert "seed" in configs and "_n_gpu" not in configs
    assert {"_n_gpu": 1, "lr": 2}.items() <= json.loads((tmp_path / "rldk_logs" / "n_run.json").read_text())["arguments"].items()


def test_a_run_of_somebody_elses_in_trackio_goes_on(script, tmp_path):
    """A trainer with report_to="trackio", and a callback with this logger: each has its rows, and neither ends the other."""
    script("""
import trackio as real
theirs = real.init(project="theirs", name="t")
trackio.init(project="mine", name="m", config={"lr": 1})
assert real.context_vars.current_run.get() is theirs and real.config is theirs.config
real.log({"loss": 1.0})
trackio.log({"loss": 2.0}, step=7)
trackio.finish()
real.log({"loss": 3.0})
real.finish()
""")
    assert [row["loss"] for _, row in rows(tmp_path / "trackio", "theirs")] == [1.0, 3.0]
    assert [step for step, row in rows(tmp_path / "trackio", "mine") if "loss" in row] == [7]


def test_a_wrong_setting_costs_itself_alone(script, tmp_path):
    """The folder, the labels and the configuration stay as they were asked for."""
    done = script(
        "run_id = trackio.init(name='n', output_dir='mine', tags=['mine'], config={'a': 1}, alert_thresholds={'nonsense': 1},\n"
        "    hub_dataset_id='a/b/c/d', hf_token=3, log_interval='often')\n"
        "trackio.log({'loss': 1.0})\ntrackio.finish()\nassert run_id == 'n'\n"
        "assert trackio.init(name='\u6a21' * 100, output_dir='a\\0b') and trackio.log({'loss': 1.0}) is None\ntrackio.finish()\n"
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("WARNING rldk")]
    assert len(said) == 2 and "without alert_thresholds=" in said[0] + said[1] and "without hub_dataset_id=" in said[0] + said[1]
    manifest = json.loads((tmp_path / "mine" / "n_run.json").read_text())
    assert manifest["arguments"] == {"a": 1} and manifest["tags"] == ["mine"]
    assert len(list((tmp_path / "rldk_logs").glob("*_final_report.json"))) == 1  # the long name, cut to what a file may have


@pytest.mark.matrix
def test_what_trackio_cannot_write_costs_itself_alone(script, tmp_path):
    """Tensors of one number arrive as numbers. An array ends the thread of older versions, and every row with it."""
    pytest.importorskip("trackio")
    script("""
import numpy, torch
given = {"loss": torch.tensor(1.5, requires_grad=True), "one": numpy.array([2.0]), "many": numpy.ones(3), "tensor": torch.ones(3),
         "huge": 10 ** 400, "set": {1}, "text": "t", 5: 1.0}
before = dict(given)
trackio.init(project="p", name="n")
trackio.log(given, step=0)
assert list(given) == list(before) and all(given[name] is before[name] for name in before)
trackio.log({"loss": 1.0}, step=1)
trackio.finish()
""")
    (zero, first), (one, second) = rows(tmp_path / "trackio", "p")
    assert (zero, one, second["loss"]) == (0, 1, 1.0)
    assert {"loss": 1.5, "one": 2.0, "text": "t", "5": 1.0}.items() <= first.items()


# How it ends

def test_an_exception_ends_the_record_as_failed(script, tmp_path):
    """Nobody calls finish: the report says what happened, and trackio has the rows."""
    script("trackio.init(project='p', name='n')\nfor s in range(9): trackio.log({'loss': 1.0}, step=s)\n"
           "raise ValueError('the user\\'s own')\n", ok=False)
    ended = report(tmp_path / "rldk_logs", "n")
    assert ended["status"] == "failed" and "the user's own" in ended["reason"]
    assert len([row for _, row in rows(tmp_path / "trackio", "p") if "loss" in row]) == 9


def test_a_program_that_ends_without_a_word(script, tmp_path):
    """No exception and no finish: stopped, with everything in it."""
    script("trackio.init(project='p', name='n')\nfor s in range(9): trackio.log({'loss': 1.0}, step=s)\n")
    ended = report(tmp_path / "rldk_logs", "n")
    assert ended["status"] == "stopped" and ended["totals"]["events"] == {"train": 9}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_killed_run_keeps_what_was_logged(tmp_path, how):
    """SIGTERM leaves a report, SIGKILL every event, from which one is made."""
    code = (
        "import time, rldk.trackio as trackio\ntrackio.init(project='p', name='n')\n"
        "for s in range(50): trackio.log({'loss': 1.0}, step=s)\nprint('logged', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "trackio")},
    )
    while process.stdout.readline().strip() not in ("logged", ""):  # trackio speaks first
        continue
    process.send_signal(getattr(signal, how))
    process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    assert len(lines(tmp_path / "rldk_logs", "n")) == 50
    if how == "SIGKILL":
        rldk.rebuild_run(tmp_path / "rldk_logs" / "n_events.jsonl")
    ended = report(tmp_path / "rldk_logs", "n")
    assert ended["status"] == "failed" and ended["totals"]["events"] == {"train": 50}


@pytest.mark.parametrize(("raised", "how", "status"), [
    ("ValueError('boom')", "finally:\n        trackio.finish()", "failed"),
    ("KeyboardInterrupt", "finally:\n        trackio.finish()", "stopped"),
    ("SystemExit(0)", "finally:\n        trackio.finish()", "completed"),
    ("ValueError('boom')", "except ValueError:\n        trackio.finish('completed')", "completed"),
], ids=["exception", "Ctrl-C", "exit", "said"])
def test_finish_while_an_exception_is_on_its_way(script, tmp_path, raised, how, status):
    """try, finally, finish: a run that broke has not completed, whoever calls finish."""
    script(
        "try:\n    import no_such_module\nexcept ImportError:\n  try:\n    try:\n"  # a whole program may stand in an except
        "        trackio.init(project='p', name='n')\n        trackio.log({'loss': 1.0})\n"
        f"        raise {raised}\n    {how}\n  except BaseException as error:\n    print(repr(error))\n"
        "  trackio.init(project='p', name='after')\n  trackio.log({'loss': 1.0})\n  trackio.finish()\n",
    )
    ended = report(tmp_path / "rldk_logs", "n")
    assert ended["status"] == status and (status != "failed" or ended["reason"] == "ValueError: boom")
    assert report(tmp_path / "rldk_logs", "after")["status"] == "completed"


def test_an_error_before_the_run_is_not_its_own(script, tmp_path):
    """In a notebook, a cell that failed an hour ago."""
    script("import sys\nsys.last_value = NameError('an hour ago')\ntrackio.init(project='p', name='n')\ntrackio.log({'loss': 1.0})\n")
    assert report(tmp_path / "rldk_logs", "n")["status"] == "stopped"


def test_ctrl_c_while_finish_waits(tmp_path, monkeypatch):
    """The report is there all the same."""
    session = Session("r", tmp_path)
    session.log({"loss": 1.0})

    def impatient(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session._checkpoints, "finish", impatient)
    with pytest.raises(KeyboardInterrupt):
        session.finish()
    assert report(tmp_path, "r")["status"] == "completed" and (tmp_path / "r_report.html").exists()


def test_a_forked_process_has_no_part_in_the_run(script, tmp_path):
    """Workers that log, fail, are ended, or have a run of their own: the parent's goes on, with its own events alone."""
    done = script("""
import json, multiprocessing, os, signal, sys, time
trackio.init(project="p", name="n")
for s in range(5): trackio.log({"loss": 1.0}, step=s)
def logs():
    trackio.log({"loss": 99.0}); trackio.log_checkpoint("x"); trackio.config.update({"child": 1}); trackio.finish()
    trackio.get_monitor().log({"loss": 99.0}); trackio.get_monitor().finish()
def fails(): raise SystemExit(3)
def is_ended(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)
def has_its_own():
    trackio.init(project="child", name="own"); trackio.log({"loss": 2.0}, step=7); trackio.finish()
    assert trackio.get_monitor().report["status"] == "completed"
for work, code in ((logs, 0), (fails, 3), (is_ended, -15), (has_its_own, 0)):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start(); process.join(60)
    assert process.exitcode == code, (work, process.exitcode)
    with open("rldk_logs/n_final_report.json") as file: assert json.load(file)["status"] == "running", work
if os.fork() == 0:
    sys.exit(0)  # with what is registered for the interpreter's exit
os.wait()
for s in range(5, 10): trackio.log({"loss": 1.0}, step=s)
trackio.finish()
""")
    assert "in a process forked from the run's" in done.stderr
    assert [event["step"] for event in lines(tmp_path / "rldk_logs", "n")] == list(range(10))
    assert report(tmp_path / "rldk_logs", "n")["status"] == "completed"
    assert "child" not in json.loads((tmp_path / "rldk_logs" / "n_run.json").read_text())["arguments"]
    assert [event["step"] for event in lines(tmp_path / "rldk_logs", "own")] == [7]
    assert [step for step, _ in rows(tmp_path / "trackio", "p")] == list(range(10))


# Servers and Spaces

def test_a_space_that_never_answers_costs_the_limit_and_no_row(script, tmp_path, silent_server):
    """A Space: trackio itself hangs for ever there. One warning, and its rows are kept on this machine."""
    began = time.monotonic()
    done = script(
        "trackio.init(project='p', name='n', space_id='me/space', hf_token='hf_x')\nassert trackio.get_experiment_url() is None\n"
        "for s in range(20): trackio.log({'loss': 1.0}, step=s)\ntrackio.finish()\nprint('to the end')\n",
        HF_ENDPOINT=silent_server, HF_HUB_OFFLINE="0", RLDK_TRACKIO_TIMEOUT="4",
    )
    assert "to the end" in done.stdout and time.monotonic() - began < 60
    said = [line for line in done.stderr.splitlines() if line.startswith("WARNING rldk")]
    assert len(said) == 1 and "no answer within 4 s" in said[0] and "rldk_logs" in said[0], done.stderr
    assert len([row for _, row in rows(tmp_path / "trackio", "p") if "loss" in row]) == 20
    assert len(lines(tmp_path / "rldk_logs", "n")) == 20


@pytest.mark.parametrize(("asked", "environment"), [
    ({"space_id": "me/space"}, {}),
    ({"space_id": "space"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}),
    ({"server_url": "http://127.0.0.1:9"}, {}),
    ({"server_url": "http://127.0.0.1:9", "trackio_token": "t"}, {}),
    ({}, {"TRACKIO_SPACE_ID": "me/space"}),
    ({}, {"TRACKIO_SERVER_URL": "not-a-url"}),
], ids=["offline", "no token", "server without token", "server refuses", "Space in the environment", "no address"])
def test_what_cannot_be_reached_keeps_its_rows_here(script, tmp_path, asked, environment):
    """Each trains to the end with its rows in trackio's own folder and in rldk's record."""
    done = script(
        f"trackio.init(project='p', name='n', **{asked!r})\n"
        "for s in range(20): trackio.log({'loss': 1.0}, step=s)\ntrackio.finish()\nprint('to the end')\n",
        **environment,
    )
    assert "to the end" in done.stdout
    assert len([row for _, row in rows(tmp_path / "trackio", "p") if "loss" in row]) == 20
    assert len(lines(tmp_path / "rldk_logs", "n")) == 20
    assert len([line for line in done.stderr.splitlines() if line.startswith("WARNING rldk")]) <= 1, done.stderr


def test_a_real_server_receives_a_run_of_a_real_trainer(run_script, tmp_path):
    """report_to="trackio" and RLDKCallback: metrics, steps and alerts are read back from the server over HTTP."""
    with TrackioServer(tmp_path / "server") as server:
        done = run_script(
            "import zoo\nfrom rldk import RLDKCallback\n"
            "callback = RLDKCallback('logs', run_id='mine', alert_thresholds={'gradient_norm': 1e-9})\n"
            "zoo.trainer('sft', 'out', max_steps=6, logging_steps=2, report_to='trackio', project='srv', run_name='run',\n"
            "            callbacks=[callback]).train()\n",
            TRACKIO_DIR=str(tmp_path / "client"), TRACKIO_SERVER_URL=server.url, TRACKIO_WRITE_TOKEN=TOKEN,
        )
        assert done.returncode == 0, done.stderr
        own = rldk.ingest_runs(tmp_path / "logs")
        own = own[(own.phase == "train") & own.loss.notna()]

        def losses():
            found = server.ask("get_metric_values", project="srv", run="run", metric_name="train/loss")
            return found if len(found or ()) >= 3 else None

        sent = server.until(losses)
        assert [row["value"] for row in sent] == pytest.approx(list(own.loss))
        logs = [row for row in server.ask("get_logs", project="srv", run="run") if "train/loss" in row]
        assert [row["train/global_step"] for row in logs] == list(own.step)
        alerts = server.until(lambda: server.ask("get_alerts", project="srv"))
        assert any("gradient_norm" in alert["title"] for alert in alerts)


def test_a_server_that_hangs_does_not_hold_up_the_end(tmp_path):
    """After an exception: the five seconds that are documented, though trackio itself waits for thirty at exit; no row is lost."""
    server = TrackioServer(tmp_path / "server").start()
    code = (
        "import sys, rldk.trackio as trackio\ntrackio.init(project='srv', name='run')\ntrackio.log({'loss': 1.0}, step=0)\n"
        "print('first', flush=True)\nsys.stdin.readline()\nfor s in range(1, 50): trackio.log({'loss': 1.0}, step=s)\n"
        "raise ValueError('boom')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "client"),
             "TRACKIO_SERVER_URL": server.url, "TRACKIO_WRITE_TOKEN": TOKEN},
    )
    try:
        while (line := process.stdout.readline()) and line.strip() != "first":
            continue
        server.until(lambda: server.ask("get_metric_values", project="srv", run="run", metric_name="loss"))
        os.killpg(server.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        _, errors = process.communicate("go\n", timeout=120)
        assert time.monotonic() - began < 15, errors
        assert report(tmp_path / "rldk_logs", "run")["status"] == "failed"
        kept = {step for path in (tmp_path / "client").glob("*.db") for step, row in rows(path.parent, path.stem) if "loss" in row}
        assert set(range(1, 50)) <= kept
    finally:
        server.kill()
        if process.poll() is None:
            process.kill()


@pytest.mark.matrix
def test_an_older_trackio_that_hangs_while_it_sends(script, tmp_path):
    """0.20 holds a lock that each log call waits for: one call costs the limit, and trackio gets nothing more."""
    pytest.importorskip("trackio")
    done = script(
        "import sys, time\ntrackio.init(project='p', name='n')\nrun = trackio._run.tracker.run\n"
        "if hasattr(run, '_queue_lock'): print('newer'); sys.exit()\n"
        "run._client_lock.acquire()\nbegan = time.monotonic()\nfor s in range(20): trackio.log({'loss': 1.0}, step=s)\n"
        "print('took', time.monotonic() - began)\ntrackio.finish()\n", RLDK_TRACKIO_TIMEOUT="2",
    )
    if "newer" not in done.stdout:
        assert 1.5 < float(re.search(r"took ([\d.]+)", done.stdout)[1]) < 5
        assert "trackio failed and gets nothing more" in done.stderr
        assert len(lines(tmp_path / "rldk_logs", "n")) == 20


def test_a_server_killed_and_restarted_loses_nothing_here(tmp_path):
    """The record is whole whatever the server does; and trackio keeps what it could not send."""
    server = TrackioServer(tmp_path / "server").start()
    code = (
        "import sys, rldk.trackio as trackio\ntrackio.init(project='srv', name='run')\n"
        "def speak(steps):\n    for s in steps: trackio.log({'loss': 1.0 + s}, step=s)\n"
        "speak(range(50))\nprint('first', flush=True)\nsys.stdin.readline()\nspeak(range(50, 100))\nprint('second', flush=True)\n"
        "sys.stdin.readline()\nspeak(range(100, 150))\ntrackio.finish()\nprint('done', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "client"),
             "TRACKIO_SERVER_URL": server.url, "TRACKIO_WRITE_TOKEN": TOKEN},
    )

    def heard(word):
        while (line := process.stdout.readline()) and line.strip() != word:
            continue

    try:
        heard("first")
        server.until(lambda: server.ask("get_metric_values", project="srv", run="run", metric_name="loss"))
        server.kill()
        process.stdin.write("go\n")
        process.stdin.flush()
        heard("second")
        server.start()
        _, errors = process.communicate("go\n", timeout=180)
        assert process.returncode == 0, errors
        assert [event["step"] for event in lines(tmp_path / "rldk_logs", "run")] == list(range(150))
        arrived = {row["step"] for row in server.ask("get_metric_values", project="srv", run="run", metric_name="loss")}
        waiting = {step for path in (tmp_path / "client").glob("*.db") for step, row in rows(path.parent, path.stem) if "loss" in row}
        assert arrived | waiting == set(range(150)), (len(arrived), len(waiting))
    finally:
        server.kill()
        if process.poll() is None:
            process.kill()


# The session below it

def test_a_session_by_hand(tmp_path):
    """What accelerate's tracker and the module stand on, without trackio."""
    session = Session("a run/with: signs", tmp_path)
    for step in range(5):
        session.log({"train/loss": 1.0, "train/global_step": step * 10})
    session.log({"eval/loss": 2.0})
    ended = session.finish()
    assert session.run_id == "a run-with- signs" and ended["totals"]["events"] == {"train": 5, "eval": 1}
    assert [event["step"] for event in lines(tmp_path, session.run_id)] == [0, 10, 20, 30, 40, 41]
    assert session.finish() == ended and session.log({"loss": 1.0}) is None


def test_logs_of_a_trl_trainer_mean_what_they_mean_there(tmp_path):
    """The names tell the trainer; its own names then become canonical."""
    session = Session("r", tmp_path)
    for step in range(1, 4):
        session.log({"train/reward": 0.5, "train/reward_std": 0.1, "train/kl": 0.01, "train/frac_reward_zero_std": 0.0,
                     "train/completions/mean_length": 10.0, "train/global_step": step})
    session.finish()
    assert session.trainer == "grpo"
    assert {"reward_mean", "kl_mean", "frac_zero_std", "length_mean"} <= lines(tmp_path, "r")[0]["metrics"].keys()
    assert report(tmp_path, "r")["trainer"]["family"] == "grpo" if isinstance(report(tmp_path, "r")["trainer"], dict) else True


def test_no_value_is_lost_to_a_prefix(tmp_path):
    """`train/loss` beside `loss`: the second keeps the name, and the first its own. The step is not a metric as well."""
    session = Session("r", tmp_path)
    given = {"train/loss": 1.0, "loss": 2.0, "eval/loss": 3.0, "eval_loss": 4.0, "train/reward": 5.0, "train/global_step": 7}
    session.log(given)
    session.log_evaluation({"loss": 1.0, "eval_loss": 2.0})
    session.finish()
    first, second = lines(tmp_path, "r")
    assert first["step"] == 7 and first["metrics"] == {
        "train/loss": 1.0, "loss": 2.0, "eval/loss": 3.0, "eval_loss": 4.0, "reward_mean": 5.0,
    }
    assert second["metrics"] == {"loss": 1.0, "eval_loss": 2.0}
    assert len(given) == 6


def test_speed_is_not_guessed_from_the_first_step(tmp_path):
    """A run that begins or goes on at step 5000 has not made 5000 steps in its first millisecond."""
    for resume in (False, True):
        session = Session("r", tmp_path, resume=resume)
        for step in range(5000 + 3 * resume, 5003 + 3 * resume):
            time.sleep(0.05)
            session.log({"loss": 1.0}, step=step)
        session.finish()
    speeds = [event["metrics"].get("steps_per_second") for event in lines(tmp_path, "r")]
    assert all(speed is None or speed < 25 for speed in speeds) and len([speed for speed in speeds if speed]) == 4


def healthy_loops():
    """Loops as people write them, that go well."""
    noise = random.Random(0)
    yield "classifier", [
        {"loss": 6.9 * math.exp(-i / 800) + 0.1 * noise.random(), "accuracy": 0.001 + i / 2500, "lr": 0.1 * (1 - i / 1000),
         **({"eval/loss": 7 * math.exp(-i / 800), "eval/accuracy": 0.001 + i / 2600} if i % 50 == 0 else {})}
        for i in range(1000)
    ]
    yield "epochs", [{"loss": 1.9 - 0.02 * i, "eval_loss": 2 - 0.01 * i, "eval_accuracy": 0.3 + 0.001 * i} for i in range(60)]
    yield "regression", [{"loss": 1e6 * math.exp(-i / 100) + noise.random(), "grad_norm": 1e4 * math.exp(-i / 150) + 1} for i in range(1000)]
    yield "penalties", [{"reward": -200 + 150 * (1 - math.exp(-i / 300)) + noise.gauss(0, 15), "loss": noise.gauss(0, 1)} for i in range(800)]
    yield "success or not", [{"reward": float(noise.random() < i / 800), "loss": noise.gauss(0, 0.1)} for i in range(800)]
    yield "two dictionaries a step", [
        part for i in range(500) for part in ({"loss": 2 * math.exp(-i / 200)}, {"reward": noise.gauss(i / 100, 1), "entropy": 1.5})
    ]


def test_healthy_loops_raise_no_alert(tmp_path):
    for name, logs in healthy_loops():
        session = Session(name, tmp_path, enable_resource_monitoring=False)
        for step, metrics in enumerate(logs):
            session.log(metrics, step=step * 100)
        session.finish()
        assert (name, session.trainer, session.alerts) == (name, "generic", [])


def test_live_equals_replay(tmp_path):
    """Also where the names tell the trainer only in the middle of the run."""
    session = Session("r", tmp_path)
    for step in range(300):
        logs = {"loss": 2 * math.exp(-step / 100) if step != 250 else math.nan, "grad_norm": 1.0}
        if step > 50:
            logs |= {"reward": 0.5 if step < 200 else 0.01, "reward_std": 0.1, "kl": 0.01 if step < 150 else 5.0}
        session.log(logs, step=step)
    session.finish()
    assert session.trainer == "grpo"
    assert {alert.code for alert in session.alerts} >= {"non_finite", "kl_divergence", "reward_collapse"}
    judged = replay([tmp_path])
    assert [alert.to_dict() for run in judged for alert in run.found] == [alert.to_dict() for alert in session.alerts]
