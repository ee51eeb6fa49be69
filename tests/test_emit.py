"""EventWriter: what a returned call has written stays written."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rldk.adapters._lines import Damage, read_records
from rldk.emit import EventWriter
from rldk.event import PHASES, Event, decode
from rldk.exceptions import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]


def lines(path) -> list[dict]:
    """Every line of a file, each of which must be an object."""
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n")[:-1] if line.strip()]


def readable(path) -> tuple[list[int], int]:
    """The steps that rldk's reader finds in a file, and how many lines it had to skip."""
    damage = Damage(Path(path))
    steps = [decode(record).step for _, record in read_records(Path(path), damage)]
    return steps, damage.count


def start(source: str, *arguments: object, **pipes) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes
    )


class TestLog:
    def test_one_line_a_call(self, tmp_path):
        """Each call is on disk when it returns, in a file whose folders were made."""
        path = tmp_path / "new" / "folders" / "run_events.jsonl"
        with EventWriter(path, run_id="r", seed=42, tags={"kind": "x"}) as writer:
            for step in range(3):
                writer.log(step=step, metrics={"loss": 1.0 / (step + 1)})
                assert len(lines(path)) == step + 1
        first = lines(path)[0]
        assert first["model_info"] == {"run_id": "r", "tags": {"kind": "x"}, "phase": "train"}
        assert first["rng"] == {"seed": 42}
        assert first["wall_time"] >= 0

    def test_appends_only(self, tmp_path):
        """A second writer adds to what stands and changes none of it."""
        path = tmp_path / "e.jsonl"
        with EventWriter(path) as writer:
            writer.log(1, {"loss": 1.0})
        before = path.read_bytes()
        with EventWriter(path) as writer:
            writer.log(2, {"loss": 2.0})
        assert path.read_bytes().startswith(before)
        assert [line["step"] for line in lines(path)] == [1, 2]

    def test_name_and_value(self, tmp_path):
        """One number may be given by name and value, synonyms included; None is a value."""
        path = tmp_path / "e.jsonl"
        with EventWriter(path) as writer:
            writer.log(1, name="kl", value=0.5)
            writer.log(step=2, name="my_metric", value=None)
        assert [line["metrics"] for line in lines(path)] == [{"kl_mean": 0.5}, {"my_metric": None}]

    def test_synonyms(self, tmp_path):
        """Names that a person types become canonical, with `eval_` in front too."""
        path = tmp_path / "e.jsonl"
        with EventWriter(path) as writer:
            writer.log(1, {"kl": 1, "learning_rate": 2, "clip_fraction": 3, "eval_reward": 4, "mine": 5})
        assert lines(path)[0]["metrics"] == {"kl_mean": 1, "lr": 2, "clip_frac": 3, "eval_reward_mean": 4, "mine": 5}

    @pytest.mark.parametrize(
        "given", [{"kl": 1.0, "kl_mean": 2.0}, {"kl_mean": 2.0, "kl": 1.0}, {"kl": 1, "kl_divergence": 2}]
    )
    def test_synonyms_that_meet(self, given, tmp_path):
        """Two names for one metric in one call lose neither value."""
        path = tmp_path / "e.jsonl"
        with EventWriter(path) as writer:
            writer.log(1, given)
        assert sorted(lines(path)[0]["metrics"].values()) == [1, 2]

    @pytest.mark.parametrize(
        ("value", "written"),
        [
            (True, 1.0), (np.float32(0.5), 0.5), (np.int64(3), 3), (np.array(0.5), 0.5), (np.array([0.5]), 0.5),
            (np.bool_(True), 1.0), (10**400, None), (np.float32("nan"), None), (2**64, 2.0**64),
        ],
        ids=repr,
    )
    def test_what_holds_a_number(self, value, written, tmp_path):
        """Numpy scalars, arrays of one element, bools and huge integers are written as the number that they hold."""
        path = tmp_path / "e.jsonl"
        with EventWriter(path) as writer:
            writer.log(1, {"a": value})
        line = lines(path)[0]
        assert line["metrics"] == {"a": written}
        assert type(line["metrics"]["a"]) in (int, float, type(None))
        assert ("nonfinite" in line) == (written is None)

    def test_keys_become_text(self, tmp_path):
        """A key that is no string is written as its text."""
        with EventWriter(tmp_path / "e.jsonl") as writer:
            writer.log(1, {7: 1.0, None: 2.0})
        assert lines(tmp_path / "e.jsonl")[0]["metrics"] == {"7": 1.0, "None": 2.0}

    def test_one_text(self, tmp_path):
        """A single tag or note given as text is one tag or note, and not its letters."""
        with EventWriter(tmp_path / "e.jsonl", tags="baseline") as writer:
            writer.log(1, {"a": 1.0}, notes="a note")
        line = lines(tmp_path / "e.jsonl")[0]
        assert line["model_info"]["tags"] == ["baseline"]
        assert line["notes"] == ["a note"]

    @pytest.mark.parametrize("phase", PHASES)
    def test_phases(self, phase, tmp_path):
        """All phases of the schema can be logged, with notes."""
        with EventWriter(tmp_path / "e.jsonl") as writer:
            writer.log(1, {"a": 1.0}, phase=phase, notes=["one", "two"])
        line = lines(tmp_path / "e.jsonl")[0]
        assert line["model_info"]["phase"] == phase
        assert line["notes"] == ["one", "two"]

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"step": 1}, "exactly one"),
            ({"step": 1, "metrics": {"a": 1}, "name": "a", "value": 1}, "exactly one"),
            ({"step": 1, "metrics": {"a": 1}, "value": 1}, "exactly one"),
            ({"step": 1.5, "metrics": {}}, "1.5"),
            ({"step": True, "metrics": {}}, "True"),
            ({"step": "7", "metrics": {}}, "'7'"),
            ({"step": 2**63, "metrics": {}}, "64 bits"),
            ({"step": 1, "metrics": {"a": 1}, "phase": "trian"}, "'trian'"),
            ({"step": 1, "metrics": {"a": "high"}}, "'high'"),
            ({"step": 1, "metrics": {"a": [1, 2]}}, "'a'"),
            ({"step": 1, "metrics": {"a": np.array([1, 2])}}, "'a'"),
            ({"step": 1, "name": "a", "value": 1j}, "complex"),
        ],
        ids=str,
    )
    def test_refuses(self, arguments, word, tmp_path):
        """What cannot be written is refused in the caller's words, and nothing is written."""
        with EventWriter(tmp_path / "e.jsonl") as writer, pytest.raises(ConfigurationError, match=word):
            writer.log(**arguments)
        assert (tmp_path / "e.jsonl").read_bytes() == b""

    def test_closed(self, tmp_path):
        """A closed writer says so; closing twice is no error."""
        writer = EventWriter(tmp_path / "e.jsonl")
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="closed"):
            writer.log(1, {"a": 1.0})

    def test_no_folder(self, tmp_path):
        """A path below a file cannot be opened, and that is the caller's error."""
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="file"):
            EventWriter(tmp_path / "file" / "e.jsonl")

    def test_fsync(self, tmp_path):
        """Forcing every line to the device writes the same lines."""
        with EventWriter(tmp_path / "e.jsonl", fsync=True) as writer:
            writer.log(1, {"a": 1.0})
            writer.write(Event(2, 0.0, {"a": math.nan}))
        assert [line["step"] for line in lines(tmp_path / "e.jsonl")] == [1, 2]


WHOLE = b'{"step": 1, "wall_time": 0.0, "metrics": {"a": 1}}'


class TestHealing:
    @pytest.mark.parametrize(
        ("tail", "steps"),
        [
            (b"", [1, 2]),
            (b"\n", [1, 2]),
            (WHOLE, [1, 1, 2]),
            (WHOLE[:-1], [1, 2]),
            (b"{", [1, 2]),
            (b"   ", [1, 2]),
            (b"\0" * 4096, [1, 2]),
            (b"\xff\xfe{", [1, 2]),
            (b"123", [1, 2]),
            (b'{"a": "' + b"x" * 70_000, [1, 2]),
            (b"{" + b"x" * (3 << 19) + b"\n{", [1, 2]),
        ],
        ids=["none", "blank", "whole", "torn", "brace", "spaces", "nul", "bytes", "number", "long", "after-long"],
    )
    def test_last_line(self, tail, steps, tmp_path):
        """A last line without its newline gets it if it is whole, is blanked if not, and the next line is its own."""
        path = tmp_path / "e.jsonl"
        path.write_bytes(WHOLE + b"\n" + tail)
        with EventWriter(path) as writer:
            writer.log(2, {"a": 2.0})
        assert path.read_bytes().startswith(WHOLE + b"\n")
        assert path.stat().st_size >= len(WHOLE) + 1 + len(tail)
        found, skipped = readable(path)
        assert found == steps
        assert skipped == tail.count(b"xx\n")  # what was no line before the crash is none after it

    def test_only_a_torn_line(self, tmp_path):
        """A file that holds nothing but a torn line is healed too."""
        path = tmp_path / "e.jsonl"
        path.write_bytes(b'{"step": 1, "met')
        with EventWriter(path) as writer:
            writer.log(2, {"a": 2.0})
        assert readable(path) == ([2], 0)

    def test_endless_tail(self, tmp_path):
        """A megabyte without a newline was never a line of ours: it is left as it is, and ended."""
        path = tmp_path / "e.jsonl"
        path.write_bytes(b"x" * (3 << 20))
        with EventWriter(path) as writer:
            writer.log(2, {"a": 2.0})
        assert path.read_bytes().startswith(b"x" * (3 << 20) + b"\n")
        assert readable(path) == ([2], 1)


SHARED = """
import sys, time
from pathlib import Path
from rldk.emit import EventWriter
path, me, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
Path(path).with_suffix(f".ready{me}").touch()
while not Path(path).with_suffix(".go").exists():
    time.sleep(0.001)
for part in range(4):
    with EventWriter(path, run_id=f"r{me}") as writer:
        for index in range(count):
            step = (part * count + index) * 10 + me
            writer.log(step, {f"metric_{n}": step + 0.5 for n in range(1 + step % 200)}, notes=["x" * (step % 5000)])
"""


def test_several_processes(tmp_path):
    """Four processes that write long lines to one file, and open it again and again, tear and lose none."""
    path = tmp_path / "e.jsonl"
    children = [start(SHARED, path, me, 60) for me in range(4)]
    deadline = time.monotonic() + 60
    while not all(path.with_suffix(f".ready{me}").exists() for me in range(4)) and time.monotonic() < deadline:
        time.sleep(0.005)
    path.with_suffix(".go").touch()
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    found, skipped = readable(path)
    assert skipped == 0
    assert sorted(found) == sorted(index * 10 + me for me in range(4) for index in range(240))
    for me in range(4):
        own = [step for step in found if step % 10 == me]
        assert own == sorted(own)


RELENTLESS = """
import os, sys
from rldk.emit import EventWriter
step = int(sys.argv[2])
writer = EventWriter(sys.argv[1])
while True:
    writer.log(step, {f"metric_{n}": step + n / 7 for n in range(25)})
    os.write(1, b"%d\\n" % step)
    step += 1
"""


def test_kill(tmp_path):
    """A process killed at a random moment, twenty times on one file, loses no event whose call had returned."""
    path, draw, step = tmp_path / "e.jsonl", random.Random(7), 0
    acknowledged: set[int] = set()
    for _ in range(20):
        with start(RELENTLESS, path, step, stdout=subprocess.PIPE) as child:
            first = child.stdout.readline()
            time.sleep(draw.uniform(0.0, 0.03))
            child.send_signal(signal.SIGKILL)
            *whole, _torn = (first + child.stdout.read()).split(b"\n")
        assert whole
        acknowledged.update(map(int, whole))
        step = max(acknowledged) + 2  # one more may be there, written and never acknowledged
    with EventWriter(path):
        pass
    found, skipped = readable(path)
    assert skipped == 0
    assert acknowledged <= set(found)
    assert len(found) <= len(acknowledged) + 20
    assert len(found) == len(set(found))


FULL_DISK = """
import json, resource, signal, sys
from rldk.emit import EventWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
room = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
writer = EventWriter(sys.argv[1])
written, errors = [], []
for step in range(60):
    if step in (20, 40):  # some space, then enough
        room = room + 700 if step == 20 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        writer.log(step, {"loss": step / 3})
        written.append(step)
    except OSError as error:
        errors.append(error.errno)
writer.close()
print(json.dumps([written, errors]))
"""


@pytest.mark.parametrize("room", [0, 1, 1000, 1500, 1777])
def test_full_disk(room, tmp_path):
    """On a full disk a call raises OSError; what returned is readable, and writing resumes when there is space."""
    path = tmp_path / "e.jsonl"
    child = start(FULL_DISK, path, room, stdout=subprocess.PIPE)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    written, errors = json.loads(out)
    assert errors
    assert set(range(40, 60)) <= set(written)
    found, skipped = readable(path)
    assert found == written
    assert skipped <= 2  # what was written in part, once for each time that the disk was full


def test_full_device(tmp_path):
    """A device without space raises OSError at each call, and the writer can still be closed."""
    writer = EventWriter("/dev/full")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            writer.log(1, {"loss": 1.0})
    writer.close()
