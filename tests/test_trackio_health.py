"""A training survives whatever is called trackio: stray files and folders, stubs, a missing package, a Space that is silent.

Each case trains for real and saves checkpoints, in a process of
its own (see trackio_cases.py): beside the installed trackio, and without it, in an environment that has all but trackio.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from packaging.version import Version

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]
HAS = importlib.util.find_spec("trackio") is not None
NEW = Version(importlib.metadata.version("transformers")) >= Version("5")
ASKS = Version(importlib.metadata.version("trl")) >= Version("0.29")  # at each checkpoint, whatever it reports to
ALL = ["torch", "pandas", "datasets", "accelerate", "transformers", "zoo"]
CHECKPOINTS = ["checkpoint-2", "checkpoint-4"]


@pytest.fixture(scope="session")
def without_trackio(tmp_path_factory):
    """A folder with all that is installed here, but for trackio."""
    folder = tmp_path_factory.mktemp("without") / "site-packages"  # dill goes by the name
    folder.mkdir()
    homes = [Path(sysconfig.get_path("purelib")), Path(importlib.util.find_spec("torch").origin).parents[1]]
    for entry in [entry for home in homes for entry in home.iterdir()]:
        stray = entry.name.startswith("trackio") or entry.suffix == ".pth"
        if not stray and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


class Group:
    """Cases that are run together, when the first of them is asked for."""

    def __init__(self, tmp_path_factory):
        self.factory = tmp_path_factory
        self.folders = {}

    def run(self, name, cases, preload, packages=None, **environment):
        """Runs them once; gives each one's folder."""
        if name not in self.folders:
            folder = self.folders[name] = self.factory.mktemp(name)
            (folder / "group.json").write_text(json.dumps({"folder": str(folder), "preload": preload, "cases": cases}))
            path = [str(packages)] if packages else []
            own = {key: value for key, value in os.environ.items() if not key.startswith(("TRACKIO_", "RLDK_", "HF_TOKEN"))}
            done = subprocess.run(
                [sys.executable, *(["-S"] if packages else []), str(ROOT / "tests" / "trackio_cases.py"), str(folder / "group.json")],
                cwd=folder, capture_output=True, text=True, timeout=900,
                env={**own, "HF_HOME": str(folder / "hf"), "PYTHONPATH": os.pathsep.join([*path, str(ROOT), str(ROOT / "tests")]),
                     **environment},
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return self.folders[name]


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    return Group(tmp_path_factory)


def result(folder):
    """What a case wrote down, once it ended well."""
    output = (folder / "output.txt").read_text()
    assert (folder / "status.txt").read_text() == "0", output[-3000:]
    return json.loads((folder / "result.json").read_text())


def rows(folder, project="huggingface"):
    """What is in trackio's database: step, run and metrics, in the order of writing."""
    path = folder / "trackio_dir" / f"{project}.db"
    if not path.exists():
        return []
    found = sqlite3.connect(path).execute("SELECT step, run_name, metrics FROM metrics ORDER BY id").fetchall()
    return [(step, run, json.loads(metrics)) for step, run, metrics in found]


def losses(folder, **where):
    return [step for step, _, metrics in rows(folder, **where) if "train/loss" in metrics]


def trained(done, steps=4):
    assert done["steps"] == steps
    assert done["saved"] == CHECKPOINTS


# The table: a letter, what it is called with, and what becomes of it beside the real trackio and without it.

QUIET = {"settings": {"report_to": "none"}}
CASES = {
    "A": ({"stray": "A"}, "sound", "fallback"),  # nothing of that name
    "B": ({"stray": "B"}, "recovered", "patched"),  # an empty file
    "C": ({"stray": "C"}, "recovered", "patched"),  # somebody's own tracker, as wandb was
    "D": ({"stray": "D"}, "sound", "patched"),  # a folder
    "E": ({"stray": "E"}, "recovered", "fallback"),  # a file that cannot be imported
    "F": ({"stray": "F"}, "recovered", "fallback"),  # a file that is no Python
    "G": ({"stray": "G"}, "recovered", "patched"),  # an init with other parameters, and no more
    "H": ({"stray": "A", "stub": "module"}, "recovered", "patched"),  # a module without a spec
    "I": ({"stray": "A", "stub": "none"}, "fallback", "fallback"),  # blocked
    # Nobody reports to it; and report_to is left at its default, and TRL's GRPO, which logs to it by itself.
    "JB": ({"stray": "B", **QUIET}, "recovered", "patched"),
    "JC": ({"stray": "C", **QUIET}, "recovered", "patched"),
    "JD": ({"stray": "D", **QUIET}, "sound", "patched"),
    "JE": ({"stray": "E", **QUIET}, "recovered", "fallback"),
    "K": ({"stray": "B", "settings": {"report_to": "default"}}, "recovered", "patched"),
    "L": ({"stray": "A", "family": "grpo", "trl_first": True}, "sound", "fallback"),
    "LB": ({"stray": "B", "family": "grpo"}, "recovered", "patched"),
}
LATE = {"H", "LB"}  # these go through all the imports beside what they are about


def table(by):
    return {letter: {**case, "by": by} for letter, (case, _, _) in CASES.items() if not (by == "callback" and letter == "LB")}


def folder_of(letter, by, real, group, without_trackio):
    cases = table(by)
    late = letter in LATE
    name = f"{by}-{'late' if late else 'early'}-{'with' if real else 'without'}"
    chosen = {key: case for key, case in cases.items() if (key in LATE) == late}
    preload = ["torch", "pandas", "pyarrow"] if late else ALL
    return group.run(name, chosen, preload, None if real else without_trackio) / letter


@pytest.mark.parametrize("real", [True, False], ids=["with", "without"])
@pytest.mark.parametrize(("by", "letter"), [(by, letter) for by in ("install", "callback") for letter in table(by)])
def test_the_table(letter, by, real, group, without_trackio):
    """It trains to its end and saves, with one warning that names what stood in the way."""
    if real and not HAS:
        pytest.skip("trackio is not installed here")
    folder = folder_of(letter, by, real, group, without_trackio)
    done = result(folder)
    trained(done)
    verdict = CASES[letter][1 if real else 2]
    wanted = "trackio" in done["report_to"]
    assert wanted == (letter[0] not in "JK" or (letter == "K" and not NEW))
    if by == "callback" and not wanted:
        # Only what TRL will trip over is mended; what is not asked for is not even run.
        assert done["told"] == [] or ASKS
        verdict = verdict if ASKS else None
    if verdict is not None:
        assert done["health"][0] == verdict
        assert done["available"] or verdict == "absent"
    # One warning, of the file or folder where there is one.
    expected = 0 if verdict in ("sound", None) else 1
    assert len(done["told"]) == expected, done["told"]
    if expected and CASES[letter][0]["stray"] != "A":
        assert str(folder / "stray" / "trackio") in done["told"][0]
    if expected and letter == "A":
        assert "pip install trackio" in done["told"][0] and "RLDKCallback's files have everything" in done["told"][0]
    # Rows, and the steps that they are logged at: the trainer's.
    logged = losses(folder)
    assert logged == ([1, 2, 3, 4] if verdict in ("sound", "recovered") and wanted else [])
    if letter == "C" and not real:
        # What it does well it goes on to do.
        assert (folder / "own.txt").read_text().split("\n")[:3] == ["init", "log 1", "log 2"]
    if letter == "G":
        assert done["helper"] == "theirs"  # its other names are still found
    if by == "callback":
        assert (folder / "rldk_logs").is_dir()


DIES = {"B": {"stray": "B", "by": "nothing"}, "A": {"stray": "A", "by": "nothing"}}


def test_without_rldk_they_die(group, without_trackio):
    """The same training, the same stray file, nobody to help."""
    folder = group.run("dies", DIES, ALL, without_trackio)
    assert (folder / "B" / "status.txt").read_text() == "1"
    assert "module 'trackio' has no attribute 'init'" in (folder / "B" / "output.txt").read_text()
    assert (folder / "A" / "status.txt").read_text() == "1"
    assert "TrackioCallback requires trackio to be installed" in (folder / "A" / "output.txt").read_text()


# A Space or server that cannot be had: the run's rows are kept on this machine.

SPACE = {"report_to": "trackio", "trackio_space_id": "u/s"}
ONLINE = {"HF_HUB_OFFLINE": "0"}


class Ports:
    """Servers on this machine that are no use."""

    def __init__(self):
        self.sockets = []
        self.silent, self.garbage = self.serve(None), self.serve(b"\x00\xff garbage\r\n\r\n")
        self.broken = self.serve(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.closed = self.serve(b"")
        self.sockets.pop().close()

    def serve(self, answer):
        listening = socket.create_server(("127.0.0.1", 0))
        self.sockets.append(listening)
        threading.Thread(target=self.answer, args=(listening, answer), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    def answer(self, listening, answer):
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.sockets.append(connection)
            if answer is not None:
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()


@pytest.fixture(scope="session")
def ports():
    found = Ports()
    yield found
    for one in found.sockets:
        one.close()


def spaces(ports):
    token = {**ONLINE, "HF_TOKEN": "hf_notreal", "RLDK_TRACKIO_TIMEOUT": "3"}
    return {
        "offline": {"settings": SPACE},
        "offline_env": {"env": {"TRACKIO_SPACE_ID": "u/s"}},
        "no_token": {"settings": {**SPACE, "trackio_space_id": "myspace"}, "env": {**ONLINE, "HF_ENDPOINT": ports.closed}},
        "silent": {"settings": SPACE, "env": {**token, "HF_ENDPOINT": ports.silent}},
        "silent_no_token": {"settings": SPACE, "env": {**token, "HF_TOKEN": "", "HF_ENDPOINT": ports.silent}},
        "silent_hub": {"env": {**token, "HF_ENDPOINT": ports.silent}},  # no Space: trackio still asks who that token is
        "refuses": {"settings": SPACE, "env": {**token, "HF_ENDPOINT": ports.closed}},
        "error_500": {"settings": SPACE, "env": {**token, "HF_ENDPOINT": ports.broken}},
        "garbage": {"settings": SPACE, "env": {**token, "HF_ENDPOINT": ports.garbage}},
    }


NAMES = ["offline", "offline_env", "no_token", "silent", "silent_no_token", "silent_hub", "refuses", "error_500", "garbage"]


@pytest.mark.skipif(not HAS, reason="trackio is not installed here")
@pytest.mark.parametrize("name", NAMES)
def test_a_space_that_cannot_be_had(name, group, ports):
    """It is not waited for beyond the limit, one warning says so, and every row is in trackio's own database here."""
    cases = {key: {"stray": "A", "by": "callback", **case} for key, case in spaces(ports).items()}
    folder = group.run("spaces", cases, ["torch", "pandas", "pyarrow"]) / name
    done = result(folder)
    trained(done)
    assert done["seconds"] < 25
    assert losses(folder) == [1, 2, 3, 4]
    assert done["health"][0] == "sound"
    [told] = done["told"]
    assert str(folder / "trackio_dir") in told and "The rows are not sent there; they are kept on this machine" in told
    place = {"offline": "the Space u/s", "offline_env": "the Space u/s", "no_token": "the Space myspace", "silent_hub": "the Hub"}
    assert f"cannot use {place.get(name, 'the Space u/s')} (" in told
    if name.startswith("silent"):
        assert "no answer within 3 s" in told


# What else a training meets.

OTHERS = {
    "evaluated": {"evaluate": True},
    "evaluated_grpo": {"evaluate": True, "family": "grpo"},
    "resumed": {"again": True, "settings": {"report_to": "trackio", "run_name": "r"}},
    "guarded_in_place": {"by": "import", "settings": {**SPACE, "report_to": ["trackio", "rldk"]}},
    "added_later": {"by": "added", "evaluate": True},
    "added_later_stray": {"by": "added", "stray": "B", **QUIET},
    "nowhere": {"full": True, "family": "grpo", "evaluate": True},
    "refused": {"family": "grpo", "evaluate": True, "settings": {"report_to": "trackio", "project": "registry-mine"}},
    "off": {"env": {"RLDK_TRACKIO": "off"}},
}


def other(name, group):
    cases = {key: {"stray": "A", "by": "callback", **case} for key, case in OTHERS.items()}
    return group.run("others", cases, ALL) / name


@pytest.mark.skipif(not HAS, reason="trackio is not installed here")
class TestBesideTheRealOne:
    @pytest.mark.parametrize("name", ["evaluated", "evaluated_grpo", "added_later"])
    def test_an_evaluation_after_training_belongs_to_the_run(self, name, group):
        """Alone, transformers opens a second run for it or loses it, and TRL's GRPO ends with an error."""
        folder = other(name, group)
        done = result(folder)
        trained(done)
        assert done["told"] == []
        found = rows(folder)
        assert len({run for _, run, _ in found}) == 1
        # The last row, behind those of the training's end; transformers 5 also evaluates as it ends.
        step, _, metrics = found[-1]
        assert "eval/loss" in metrics
        assert metrics["train/global_step"] == 4 and step in (4, 5)
        if name != "added_later":
            assert losses(folder) == [1, 2, 3, 4] and step == 4
        settings = sqlite3.connect(folder / "trackio_dir" / "huggingface.db").execute("SELECT config FROM configs").fetchall()
        assert len(settings) == 1 and json.loads(settings[0][0])["max_steps"] == 4
        assert "allow_val_change" not in json.loads(settings[0][0])

    def test_a_resumed_run_goes_on_at_the_trainers_steps(self, group):
        """Trackio takes steps that come again."""
        folder = other("resumed", group)
        assert result(folder)["steps"] == 6
        assert losses(folder) == [1, 2, 3, 4, 3, 4, 5, 6]
        assert {run for _, run, _ in rows(folder)} == {"r"}

    def test_a_callback_that_was_built_before_is_guarded_in_place(self, group):
        """Transformers reads its table once, before `rldk` in `report_to` makes the callback that guards."""
        folder = other("guarded_in_place", group)
        done = result(folder)
        trained(done)
        assert len(done["told"]) == 1 and "cannot use the Space u/s" in done["told"][0]
        assert losses(folder) == [1, 2, 3, 4]

    def test_a_callback_that_is_added_to_a_trainer_mends_too(self, group):
        done = result(other("added_later_stray", group))
        trained(done)
        assert len(done["told"]) == ASKS

    @pytest.mark.parametrize("name", ["nowhere", "refused"])
    def test_one_that_cannot_keep_a_run_either(self, name, group):
        """No room for its files, or a project that newer ones refuse. TRL logs to it by itself, too."""
        done = result(other(name, group))
        trained(done)
        assert len(done["told"]) == (name == "refused" and NEW), done["told"]
        assert not done["told"] or "trackio cannot begin a run: ValueError: Project name" in done["told"][0]

    def test_it_can_be_switched_off(self, group):
        folder = other("off", group)
        done = result(folder)
        trained(done)
        assert done["health"] == ["off", None, "RLDK_TRACKIO=off"] and done["told"] == []
        assert len(losses(folder)) == 4


RAISES = {
    "raises": ({"stray": "raises"}, "cannot log: ValueError: theirs"),
    "raises_grpo": ({"stray": "raises", "family": "grpo"}, "cannot log: ValueError: theirs"),
    "exits": ({"stray": "exits"}, "cannot begin a run: SystemExit: 3"),
    "hangs": ({"stray": "hangs", "env": {"RLDK_TRACKIO_TIMEOUT": "1"}}, "cannot log: TimeoutError: no answer within 1 s"),
}


@pytest.mark.parametrize("name", RAISES)
def test_a_stray_module_that_fails_in_the_middle_is_let_alone(name, group, without_trackio):
    """One warning for what it lacks, one for the failure; it is called no more, by TRL neither."""
    cases = {key: {"by": "callback", **case} for key, (case, _) in RAISES.items()}
    done = result(group.run("raises", cases, ALL, without_trackio) / name)
    trained(done)
    assert len(done["told"]) == 2, done["told"]
    assert f"trackio {RAISES[name][1]}. It gets nothing more of this training" in done["told"][1]
    assert done["seconds"] < 20


# The check alone, without a trainer.


@pytest.fixture
def check(tmp_path, without_trackio):
    """Runs a few lines beside a stray module; gives what they print, and what is warned of."""

    def run(code, files=None, real=True, name="check.py", **environment):
        for file, text in (files or {}).items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(text)
        script = tmp_path / name
        script.write_text(code)
        path = [ROOT] if real else [without_trackio, ROOT]
        own = {key: value for key, value in os.environ.items() if not key.startswith(("TRACKIO_", "RLDK_"))}
        done = subprocess.run(
            [sys.executable, *([] if real else ["-S"]), str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env={**own, "PYTHONPATH": os.pathsep.join(map(str, path)), "TRACKIO_DIR": str(tmp_path / "db"), **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if line.startswith("rldk:")]

    return run


CHECK = "import sys\nfrom rldk.trackio import ensure_trackio, install\n"
real_only = pytest.mark.skipif(not HAS, reason="trackio is not installed here")


@real_only
def test_a_sound_one_is_not_imported_for_the_check(check):
    out, told = check(CHECK + "print(ensure_trackio(create=False).verdict, 'trackio' in sys.modules)\n"
                      "print(ensure_trackio().verdict, ensure_trackio(create=False).verdict, 'trackio' in sys.modules)\n")
    assert out == ["sound False", "sound sound True"] and told == []


def test_nothing_is_made_unless_asked_for(check):
    out, told = check(CHECK + "from importlib.util import find_spec\n"
                      "print(ensure_trackio(create=False).verdict, find_spec('trackio'), install().verdict, find_spec('trackio').origin)\n"
                      "import trackio\nfrom trackio import context_vars, Table, AlertLevel\nimport trackio.context_vars\n"
                      "run = trackio.init('p', name='n', space_id='u/s')\nrun.log({}, step=1); run.alert('x'); run.anything(1).__class__\n"
                      "trackio.config.update({'a': 1}, allow_val_change=True); trackio.config['b'] = 2\n"
                      "trackio.log({'a': Table(dataframe=1)}, step=1); trackio.Whatever(1); trackio.whatever(); trackio.finish()\n"
                      "print(dict(trackio.config), context_vars.current_run.get(), ensure_trackio().verdict)\n", real=False)
    assert out == ["absent None fallback rldk", "{'a': 1, 'b': 2} None fallback"]
    assert len(told) == 1 and "trackio is not installed; nothing goes to trackio" in told[0]


def test_off_is_off(check):
    out, told = check(CHECK + "print(install().verdict, 'trackio' in sys.modules)", {"trackio.py": ""}, RLDK_TRACKIO="off")
    assert out == ["off False"] and told == []


@real_only
def test_the_real_one_with_its_submodules_comes_past_a_stray_one(check):
    code = ("import trackio as theirs\n" + CHECK + "health = ensure_trackio(create=False)\nimport trackio\n"
            "from trackio import context_vars\nimport trackio.utils\nimport importlib.util as u\n"
            "print(health.verdict, health.path == theirs.__file__, all('site-packages' in m.__file__ for m in "
            "(trackio, context_vars, trackio.utils)), trackio.mine(), u.find_spec('trackio').origin == trackio.__file__)\n"
            "trackio.init(project='p'); trackio.log({'a': 1}); trackio.finish(); print(ensure_trackio().verdict)\n")
    out, told = check(code, {"trackio.py": "def init(): ...\ndef mine(): return 'mine'\n"})
    assert out[0] == "recovered True True mine True" and "recovered" in out[1:]
    assert len(told) == 1 and "trackio.py" in told[0]


def test_who_has_it_already_sees_it_mended(check):
    """The same object, with what it does well; one warning, from however many threads."""
    code = ("import trackio as theirs\n" + CHECK + "import threading\nfound = []\n"
            "threads = [threading.Thread(target=lambda: found.append(ensure_trackio().verdict)) for _ in range(8)]\n"
            "[t.start() for t in threads]; [t.join() for t in threads]\nimport trackio\n"
            "print(set(found), trackio is theirs, theirs.init(project='p', name='n'), theirs.mine(), theirs.context_vars.current_run.get())\n")
    out, told = check(code, {"trackio.py": "def mine(): return 'mine'\n"}, real=False)
    assert out[0].startswith("{'patched'} True <") and out[0].endswith("mine None")
    assert len(told) == 1 and "trackio.py, found as the module trackio, has no init, log, finish, config, context_vars" in told[0]


@pytest.mark.parametrize("real", [pytest.param(True, marks=real_only), False], ids=["with", "without"])
def test_a_program_of_that_name_is_not_run_twice(check, real):
    code = "print('once')\n" + CHECK + "print(install().verdict)\nimport trackio\nprint(trackio.__name__)\n"
    out, told = check(code, name="trackio.py", real=real)
    assert out == ["once", "recovered" if real else "fallback", "trackio"]
    assert len(told) == 1 and "is the program itself" in told[0]


@real_only
def test_an_installed_one_that_cannot_be_imported(check):
    out, told = check(CHECK + "print(install().verdict)", {"gradio_client.py": "raise ImportError('too old')"})
    assert out == ["fallback"]
    assert len(told) == 1 and "cannot be imported" in told[0] and "pip install --upgrade trackio" in told[0]


def test_stubs_of_any_kind(check):
    """Also such as are no modules."""
    code = ("import sys, importlib.util, unittest.mock\nstub = sys.modules['trackio'] = unittest.mock.MagicMock()\n"
            "from rldk.trackio import ensure_trackio\nprint(ensure_trackio().verdict, sys.modules['trackio'] is stub)\n"
            "print(importlib.util.find_spec('trackio') is not None)\n")
    out, _ = check(code, real=False)
    assert out == ["patched True", "True"]


def test_what_others_ask_for_is_answered(check):
    """Transformers and accelerate, which also looks for the package's metadata, after each verdict."""
    ask = ("from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as table, is_trackio_available as t\n"
           "from accelerate.utils import is_trackio_available as a\nprint(health.verdict, t(), a() is True, table['trackio'].__name__)\n")
    both = ("import accelerate.tracking\nfrom accelerate import Accelerator\nprint(Accelerator(log_with='trackio').log_with)\n")
    out, _ = check(CHECK + "health = install()\n" + ask + both, real=False)
    assert out[0] == "fallback True False GuardedTrackioCallback" and out[1] == "[]"
    before = "from rldk.integrations.trl import RLDKCallback\nfrom rldk.trackio import Health, ensure_trackio\nimport sys\n"
    for real in [True, False] if HAS else [False]:
        code = before + "RLDKCallback()\nhealth = ensure_trackio(create=False)\n" + ask + "print('trackio' in sys.modules)\n"
        out, told = check(code, real=real)
        verdict = "sound True True" if real else "absent False False"
        assert out == [f"{verdict} GuardedTrackioCallback", "False"] and told == []
