"""A run's files go to a dataset on the Hub and come back, whatever the Hub does; nothing of huggingface_hub is replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import orjson
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hub_server import SLOW_BYTES, TOKEN, HubServer, Repository

import rldk
from rldk import remote
from rldk._outbox import Outbox
from rldk.exceptions import ConfigurationError, IngestError, NoLogsError
from rldk.hub import HubDataset, check_dataset_id
from rldk.runfiles import RunFiles

FILES = {"events.jsonl", "alerts.json", "metrics.csv", "final_report.json", "run.json", "report.html"}
STREAM = "run/run_events.jsonl"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def lines(first, last, run="run"):
    """Events of the steps, as they stand in a stream."""
    return b"".join(
        orjson.dumps({
            "step": step, "wall_time": float(step), "metrics": {"loss": 1 / step}, "rng": {}, "data_slice": {},
            "model_info": {"run_id": run, "phase": "train"}, "notes": [],
        }) + b"\n" for step in range(first, last + 1)
    )


def recorded(folder, stream=b"", created="2026-01-01T00:00:00Z", run="run"):
    """A run's files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFiles.of(folder, run)
    files.events.write_bytes(stream or lines(1, 3, run))
    files.alerts.write_bytes(b"[]\n")
    files.manifest.write_bytes(orjson.dumps({"run_id": run, "created": created}))
    return files


def steps(content):
    return [json.loads(line)["step"] for line in content.splitlines()]


def warnings_in(text):
    return [line for line in text.splitlines() if line.startswith("WARNING:rldk:")]


# What runs in a process of its own, since huggingface_hub takes its settings when it is imported.

LOGS = """
import json, logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s")
for name in ("httpx", "httpx2"):
    logging.getLogger(name).setLevel("WARNING")
"""
TRAINS = LOGS + """
import zoo
from rldk.integrations.trl import RLDKCallback
recorder = RLDKCallback(output_dir="logs", run_id="run", hub_dataset_id="me/runs")
trainer = zoo.trainer("sft", "out", callbacks=[recorder], max_steps=6)
"""
SENDS = LOGS + """
from pathlib import Path
import rldk.hub
from rldk.hub import HubDataset
from rldk.runfiles import RunFiles
def dataset(folder="logs", **more):
    return HubDataset("me/runs", RunFiles.of(folder, "run"), "run", **more)
"""


@pytest.mark.matrix
def test_a_run_goes_there_and_comes_back(hub, run_script):
    """All files, also of an evaluation after training; what is read back is what is read here."""
    done = run_script(
        TRAINS + "trainer.train()\nafter = dict(recorder.report['hub'])\ntrainer.evaluate()\n"
        "import rldk, pandas\n"
        "pandas.testing.assert_frame_equal(rldk.ingest_runs('hf://datasets/me/runs'), rldk.ingest_runs('logs'))\n"
        "run = rldk.load('hf://datasets/me/runs/run')\n"
        "assert run.report['status'] == 'completed' and run.name == 'run', run.report\n"
        "print(json.dumps([after, recorder.report['hub'], json.load(open('logs/run_final_report.json'))['hub']]))\n",
        **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    after, last, written = json.loads(done.stdout.splitlines()[-1])
    assert after["error"] is last["error"] is None and not after["unsent"] and not last["unsent"]
    assert after["repo"] == "me/runs" and after["url"] == f"{hub.endpoint}/datasets/me/runs/tree/main/run"
    commits = hub.commits("me/runs")
    assert after["commits"] < last["commits"] == len(commits) and written == last
    assert set(hub.files("me/runs")) == {"README.md", ".gitattributes", *(f"run/run_{name}" for name in FILES)}
    assert [index for index, commit in enumerate(commits) if "README.md" in commit["files"]] == [0]
    assert {commit["message"] for commit in commits} == {"rldk: run"}
    assert hub.tokens == {TOKEN}
    assert not warnings_in(done.stderr)
    assert "huggingface_hub" not in done.stderr and "Traceback" not in done.stderr
    assert "%|" not in done.stderr  # no progress bars of the page's upload


@pytest.mark.matrix
def test_a_killed_run_is_there_as_of_its_last_commit(hub, run_script, tmp_path):
    """Commits come in the middle, each with whole lines; after SIGKILL the last one is read and made a report of."""
    script = tmp_path / "slow.py"
    script.write_text(
        TRAINS + "import transformers\n"
        "class Slow(transformers.TrainerCallback):\n"
        "    def on_step_end(self, *_, **__):\n        time.sleep(0.2)\n"
        "zoo.trainer('sft', 'out', callbacks=[recorder, Slow()], max_steps=500, eval_strategy='no').train()\n"
    )
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, **hub.environment, "RLDK_HUB_MINUTES": "0.01", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        began = hub.wait_for(lambda: sum(STREAM in commit["files"] for commit in hub.commits("me/runs")) >= 3, 90)
        assert process.poll() is None, process.stderr.read()
        assert began
    finally:
        process.kill()
        process.communicate(timeout=30)
    local = (tmp_path / "logs" / "run_events.jsonl").read_bytes()
    sent = [commit["files"][STREAM] for commit in hub.commits("me/runs") if STREAM in commit["files"]]
    assert all(content.endswith(b"\n") and local.startswith(content) for content in sent)
    assert [len(content) for content in sent] == sorted({len(content) for content in sent})
    done = run_script(
        "import rldk, json\ndf = rldk.ingest_runs('hf://datasets/me/runs')\n"
        "report = rldk.rebuild_run('hf://datasets/me/runs/run')\n"
        "print(json.dumps([df.step.tolist(), report['status'], report['reason'], report['totals']['steps']]))\n",
        **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    there, status, reason, count = json.loads(done.stdout.splitlines()[-1])
    assert there == steps(sent[-1]) and there[0] == 1 and count == there[-1]
    assert status == "failed" and "killed" in reason
    assert {path.name for path in (tmp_path / "run_rldk").iterdir()} >= {f"run_{name}" for name in FILES}


def test_the_trainers_own_wishes_are_kept(hub, run_script):
    """hub_private_repo and hub_token of its arguments."""
    done = run_script(
        TRAINS.replace("max_steps=6", f"max_steps=2, hub_private_repo=True, hub_token={TOKEN!r}") + "trainer.train()\n",
        **{**hub.environment, "HF_TOKEN": "hf_other" + "x" * 30},
    )
    assert done.returncode == 0, done.stderr
    assert hub.repositories["me/runs"].private is True
    assert hub.tokens == {TOKEN}
    assert not any(TOKEN.encode() in content for content in hub.files("me/runs").values())


def test_an_exception_ends_the_run_there_too(hub, run_script):
    """Nobody catches it: the last upload is made as the interpreter exits."""
    done = run_script(
        TRAINS + "import transformers\nclass Bad(transformers.TrainerCallback):\n    def on_step_end(self, args, state, *_, **__):\n"
        f"        if state.global_step == 4:\n            raise RuntimeError('bad luck with {TOKEN}')\n"
        "trainer.add_callback(Bad())\ntrainer.train()\n",
        **hub.environment,
    )
    assert done.returncode == 1
    report = json.loads(hub.files("me/runs")["run/run_final_report.json"])
    assert report["status"] == "failed" and report["reason"].startswith("RuntimeError: bad luck")
    assert steps(hub.files("me/runs")[STREAM])[-1] >= 3
    # What stands in an exception is not told to the world.
    assert not any(TOKEN.encode() in content for content in hub.files("me/runs").values())


@pytest.mark.parametrize("trouble", [None, "hang"])
def test_a_signal_leaves_little_time(hub, tmp_path, trouble):
    """SIGTERM: the last files go there if the Hub is quick, and nobody waits if it is not."""
    script = tmp_path / "slow.py"
    script.write_text(
        TRAINS + "import transformers\nclass Slow(transformers.TrainerCallback):\n    def on_step_end(self, args, state, *_, **__):\n"
        "        if state.global_step == 3:\n            open('third', 'w').close()\n        time.sleep(0.2)\n"
        "zoo.trainer('sft', 'out', callbacks=[recorder, Slow()], max_steps=500, eval_strategy='no').train()\n"
    )
    hub.trouble = trouble
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, **hub.environment, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 90
        while not (tmp_path / "third").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM, said
    report = json.loads((tmp_path / "logs" / "run_final_report.json").read_text())
    assert (report["status"], report["reason"]) == ("failed", "SIGTERM")
    if trouble is None:
        assert json.loads(hub.files("me/runs")["run/run_final_report.json"])["reason"] == "SIGTERM"
        assert hub.files("me/runs")[STREAM] == (tmp_path / "logs" / "run_events.jsonl").read_bytes()
        assert "does not reach" not in said
    else:
        assert report["hub"]["error"] == "not done within 5 s" and "run_events.jsonl" in report["hub"]["unsent"]
        assert "not done within 5 s" in said


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("trouble, says", [
    (401, "hf auth login"), (403, "needs the right to write"), (500, "500"), (404, "404"), ("garbage", "JSONDecodeError"),
    ("hang", "not done within 2 s"), ("refused", "refused"), ("offline", "offline"), ("no token", "hf auth login"),
    ("others", "rights to create"),
])
def test_trouble_is_one_warning(hub, run_script, tmp_path, closed_port, trouble, says):
    """It says what is not there, why, and where it is; the program ends as it would have."""
    environment = dict(hub.environment)
    if trouble == "refused":
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{closed_port}"
    elif trouble == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    elif trouble == "no token":
        environment.update(HF_TOKEN="", HF_HOME=str(tmp_path / "nobody"))
    elif trouble != "others":
        hub.trouble = trouble
    recorded(tmp_path / "logs")
    source = SENDS.replace("me/runs", "others/runs") if trouble == "others" else SENDS
    done = run_script(
        source + "hub = dataset(every_minutes=0.01)\nhub.start()\ntime.sleep(1.5)\nbegan = time.monotonic()\nhub.close(2.0)\n"
        "waited = time.monotonic() - began\nprint(json.dumps([hub.status(), waited]))\n",
        timeout=60, **environment,
    )
    assert done.returncode == 0, done.stderr
    status, waited = json.loads(done.stdout.splitlines()[-1])
    assert says in done.stderr
    assert status["commits"] == 0 and status["url"] is None and status["error"]
    assert status["unsent"] == ["run_events.jsonl", "run_alerts.json", "run_run.json"]
    (warning,) = warnings_in(done.stderr)
    assert "Training is not affected" in warning and "run_events.jsonl" in warning and "All of it is in logs" in warning
    assert "Traceback" not in done.stderr and "huggingface_hub" not in done.stderr.replace("raised by huggingface_hub", "")
    assert waited < 20


def test_a_trainer_does_not_wait_for_a_silent_hub(hub, run_script):
    """Not as it begins, not in a step, and at the end only as long as is said."""
    hub.trouble = "hang"
    done = run_script(
        TRAINS + "import rldk.integrations.trl._active as active\nactive.CLOSE_SECONDS = 2.0\nbegan = time.monotonic()\n"
        "trainer.train()\nprint(json.dumps([time.monotonic() - began, recorder.report]))\n",
        timeout=100, **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    seconds, report = json.loads(done.stdout.splitlines()[-1])
    assert seconds < 25
    assert report["status"] == "completed" and report["totals"]["steps"] == 6
    assert report["hub"]["error"] == "not done within 2 s" and "run_report.html" in report["hub"]["unsent"]
    assert len(warnings_in(done.stderr)) == 1


@pytest.mark.parametrize("trouble", [500, "hang"])
def test_a_hub_that_comes_back_gets_everything(hub, run_script, tmp_path, trouble):
    """The run is tried again at each interval; one warning, and a word when it works."""
    hub.trouble = trouble
    recorded(tmp_path / "logs")
    asked = threading.Event()

    def come_back():
        while len(hub.requests) < 1 and not asked.wait(0.05):
            pass
        time.sleep(1.0)
        hub.trouble = None

    healer = threading.Thread(target=come_back, daemon=True)
    healer.start()
    done = run_script(
        SENDS + "rldk.hub.STUCK_SECONDS = 2.0\nhub = dataset(every_minutes=0.01)\nhub.start()\nuntil = time.monotonic() + 40\n"
        "while not hub.commits and time.monotonic() < until:\n    time.sleep(0.1)\n"
        "time.sleep(0.5)\nhub.close()\nprint(json.dumps(hub.status()))\n",
        timeout=100, **hub.environment,
    )
    asked.set()
    healer.join(10)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout.splitlines()[-1])
    assert status["commits"] == 1 and status["error"] is None and status["unsent"] == []
    assert steps(hub.files("me/runs")[STREAM]) == [1, 2, 3]
    assert len(warnings_in(done.stderr)) == 1
    assert "INFO:rldk:rldk: run run reaches the dataset me/runs on the Hub again" in done.stderr


def test_somebody_elses_commit_at_the_same_moment(hub, run_script, tmp_path):
    """Runs share a repository; the Hub refuses one of two."""
    hub.trouble = "conflict"
    recorded(tmp_path / "logs")
    done = run_script(SENDS + "hub = dataset()\nhub.start()\nhub.close()\nprint(json.dumps(hub.status()))\n", **hub.environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["error"] is None
    assert steps(hub.files("me/runs")[STREAM]) == [1, 2, 3]
    assert not warnings_in(done.stderr)


def test_a_run_goes_on_on_another_machine(hub, run_script, tmp_path):
    """What was recorded on the one that is gone stays, once."""
    for name, first, last in (("one", 1, 3), ("two", 4, 6), ("three", 8, 9)):
        recorded(tmp_path / name, lines(first, last), created=name)
    send = "def send(folder, **more):\n    hub = dataset(folder, **more)\n    hub.start()\n    hub.close()\n    assert not hub.error, hub.error\n"
    done = run_script(
        SENDS + send + "send('one')\nsend('two', resumed=True)\n"
        "with open('two/run_events.jsonl', 'ab') as file:\n"
        f"    file.write({lines(7, 7)!r})\n"
        "send('two', resumed=True)\nsend('three', resumed=True)\n",
        **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    sent = [steps(commit["files"][STREAM]) for commit in hub.commits("me/runs")]
    assert sent == [[1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert not warnings_in(done.stderr)


def test_another_run_of_that_name_keeps_its_files(hub, run_script, tmp_path):
    """The second is nobody's resume: it gets a folder of its own, and a warning says so."""
    recorded(tmp_path / "one", lines(1, 3), created="one")
    recorded(tmp_path / "two", lines(1, 9), created="two")
    done = run_script(
        SENDS + "for folder in ('one', 'two'):\n    hub = dataset(folder)\n    hub.start()\n    hub.close()\n", **hub.environment
    )
    assert done.returncode == 0, done.stderr
    streams = {path: steps(content)[-1] for path, content in hub.files("me/runs").items() if path.endswith("_events.jsonl")}
    assert streams.pop(STREAM) == 3
    ((other, last),) = streams.items()
    assert last == 9 and other.startswith("run-")
    (warning,) = warnings_in(done.stderr)
    assert "has another run run already" in warning


def test_a_token_as_of_a_file(hub, run_script, tmp_path):
    """With its newline it is the same token; one that no header can hold is not told to anybody."""
    recorded(tmp_path / "logs")
    done = run_script(
        SENDS + f"for token in ('se\\ncret', {TOKEN + chr(10)!r}):\n    hub = dataset(token=token)\n    hub.start()\n    hub.close()\n"
        "    print(json.dumps(hub.status()))\n",
        **{**hub.environment, "HF_TOKEN": "hf_other" + "x" * 30},
    )
    assert done.returncode == 0, done.stderr
    bad, good = map(json.loads, done.stdout.splitlines())
    assert bad["error"] and "cret" not in done.stderr + bad["error"]
    assert good["error"] is None and good["commits"] == 1
    assert hub.tokens == {TOKEN}


def test_two_runs_of_one_name_at_once(hub, run_script, tmp_path):
    """Both have looked before either commits: neither goes over the other, and there is one card."""
    recorded(tmp_path / "one", lines(1, 3), created="one")
    recorded(tmp_path / "two", lines(1, 9), created="two")
    done = run_script(
        SENDS + "import threading\nfrom huggingface_hub import HfApi\nlooked, commit = threading.Barrier(2), HfApi.create_commit\n"
        "first = {}\ndef together(api, *args, **more):\n    if first.setdefault(threading.get_ident(), True):\n"
        "        first[threading.get_ident()] = False\n        looked.wait(30)\n    return commit(api, *args, **more)\n"
        "HfApi.create_commit = together\nhubs = [dataset(folder) for folder in ('one', 'two')]\n"
        "for hub in hubs:\n    hub.start()\nuntil = time.monotonic() + 60\n"
        "while not all(hub.commits for hub in hubs) and time.monotonic() < until:\n    time.sleep(0.05)\n"
        "for hub in hubs:\n    hub.close()\n    assert hub.error is None and not hub.status()['unsent'], hub.status()\n",
        **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    streams = {path: steps(content)[-1] for path, content in hub.files("me/runs").items() if path.endswith("_events.jsonl")}
    assert sorted(streams.values()) == [3, 9] and STREAM in streams
    assert sum("README.md" in commit["files"] for commit in hub.commits("me/runs")) == 1
    (warning,) = warnings_in(done.stderr)
    assert "has another run run already" in warning


def test_a_forked_process_does_not_wait(tmp_path):
    """It has none of the threads, and perhaps a lock that one of them held."""
    hub = HubDataset("me/runs", recorded(tmp_path), "run")
    hub._begun = True
    hub._process = -1
    held, release = threading.Event(), threading.Event()

    def hold():
        with hub._lock:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(10)
    closer = threading.Thread(target=hub.close, daemon=True)
    closer.start()
    closer.join(5)
    try:
        assert not closer.is_alive()
    finally:
        release.set()


def test_a_card_that_is_there_stays(hub, run_script, tmp_path):
    """And a repository that was made by hand, with a name that has no user in front."""
    hub.repositories["me/runs"] = Repository(True)
    hub.repositories["me/runs"].files["README.md"] = b"mine\n"
    recorded(tmp_path / "logs")
    done = run_script(
        SENDS.replace("me/runs", "runs") + "hub = dataset()\nhub.start()\nhub.close()\nprint(json.dumps(hub.status()))\n", **hub.environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["repo"] == "me/runs"
    assert hub.files("me/runs")["README.md"] == b"mine\n" and STREAM in hub.files("me/runs")


def test_only_who_asks_pays(run_script):
    """Neither importing nor constructing brings huggingface_hub, and nothing happens before `start`."""
    done = run_script(
        "import sys, threading\nfrom rldk.hub import HubDataset\nfrom rldk.runfiles import RunFiles\n"
        "hub = HubDataset('me/runs', RunFiles.of('logs', 'run'), 'run')\nhub.close()\nhub.status()\n"
        "assert 'huggingface_hub' not in sys.modules and 'httpx' not in sys.modules\nassert threading.active_count() == 1\n"
    )
    assert done.returncode == 0, done.stderr


class TestWhatIsRefused:
    @pytest.mark.parametrize("good", ["me/runs", "runs", "a.b_c-d/R.1", "me/" + "x" * 96])
    def test_ids_of_the_hub_are_taken(self, good):
        assert check_dataset_id(good) == good

    @pytest.mark.parametrize("bad", ["", "a/b/c", "me/", "/runs", "me/ru ns", "me/-x", "me/x.git", "me/a--b", "me/a..b", "me/" + "x" * 97, 3, None])
    def test_others_are_not(self, bad):
        with pytest.raises(ConfigurationError, match="hub_dataset_id must be 'user/name' or 'name'"):
            check_dataset_id(bad)

    @pytest.mark.parametrize("url", ["hf://datasets/me/runs", "datasets/me/runs", "https://hub.example.com/datasets/me/runs"])
    def test_an_address_is_told_apart(self, url):
        with pytest.raises(ConfigurationError, match="Did you mean 'me/runs'"):
            check_dataset_id(url)

    def test_the_callback_refuses_at_construction(self):
        from rldk.integrations.trl import RLDKCallback

        with pytest.raises(ConfigurationError, match="a/b/c"):
            RLDKCallback(hub_dataset_id="a/b/c")

    @pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "soon"])
    def test_intervals(self, minutes, tmp_path, monkeypatch):
        with pytest.raises(ConfigurationError, match="every_minutes"):
            HubDataset("me/runs", RunFiles.of(tmp_path, "run"), "run", every_minutes=minutes)
        monkeypatch.setenv("RLDK_HUB_MINUTES", str(minutes))
        with pytest.raises(ConfigurationError, match="RLDK_HUB_MINUTES"):
            HubDataset("me/runs", RunFiles.of(tmp_path, "run"), "run")

    def test_the_interval_of_the_environment(self, tmp_path, monkeypatch):
        files = RunFiles.of(tmp_path, "run")
        assert HubDataset("me/runs", files, "run").every_minutes == 5.0
        monkeypatch.setenv("RLDK_HUB_MINUTES", "1.5")
        assert HubDataset("me/runs", files, "run").every_minutes == 1.5


class TestCopies:
    """What is made of the files before they are sent."""

    def staged(self, box, folder):
        folder.mkdir()
        return {path.name: path.read_bytes() for path in box.stage(box.unsent(), folder)}

    def test_lines_are_whole(self, tmp_path):
        files = recorded(tmp_path / "logs", lines(1, 3) + b'{"step": 4, "wall_')
        files.metrics.write_bytes(b"step,wall_time\n1,2.0\n3,")
        copies = self.staged(Outbox(files, "run"), tmp_path / "copy")
        assert copies["run_events.jsonl"] == lines(1, 3)
        assert copies["run_metrics.csv"] == b"step,wall_time\n1,2.0\n"

    def test_what_is_empty_or_missing_is_left_out(self, tmp_path):
        files = recorded(tmp_path / "logs", b"{")  # a first line that is being written
        files.alerts.write_bytes(b"")
        box = Outbox(files, "run")
        unsent = box.unsent()
        assert set(unsent) == {"run_events.jsonl", "run_run.json"}
        files.manifest.unlink()
        (tmp_path / "copy").mkdir()
        assert box.stage(unsent, tmp_path / "copy") == []

    def test_what_has_not_changed_is_not_sent_again(self, tmp_path):
        files = recorded(tmp_path / "logs")
        box = Outbox(files, "run")
        box.sent(box.unsent())
        assert box.unsent() == {}
        with open(files.events, "ab") as stream:
            stream.write(lines(4, 4))
        assert list(box.unsent()) == ["run_events.jsonl"]
        box.forget()
        assert len(box.unsent()) == 3

    def test_secrets_are_taken_out(self, tmp_path):
        secret = b'{"step": 1, "notes": ["https://me:password@host/x", "' + TOKEN.encode() + b'"]}\n'
        files = recorded(tmp_path / "logs", secret)
        files.report.write_bytes(b'{"reason": "no access with ' + TOKEN.encode() + b'"}')
        copies = self.staged(Outbox(files, "run"), tmp_path / "copy")
        assert copies["run_events.jsonl"] == b'{"step": 1, "notes": ["https://<redacted>@host/x", "<redacted>"]}\n'
        assert copies["run_final_report.json"] == b'{"reason": "no access with <redacted>"}'

    def test_a_stream_elsewhere_may_be_shared(self, tmp_path):
        """It is sent under the run's name, and without the others."""
        recorded(tmp_path / "logs")
        shared = tmp_path / "all.jsonl"
        shared.write_bytes(lines(1, 2, "other") + lines(1, 3) + lines(3, 4, "other"))
        copies = self.staged(Outbox(RunFiles.of(tmp_path / "logs", "run", shared), "run"), tmp_path / "copy")
        assert copies["run_events.jsonl"] == lines(1, 3)


# Reading back


@pytest.fixture
def memory():
    """A file system of fsspec, in memory; empty, and empty again after it."""
    files = MemoryFileSystem()
    MemoryFileSystem.store.clear()
    yield files
    MemoryFileSystem.store.clear()


def put(files, path, content):
    with files.open(path, "wb") as file:
        file.write(content)


class TestReadingElsewhere:
    def test_runs_of_a_folder(self, memory):
        for run in ("a", "b"):
            put(memory, f"/runs/{run}/{run}_events.jsonl", lines(1, 3, run))
        put(memory, "/runs/notes.jsonl", b'{"nothing": "of ours"}\n')
        df = rldk.ingest_runs("memory://runs")
        assert df.groupby("run_id", observed=True).step.apply(list).to_dict() == {"a": [1, 2, 3], "b": [1, 2, 3]}
        assert rldk.ingest_runs("memory://runs/b").run_id.unique().tolist() == ["b"]
        assert rldk.ingest_runs("memory://runs/*/a_*.jsonl").run_id.unique().tolist() == ["a"]
        assert rldk.ingest_runs("memory://runs/?/").run_id.nunique() == 2

    def test_only_what_is_wanted_is_fetched(self, memory):
        """The stream and what a replay takes of the run's other files; not its page, and nobody's data."""
        for end in FILES:
            put(memory, f"/runs/a/a_{end}", lines(1, 2, "a") if end == "events.jsonl" else b"{}")
        put(memory, "/runs/data.jsonl", b"{}\n" * 1000)
        (place,) = remote.fetch("memory://runs")
        names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        assert names == {"a/a_events.jsonl", "a/a_alerts.json", "a/a_final_report.json", "a/a_run.json"}

    @pytest.mark.parametrize("end", sorted(FILES))
    def test_each_file_stands_for_its_run(self, memory, end):
        put(memory, "/runs/a/a_events.jsonl", lines(1, 2, "a"))
        put(memory, f"/runs/a/a_{end}", lines(1, 2, "a") if end == "events.jsonl" else b"{}")
        run = rldk.load(f"memory://runs/a/a_{end}")
        assert run.name == "a" and len(run.df) == 2

    def test_the_state_of_the_last_checkpoint(self, memory):
        for number in (5, 10):
            history = [{"step": step, "loss": 1.0} for step in range(1, number + 1)]
            state = orjson.dumps({"log_history": history, "global_step": number})
            put(memory, f"/models/mine/checkpoint-{number}/trainer_state.json", state)
        df = rldk.ingest_runs("memory://models/mine")
        assert df.step.max() == 10 and df.run_id.unique().tolist() == ["mine"]

    def test_thresholds_and_status_come_with_it(self, memory):
        put(memory, "/runs/a/a_events.jsonl", lines(1, 3, "a"))
        put(memory, "/runs/a/a_run.json", orjson.dumps({"run_id": "a", "rldk": {"alert_thresholds": {"stall": {"floor": 7.0}}}}))
        put(memory, "/runs/a/a_final_report.json", orjson.dumps({"run_id": "a", "status": "stopped", "reason": "enough"}))
        run = rldk.load("memory://runs")
        assert run.report["status"] == "stopped"
        report = rldk.rebuild_run("memory://runs", output_dir="here")
        assert (report["status"], report["reason"]) == ("stopped", "enough")
        assert steps(Path("here/a_events.jsonl").read_bytes()) == [1, 2, 3] and Path(report["files"]["events"]).parent == Path("here")

    def test_a_report_never_goes_over_another_stream(self, memory):
        """But over an earlier copy of the same run."""
        put(memory, "/runs/a/a_events.jsonl", lines(1, 3, "a"))
        rldk.rebuild_run("memory://runs")
        put(memory, "/runs/a/a_events.jsonl", lines(1, 5, "a"))
        assert rldk.rebuild_run("memory://runs")["totals"]["steps"] == 5
        Path("a_rldk/a_events.jsonl").write_bytes(lines(7, 9, "a"))
        with pytest.raises(ConfigurationError, match=r"a_events\.jsonl is there and holds something else"):
            rldk.rebuild_run("memory://runs")
        assert steps(Path("a_rldk/a_events.jsonl").read_bytes()) == [7, 8, 9]

    @pytest.mark.parametrize("url, says", [
        ("memory://none", "cannot read memory://none: no such file or folder"),
        ("memory://runs/*.jsonl", "nothing matches memory://runs/*.jsonl"),
        ("memory://empty", "no logs in memory://empty: looked for *_events.jsonl"),
        ("s3://bucket/runs", "cannot read s3://bucket/runs: Install s3fs"),
        ("nowhere://runs", "cannot read nowhere://runs: Protocol not known: nowhere"),
        ("hf://datasets/me/runs", "cannot read hf://datasets/me/runs:"),  # the tests are offline
    ])
    def test_what_cannot_be_read_is_said_in_a_line(self, memory, url, says):
        put(memory, "/empty/readme.txt", b"nothing")
        with pytest.raises(NoLogsError) as failure:
            rldk.ingest_runs(url)
        assert str(failure.value).startswith(says) and "\n" not in str(failure.value)

    @pytest.mark.parametrize("content, says", [(b"not a log\n", "holds no line"), (b"", "is empty"), (b'{"a": "b"}\n', "no step")])
    def test_messages_name_the_address(self, memory, content, says):
        put(memory, "/runs/a_events.jsonl", content)
        with pytest.raises(IngestError) as failure:
            rldk.ingest_runs("memory://runs")
        assert says in str(failure.value) and "memory://runs/a_events.jsonl" in str(failure.value)

    def test_brackets_in_a_name(self, memory):
        """Are a pattern only if nothing is called so."""
        put(memory, "/runs/a[1]/a[1]_events.jsonl", lines(1, 2, "a[1]"))
        for url in ("memory://runs/a[1]", "memory://runs/a[1]/a[1]_events.jsonl"):
            assert rldk.ingest_runs(url).run_id.unique().tolist() == ["a[1]"]
        put(memory, "/runs/a1/a1_events.jsonl", lines(1, 2, "a1"))
        assert rldk.ingest_runs("memory://runs/a[1]").run_id.unique().tolist() == ["a1"]

    def test_names_from_elsewhere_are_escaped(self, memory):
        put(memory, "/runs/\x1b[31m_events.jsonl", b"not a log\n")
        with pytest.raises(IngestError) as failure:
            rldk.ingest_runs("memory://runs")
        assert r"memory://runs/\x1b[31m_events.jsonl" in str(failure.value) and "\x1b" not in str(failure.value)

    def test_so_do_warnings(self, memory):
        put(memory, "/runs/a_events.jsonl", lines(1, 2, "a") + b"torn\n" + lines(3, 3, "a"))
        with pytest.warns(UserWarning, match=r"memory://runs/a_events\.jsonl: 1 malformed \(line 3\)"):
            assert len(rldk.ingest_runs("memory://runs")) == 3

    def test_a_server_that_falls_silent(self, memory, monkeypatch):
        """In the middle of a file."""
        free = threading.Event()

        class Silent(MemoryFileSystem):
            protocol = "silent"

            @classmethod
            def _strip_protocol(cls, path):
                return super()._strip_protocol(path.replace("silent://", "memory://"))

            def open(self, *arguments, **keywords):
                free.wait(60)
                raise OSError("closed")

        put(memory, "/runs/a_events.jsonl", lines(1, 2, "a"))
        fsspec.register_implementation("silent", Silent, clobber=True)
        monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.5)
        with pytest.raises(NoLogsError, match=r"^cannot read silent://runs: no answer within 0\.5 s$"):
            rldk.ingest_runs("silent://runs")
        free.set()

    def test_paths_are_no_urls(self):
        for source in ("logs", "/a/b", "C:/logs", "a:b", "hf:/x", Path("hf://datasets/me/runs"), "://x", "hf://"):
            assert not remote.is_url(source)
        for source in ("hf://datasets/me/runs", "s3://b", "simplecache::hf://datasets/me/runs", "memory:///a"):
            assert remote.is_url(source)


@pytest.mark.parametrize("trouble, says", [
    (500, "500"), ("garbage", "cannot read"), ("hang", "cannot read"), (None, "not found"),
])
def test_a_hub_that_cannot_be_read(hub, run_script, trouble, says):
    """A NoLogsError, in a bounded time; also the interpreter's end is."""
    hub.trouble = trouble
    done = run_script(
        "import rldk, rldk.remote\nrldk.remote.SILENCE_SECONDS = 5.0\ntry:\n    rldk.ingest_runs('hf://datasets/me/none')\n"
        "except rldk.exceptions.NoLogsError as error:\n    print(error)\n",
        timeout=60, HF_HUB_ETAG_TIMEOUT="1", **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot read hf://datasets/me/none: ") and says in done.stdout.lower()


def test_a_slow_line_is_waited_for(hub, run_script):
    """A file that takes far longer than a silence may."""
    repository = hub.repositories["me/runs"] = Repository(False)
    repository.files[STREAM] = lines(1, 3) + b" " * (5 * SLOW_BYTES) + b"\n" + lines(4, 6)
    hub.trouble = "slow"
    done = run_script(
        "import rldk, rldk.remote\nrldk.remote._BLOCK, rldk.remote.SILENCE_SECONDS = 1 << 16, 3.0\n"
        "print(rldk.ingest_runs('hf://datasets/me/runs').step.tolist())\n",
        **hub.environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 2, 3, 4, 5, 6]


class TestCommands:
    """`rldk` on a dataset."""

    @pytest.fixture
    def dataset(self, hub, tmp_path):
        repository = hub.repositories["me/runs"] = Repository(False)
        for run in ("a", "b"):
            files = recorded(tmp_path / "made" / run, lines(1, 4, run), run=run)
            repository.files.update({f"{run}/{path.name}": path.read_bytes() for path in files.existing()})
        return hub

    def rldk(self, hub, *arguments):
        root = Path(__file__).resolve().parents[1]
        environment = {**os.environ, **hub.environment, "PYTHONPATH": str(root)}
        return subprocess.run(
            [sys.executable, "-m", "rldk", *arguments], capture_output=True, text=True, timeout=60, env=environment
        )

    def test_ingest(self, dataset):
        Path("x.csv").write_text("old")
        done = self.rldk(dataset, "ingest", "hf://datasets/me/runs", "-o", "x.csv")
        assert done.returncode == 0, done.stderr
        assert "8 rows of 2 runs" in done.stdout
        assert Path("x.csv").read_text().splitlines()[1].startswith("1,1.0,a,train")

    def test_replay(self, dataset):
        done = self.rldk(dataset, "replay", "hf://datasets/me/runs", "--json")
        assert done.returncode == 0, done.stderr
        runs = json.loads(done.stdout)["runs"]
        assert [run["source"] for run in runs] == [f"hf://datasets/me/runs/{run}/{run}_events.jsonl" for run in ("a", "b")]

    def test_compare(self, dataset):
        done = self.rldk(dataset, "compare", "hf://datasets/me/runs/a", "hf://datasets/me/runs/b", "--json")
        assert done.returncode in (0, 1), done.stderr
        runs = json.loads(done.stdout)["runs"]
        assert [run["path"] for run in runs] == [f"hf://datasets/me/runs/{run}/{run}_events.jsonl" for run in ("a", "b")]

    def test_report(self, dataset):
        """Into a folder here, with the stream, so that it is a run's folder like any other."""
        done = self.rldk(dataset, "report", "hf://datasets/me/runs/a")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in Path("a_rldk").iterdir()} == {f"a_{name}" for name in FILES}
        assert "a_rldk" in done.stdout and "/rldk-" not in done.stdout
        assert rldk.load("a_rldk").df.step.tolist() == [1, 2, 3, 4]
        again = self.rldk(dataset, "report", "hf://datasets/me/runs/a/a_run.json", "--format", "md")
        assert again.returncode == 0 and again.stdout

    def test_several_runs_are_named(self, dataset):
        done = self.rldk(dataset, "report", "hf://datasets/me/runs")
        assert done.returncode == 2
        assert "'hf://datasets/me/runs' holds 2 runs" in done.stderr and "a, b" in done.stderr

    def test_watch_says_what_to_use(self, dataset):
        done = self.rldk(dataset, "watch", "hf://datasets/me/runs/a", "--once")
        assert done.returncode == 2 and "rldk replay" in done.stderr
