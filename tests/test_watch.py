"""`rldk watch` shows a run as it is: whatever becomes of its file, on any terminal, and leaves both as they were."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import captures
import orjson
import psutil
import pytest
import zoo
from rich.cells import cell_len

from rldk import RLDKCallback, rebuild_run
from rldk._files import json_bytes, read_object
from rldk.cli._frame import frame, glyphs_for
from rldk.event import Event, encode, timestamp
from rldk.follow import LineFollower
from rldk.ingest import events_of
from rldk.live import WatchedRun
from rldk.live_view import Fold, RunState
from rldk.timeline import resume_note

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a real GRPO run that has alerts, since it is given a threshold that it must cross."""
    folder = tmp_path_factory.mktemp("recorded")
    recorder = RLDKCallback(
        output_dir=folder / "logs", run_id="grpo_run", log_interval=0, alert_thresholds={"kl_divergence": 1e-4}
    )
    zoo.trainer("grpo", folder / "out", callbacks=[recorder], max_steps=12, learning_rate=0.05).train()
    assert recorder.alerts
    return folder / "logs"


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    """Lets go of the files that a test has followed."""
    opened = []

    def opening(path):
        opened.append(LineFollower(path))
        return opened[-1]

    monkeypatch.setattr("rldk.live.LineFollower", opening)
    yield
    for follower in opened:
        follower.close()


def caught_up(source, **options):
    """The watch of a source, after it has read all."""
    watched = WatchedRun(source, **options)
    while not watched.poll():
        pass
    return watched


def dicts(alerts):
    return [alert.to_dict() for alert in alerts]


def own_alerts(folder):
    return orjson.loads(next(folder.glob("*_alerts.json")).read_bytes())


def event(step, run_id="r", trainer="sft", phase="train", notes=(), **metrics):
    return Event(step, step / 10, metrics, phase, model_info={"run_id": run_id, "trainer": trainer}, notes=notes,
                 time=timestamp(1_000_000_000 + step))


def lines(steps, **options):
    return b"".join(encode(event(step, **{"loss": 3.0 / step, "lr": 1e-4, **options})) for step in steps)


# The file


def test_only_whole_lines_are_taken(tmp_path):
    """A torn line waits for its rest, or for its repair."""
    path = tmp_path / "log"
    follower = LineFollower(path)
    assert follower.read().lines == [] and follower.missing
    path.write_bytes(b'{"step": 1}\n{"st')
    chunk = follower.read()
    assert chunk.lines == [b'{"step": 1}'] and chunk.fresh and chunk.first == 1
    assert follower.read().lines == []
    with open(path, "ab") as file:
        file.write(b'ep": 2}\n')
    chunk = follower.read()
    assert chunk.lines == [b'{"step": 2}'] and not chunk.fresh and chunk.first == 2
    with open(path, "ab") as file:
        file.write(b'{"step": 3')
    follower.read()
    with open(path, "r+b") as file:  # what the writer does with a torn line when it comes back
        file.seek(-10, os.SEEK_END)
        file.write(b" " * 9 + b"\n")
    with open(path, "ab") as file:
        file.write(b'{"step": 3}\n')
    assert [line for line in follower.read().lines if line.strip()] == [b'{"step": 3}']
    with open(path, "ab") as file:
        file.write(b'{"step": 4}')  # whole, but for its newline
    assert follower.read().lines == [b'{"step": 4}']
    with open(path, "ab") as file:
        file.write(b'\n{"step": 5}\n')
    chunk = follower.read()
    assert (chunk.lines, chunk.first, follower.restarts) == ([b'{"step": 5}'], 6, 0)
    follower.close()


@pytest.mark.parametrize("size", [1, 4, 400], ids=["smaller", "as_large", "larger"])
def test_an_emptied_file_begins_anew(tmp_path, size):
    """Also if it has grown past the old place when it is looked at again."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(b'{"old": %d}\n' % index for index in range(4)))
    follower = LineFollower(path)
    assert len(follower.read().lines) == 4
    before = path.stat().st_mtime_ns
    path.write_bytes(b"".join(b'{"new": %d}\n' % (index % 10) for index in range(size)))
    os.utime(path, ns=(before + 10**9, before + 10**9))
    chunk = follower.read()
    assert chunk.fresh and chunk.first == 1 and len(chunk.lines) == size and follower.restarts == 1
    follower.close()


def test_a_replaced_file_is_read_to_its_end_first(tmp_path):
    """Rotation: the rest of the old file, then the new one from its beginning."""
    path = tmp_path / "log"
    path.write_bytes(b"{}\n")
    follower = LineFollower(path)
    follower.read()
    with open(path, "ab") as file:
        file.write(b'{"old": 1}\n')
    path.rename(tmp_path / "log.1")
    assert follower.read().lines == [b'{"old": 1}'] and follower.missing
    path.write_bytes(b'{"new": 1}\n')
    chunk = follower.read()
    assert chunk.lines == [b'{"new": 1}'] and chunk.fresh and not follower.missing
    follower.close()


def test_what_is_no_line_is_passed_over(tmp_path, monkeypatch):
    """A file without newlines fills no memory, and what follows is read."""
    monkeypatch.setattr("rldk.follow._LONGEST_LINE", 1 << 12)
    monkeypatch.setattr("rldk.follow._BLOCK", 1 << 10)
    path = tmp_path / "log"
    path.write_bytes(b"x" * 20_000)
    follower = LineFollower(path)
    for _ in range(30):
        assert follower.read().lines == []
    with open(path, "ab") as file:
        file.write(b'xx\n{"step": 1}\n')
    taken = [line for _ in range(10) for line in follower.read().lines]
    assert taken[-1] == b'{"step": 1}' and len(taken) == 2
    follower.close()


# The run


@pytest.mark.parametrize("own_file", [True, False], ids=["alerts_file", "replayed"])
def test_alerts_are_the_runs_own(recorded, tmp_path, own_file):
    """Read from its file or found by replay, over a stream that comes in pieces cut anywhere: the very same alerts."""
    expected = own_alerts(recorded)
    content = (recorded / "grpo_run_events.jsonl").read_bytes()
    for name in ("run", *(["alerts"] if own_file else [])):
        (tmp_path / f"grpo_run_{name}.json").write_bytes((recorded / f"grpo_run_{name}.json").read_bytes())
    watched, draw = WatchedRun(tmp_path), random.Random(0)
    assert watched.poll() and "waiting for" in watched.view().notes[0]
    path = tmp_path / "grpo_run_events.jsonl"
    taken = 0
    while taken < len(content):
        size = draw.randrange(1, 3000)
        with open(path, "ab") as file:
            file.write(content[taken : taken + size])
        taken += size
        watched.poll()
    assert dicts(watched.alerts) == expected and not watched.ended
    (tmp_path / "grpo_run_final_report.json").write_bytes((recorded / "grpo_run_final_report.json").read_bytes())
    time.sleep(1.1)  # the files beside the log are looked at once a second
    watched.poll()
    view = watched.view()
    assert view.judged == ("run" if own_file else "replay")
    assert (view.run_id, view.trainer, view.status, view.step, view.max_steps) == ("grpo_run", "grpo", "completed", 12, 12)
    assert watched.ended and view.malformed == 0
    shown = {line.name: line for line in view.metrics}
    recorded_events = [item for item in events_of(path) if item.phase == "train"]
    assert shown["reward_mean"].last == recorded_events[-1].metrics["reward_mean"]
    assert shown["kl_mean"].alert in ("warning", "critical")


def test_what_a_resume_made_void_is_not_shown(tmp_path):
    """Live, in the middle of the run, and when it is read afterwards: as in the files made anew."""
    path = tmp_path / "r_events.jsonl"
    first = b"".join(encode(event(step, loss=1.0 if step < 6 else 900.0, grad_norm=1.0)) for step in range(1, 30))
    mark = encode(Event(5, 0.5, {}, model_info={"run_id": "r", "trainer": "sft"}, notes=(resume_note(5),)))
    rest = b"".join(encode(event(step, loss=1.0, grad_norm=1.0)) for step in range(6, 41))
    path.write_bytes(first)
    live = caught_up(path)
    assert live.alerts
    with open(path, "ab") as file:
        file.write(mark + rest)
    while not live.poll():
        pass
    afterwards = caught_up(path)
    rebuilt = rebuild_run(path, output_dir=tmp_path / "anew")
    for watched in (live, afterwards):
        assert dicts(watched.alerts) == own_alerts(tmp_path / "anew") == []
        assert rebuilt["metrics"]["loss"]["max"] == 1.0
        loss = next(line for line in watched.view().metrics if line.name == "loss")
        assert (loss.high, loss.logged, watched.view().step) == (1.0, 40, 40)


def test_another_run_in_the_file_takes_the_place_of_the_first(tmp_path):
    """Unless one is asked for by name."""
    path = tmp_path / "shared_events.jsonl"
    path.write_bytes(lines(range(1, 30), run_id="first"))
    watched = caught_up(path)
    named = caught_up(path, run_id="first")
    with open(path, "ab") as file:
        file.write(lines(range(1, 4), run_id="second"))
        file.write(lines(range(30, 32), run_id="first"))
    while not (watched.poll() and named.poll()):
        pass
    assert (watched.view().run_id, watched.view().step) == ("second", 3)
    assert (named.view().run_id, named.view().step) == ("first", 31)
    assert any("--run-id" in note for note in watched.view().notes)


@pytest.mark.parametrize(("steps", "shown"), [(range(30, 41), 1), (range(1, 11), 2)], ids=["goes_on", "begins_anew"])
def test_rotation(tmp_path, steps, shown):
    """A new file under the old name is the rest of the run, if its steps go on; else it is the run from the start."""
    path = tmp_path / "r_events.jsonl"
    path.write_bytes(lines(range(1, 30)))
    watched = caught_up(path)
    path.rename(tmp_path / "old")
    path.write_bytes(lines(steps))
    while not watched.poll():
        pass
    loss = next(line for line in watched.view().metrics if line.name == "loss")
    assert loss.first == 3.0 and loss.logged == (40 if shown == 1 else 10)
    assert watched.view().step == steps[-1]


@pytest.mark.parametrize("name", ["1.16.0_grpo", "1.16.0_dpo", "0.23.1_kto"])
def test_flat_logs_are_followed(tmp_path, name):
    """Line by line, though the first lines may not tell the trainer: in the end it is what reading the whole gives."""
    rows = [{"step": 0, "loss": 1.0}, *captures.capture(name).rows]
    path = tmp_path / "log.jsonl"
    watched = WatchedRun(path)
    for row in rows:
        with open(path, "ab") as file:
            file.write(orjson.dumps(row) + b"\n")
        while not watched.poll():
            pass
    whole = Fold()
    for item in events_of(path):
        whole.take(item)
    state = RunState()
    ours = watched.view(0.0)
    theirs = whole.view(0.0, source="", state=state, alerts=(), judged="replay")
    assert ours.trainer == theirs.trainer == captures.capture(name).family
    assert ours.metrics == [line._replace(alert=mine.alert) for mine, line in zip(ours.metrics, theirs.metrics)]
    assert ours.events == theirs.events


def test_a_trainers_state_is_read_again(tmp_path):
    """A checkpoint's state is no log of lines; the newest checkpoint is looked for."""
    history = captures.capture("1.16.0_sft").rows
    for number in (3, 6):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_bytes(orjson.dumps({"log_history": [row for row in history if row["step"] <= number]}))
        watched = caught_up(tmp_path)
        assert watched.view().step == number


def test_long_runs_keep_their_shape_in_constant_memory():
    """Neighbouring steps are merged; first, lowest and highest stay exact, and a NaN stays visible."""
    fold = Fold()
    for step in range(1, 100_001):
        value = float("nan") if step == 50_000 else float(step)
        fold.take(event(step, loss=value))
    (loss,) = fold.view(0.0, source="", state=RunState(), alerts=(), judged="run").metrics
    assert (loss.first, loss.last, loss.low, loss.high, loss.nonfinite) == (1.0, 100_000.0, 1.0, 100_000.0, 1)
    finite = [point for point in loss.points if point == point]
    assert 256 <= len(loss.points) <= 512 and len(loss.points) - len(finite) == 1
    assert finite == sorted(finite)


def test_late_and_silent_runs_say_so():
    """A minute, or ten of the usual waits, without a log; and what the run's own watch for silence saw."""
    fold = Fold()
    for step in range(1, 20):
        fold.take(event(step, loss=1.0)._replace(wall_time=10.0 * step, time=timestamp(1000 + 10 * step)))
    at = 1000 + 190
    state = RunState("running", None, 100)
    assert not fold.view(at + 95, source="", state=state, alerts=(), judged="run").late
    late = fold.view(at + 105, source="", state=state, alerts=(), judged="run")
    assert late.late and late.last_log_s == pytest.approx(105) and late.usual_s == pytest.approx(10)
    assert late.left_s == pytest.approx(81 * 10 - 105) and late.elapsed_s == pytest.approx(190 + 105)
    fold.take(event(19, silence_s=300.0, notes=("no sign of life for 300 s; the training thread is in x.py:1 f",)))
    assert "x.py:1" in fold.view(at, source="", state=state, alerts=(), judged="run").silent
    fold.take(event(20, loss=1.0))
    assert fold.view(at, source="", state=state, alerts=(), judged="run").silent == ""


# The frame


def cli(*arguments, columns=None, **environment):
    """Runs the command with its output in a pipe."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    settings.pop("COLUMNS", None)
    if columns:
        settings["COLUMNS"] = str(columns)
    return subprocess.run(
        [sys.executable, "-m", "rldk", "watch", *map(str, arguments)], capture_output=True, timeout=60, env=settings,
    )


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_once(recorded, columns):
    """One frame, without an escape, that is as wide as it may be."""
    done = cli(recorded, "--once", columns=columns)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"") and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= columns
    assert "grpo_run" in text and "completed" in text and "step 12 of 12" in text and "kl_divergence" in text
    assert re.search(r"reward_mean\s+[▁-█]+", text)


def test_a_pipe_gets_one_frame_and_json_is_what_it_shows(recorded):
    """Without a terminal there is nothing to keep drawing on."""
    assert cli(recorded).stdout.startswith(b"grpo_run")
    shown = orjson.loads(cli(recorded, "--json").stdout)
    assert shown["alerts"] == own_alerts(recorded) and shown["step"] == 12 and shown["judged"] == "run"
    assert shown["metrics"]["reward_mean"]["last"] == [
        item.metrics["reward_mean"] for item in events_of(recorded / "grpo_run_events.jsonl") if item.phase == "train"
    ][-1]
    chosen = orjson.loads(cli(recorded, "--json", "--metric", "lr", "--metric", "kl").stdout)
    assert list(chosen["metrics"]) == ["lr", "kl_mean"]


def test_exit_codes(recorded, tmp_path):
    """1 for an alert at or above --fail-on, 2 for what cannot be watched."""
    worst = max((alert["severity"] for alert in own_alerts(recorded)), key=("info", "warning", "critical").index)
    assert cli(recorded, "--once", "--fail-on", worst).returncode == 1
    assert cli(recorded, "--once", "--fail-on", "never").returncode == 0
    for path, says in ((tmp_path / "nowhere", b"no such file"), (tmp_path, b"no log in")):
        done = cli(path, "--once")
        assert done.returncode == 2 and says in done.stderr and not done.stdout
    (tmp_path / "x_events.jsonl").write_bytes(b"")
    assert cli(tmp_path, "--once").returncode == 2
    assert cli(recorded, "--threshold", "kl_divergenc=1").returncode == 2
    assert cli(recorded, "--interval", "0.01").returncode == 2


def test_an_encoding_without_blocks_gets_ascii(recorded):
    """An old terminal shows signs that it has."""
    done = cli(recorded, "--once", columns=80, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    text = done.stdout.decode("ascii")
    assert re.search(r"reward_mean\s+[_.\-~=+*#]+ ", text) and "\\u" not in text


HOSTILE = "[red]x[/red]\x1b]0;owned\x07\x1b[2J\u202e\n"


def test_hostile_names_do_nothing(tmp_path):
    """Escapes and markup in names, notes and alerts are shown, and not obeyed."""
    info = {"run_id": HOSTILE, "trainer": f"sft{HOSTILE}"}
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(encode(Event(step, 0.1, {HOSTILE: 1.0, "loss": float("nan")}, model_info=info)) for step in range(1, 9)))
    done = cli(path, "--once", columns=80)
    text = done.stdout.decode()
    assert done.returncode == 0 and "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[red]x" in text and "\\x1b" in text and "non_finite" in text
    assert max(map(len, text.splitlines())) <= 80


ODD = [1, -5, 0.5, 1e308, -1e308, None, True, "x", "\x1b[2J", "名前" * 20, [1], {"a": 1}, 2**63 - 1, -(2**63), 1e-320, 10**25]
NAMES = ["loss", "reward_mean", "silence_s", "eval_loss", "memory_bytes", "step", "e\u0301\u200b名前" * 9, "[red]", "", "x" * 300]


@pytest.mark.parametrize("seed", range(40))
def test_no_log_breaks_it(tmp_path, seed):
    """Whatever stands in the stream and beside it, a frame is drawn that fits."""
    draw = random.Random(seed)

    def odd():
        return draw.choice(ODD)

    path = tmp_path / "r_events.jsonl"
    beside = {"pid": odd(), "arguments": odd(), "rldk": odd(), "status": draw.choice(["running", odd()]), "files": odd()}
    for name in ("run", "final_report"):
        (tmp_path / f"r_{name}.json").write_text(json.dumps(beside))
    if seed % 2:
        alert = {"code": odd(), "severity": draw.choice(["info", odd()]), "step": odd(), "message": odd(), "evidence": odd()}
        fields = dict.fromkeys(("name", "wall_time", "metric", "value", "threshold", "advice", "resolved_step", "docs"), "x")
        (tmp_path / "r_alerts.json").write_text(json.dumps([{**fields, **alert}]))
    watched = WatchedRun(tmp_path)
    for step in range(30):
        record = {
            "step": draw.choice([step, step, odd()]), "wall_time": draw.choice([float(step), odd()]), "rng": odd(),
            "metrics": {draw.choice(NAMES): odd() for _ in range(draw.randrange(6))}, "time": odd(),
            "model_info": draw.choice([{"run_id": "r", "phase": odd(), "setup": {"arguments": odd(), "facts": odd()}}, odd()]),
            "notes": draw.choice([[], ["resumed from step 2"], odd()]),
        }
        with open(path, "ab") as file:
            file.write(json.dumps(record).encode() + draw.choice([b"\n", b"\n", b"\n\xff\x00{\n"]))
        if step % 5 == 0:
            while not watched.poll():
                pass
            view = watched.view()
            orjson.loads(json_bytes(view.to_dict()))
            for width, height in ((20, 5), (40, 12), (80, 24), (200, None)):
                drawn = frame(view, width, height, glyphs_for("utf-8"), "q quits")
                assert all(cell_len(line.plain) <= width and line.plain.isprintable() for line in drawn)
                assert height is None or len(drawn) <= height


# The terminal


class Screen:
    """What the escapes that rich sends make of a terminal."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.screens = {False: {}, True: {}}
        self.alternate = self.hidden = False
        self.row = self.column = 0
        self.saved = 0, 0

    def feed(self, text):
        for escape, control, character in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|([\r\n\x08\x07])|(.)", text, re.DOTALL):
            if escape:
                self.escape(escape[2:-1], escape[-1])
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self.row += 1
            elif character:
                assert self.column < self.columns, f"line {self.row} is wider than {self.columns}"
                assert self.row < self.rows or not self.alternate
                self.screens[self.alternate][self.row, self.column] = character
                self.column += 1

    def escape(self, arguments, final):
        numbers = [int(part) for part in re.findall(r"\d+", arguments)] or [1]
        cells = self.screens[self.alternate]
        if final == "H":
            self.row, self.column = (numbers[0] - 1, numbers[1] - 1) if len(numbers) > 1 else (0, 0)
        elif final == "K":
            for place in [place for place in cells if place[0] == self.row]:
                del cells[place]
        elif final == "J":
            cells.clear()
        elif final in "hl" and arguments == "?25":
            self.hidden = final == "l"
        elif final in "hl" and arguments == "?1049":
            self.alternate = final == "h"
            if self.alternate:
                self.saved = self.row, self.column
            else:
                self.row, self.column = self.saved
        else:
            assert final == "m", f"unexpected escape {arguments}{final}"

    def text(self):
        cells = self.screens[self.alternate]
        last = max((row for row, _ in cells), default=0)
        return "\n".join("".join(cells.get((row, column), " ") for column in range(self.columns)).rstrip() for row in range(last + 1))


class Session:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, *arguments, columns=80, rows=24, command=("-m", "rldk", "watch"), **environment):
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            if name not in environment:
                settings.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, env=settings, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.output = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character

    def resize(self, columns, rows):
        self.columns, self.rows = columns, rows
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def screen(self):
        screen = Screen(self.columns, self.rows)
        screen.feed(self.output)
        return screen

    def read(self, seconds=0.2):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if ready:
                self.output += self.decoder.decode(os.read(self.master, 1 << 16))

    def until(self, wanted, seconds=30):
        """Reads until the screen shows something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read(0.1)
            try:
                if re.search(wanted, self.screen().text()):
                    return
            except AssertionError:
                if time.monotonic() + 1 > deadline:
                    raise
        pytest.fail(f"never showed {wanted!r}, but:\n{self.screen().text()}\n{self.output[-500:]!r}")

    def press(self, keys):
        os.write(self.master, keys)

    def end(self, seconds=30):
        """Waits for the end. Returns the exit code; the terminal must be as it was."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        assert self.process.poll() is not None, "it goes on"
        self.read(0.2)
        assert termios.tcgetattr(self.slave) == self.before
        screen = self.screen()
        assert not screen.hidden and not screen.alternate
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in (self.master, self.slave):
            os.close(end)


@pytest.fixture
def session():
    """Starts sessions, and ends what is left of them."""
    opened = []

    def start(*arguments, **options):
        opened.append(Session(*arguments, **options))
        return opened[-1]

    yield start
    for item in opened:
        item.close()


WRITER = """
import sys, time
from rldk.event import Event, timestamp
from rldk.event import encode
path, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
began, step = time.time(), 0
with open(path, "ab", buffering=0) as file:
    while time.time() - began < seconds:
        step += 1
        metrics = {f"m{index}": step * 0.1 + index for index in range(15)}
        metrics.update(loss=3.0 / step, reward_mean=step / 100, kl_mean=0.01, grad_norm=1.0, lr=1e-4, entropy_mean=1.0)
        info = {"run_id": "written", "trainer": "grpo"}
        file.write(encode(Event(step, time.time() - began, metrics, model_info=info, time=timestamp(time.time()))))
        time.sleep(max(0.0, began + step / rate - time.time()))
"""


@pytest.fixture
def writer(tmp_path):
    """Starts a process that writes events, and ends it."""
    running = []
    (tmp_path / "writer.py").write_text(WRITER)

    def start(path, rate, seconds):
        running.append(subprocess.Popen(
            [sys.executable, str(tmp_path / "writer.py"), str(path), str(rate), str(seconds)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ))

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50), (40, 12)])
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "plain"])
def test_a_growing_run(session, writer, tmp_path, columns, rows, colour):
    """A file that is not there yet, and then grows: it is on the screen within moments, and q ends it."""
    path = tmp_path / "live_events.jsonl"
    shown = session(path, columns=columns, rows=rows, **({} if colour else {"NO_COLOR": "1"}))
    shown.until("waiting for")
    writer(path, 20, 30)
    shown.until(r"written[\s\S]*reward_mean[\s\S]*no alerts")
    shown.until(r"last log [0-5] s ago")
    frame = shown.screen().text()
    assert shown.screen().alternate and shown.screen().hidden
    assert re.search(r"reward_mean +[▁-█]+ +\d", frame), frame
    assert bool(re.search("\x1b\\[[\\d;]*3[1-6]", shown.output)) == colour
    shown.press(b"q")
    assert shown.end() == 0
    assert "reward_mean" in shown.screen().text()  # the last frame stays


@pytest.mark.parametrize("way", ["ctrl_c", "SIGTERM", "SIGHUP", "SIGINT"])
def test_it_ends_whatever_ends_it(session, recorded, way):
    """The terminal is given back, and the exit code says what --fail-on asks."""
    shown = session(recorded, "--stay", "--fail-on", "info")
    shown.until("grpo_run")
    if way == "ctrl_c":
        shown.press(b"\x03")
    else:
        os.kill(shown.process.pid, getattr(signal, way))
    assert shown.end() == 1


def test_a_window_that_closes_ends_it(recorded):
    """Nothing is left running without a terminal."""
    shown = Session(recorded, "--stay")
    shown.until("grpo_run")
    os.close(shown.master)
    os.close(shown.slave)
    assert shown.process.wait(30) == 0


def test_it_ends_with_the_run(session, recorded):
    """Without --stay, a run that has ended is shown once."""
    shown = session(recorded)
    assert shown.end() == 0
    assert "completed" in shown.screen().text() and "q quits" not in shown.screen().text()


def test_a_resize_draws_anew(session, recorded):
    """At once, over the whole of the new size."""
    shown = session(recorded, "--stay", "--interval", "60")
    shown.until("reward_mean")
    shown.output = ""
    shown.resize(120, 30)
    shown.until("grpo_run")
    assert shown.process.poll() is None
    frame = shown.screen().text()
    assert "high" in frame and max(map(len, frame.splitlines())) > 80
    shown.press(b"q")
    deadline = time.monotonic() + 30
    while shown.process.poll() is None and time.monotonic() < deadline:
        shown.read(0.1)
    assert shown.process.returncode == 0


SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-m", "rldk", "watch", *sys.argv[1:]])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    print("STOPPED", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, child)
    os.kill(child, signal.SIGCONT)
"""


def test_ctrl_z_gives_the_terminal_back(session, recorded, tmp_path):
    """Stopped, it leaves the shell a sane terminal; continued, it draws again."""
    (tmp_path / "shell.py").write_text(SHELL)
    shown = session(recorded, "--stay", "--interval", "0.25", command=[str(tmp_path / "shell.py")])
    shown.until("grpo_run")
    shown.press(b"\x1a")
    shown.until("STOPPED")
    screen = shown.screen()
    assert not screen.hidden and not screen.alternate and termios.tcgetattr(shown.slave) == shown.before
    shown.press(b"\n")
    shown.until("grpo_run")
    assert shown.screen().alternate
    shown.press(b"q")
    assert shown.end() == 0


def test_it_costs_little(session, writer, tmp_path):
    """On a file that grows by a hundred events a second. The bound is generous: this machine has other things to do."""
    path = tmp_path / "fast_events.jsonl"
    writer(path, 100, 60)
    shown = session(path, columns=120, rows=40)
    shown.until("reward_mean")
    process = psutil.Process(shown.process.pid)
    before, began = process.cpu_times(), time.monotonic()
    shown.read(6.0)
    after, seconds = process.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - before.user - before.system) / seconds
    assert share < 0.20, f"{share:.1%} of a core"
    shown.press(b"q")
    assert shown.end() == 0


def test_watching_writes_nothing(recorded):
    """The run's folder is as it was."""
    before = {path: path.stat().st_mtime_ns for path in recorded.iterdir()}
    cli(recorded, "--once")
    assert {path: path.stat().st_mtime_ns for path in recorded.iterdir()} == before
    assert read_object(recorded / "grpo_run_final_report.json")["status"] == "completed"
