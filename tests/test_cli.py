"""The command line: exit codes, what is printed where, real logs, hostile ones, and terminals of all kinds."""

from __future__ import annotations

import csv
import errno
import io
import json
import lzma
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from captures import capture, captures
from typer.testing import CliRunner

from rldk import EventWriter, RLDKCallback, ingest_runs, rebuild_run
from rldk.cli import app, command_names
from rldk.detectors import detector_classes, make_detectors
from rldk.event import Event, encode
from rldk.exceptions import ConfigurationError
from rldk.monitor import Monitor
from rldk.rebuild import lacking

ROOT = Path(__file__).resolve().parents[1]
STATES = Path(__file__).parent / "data" / "real_states"
LABELS = [json.loads(line) for line in (STATES / "manifest.jsonl").read_text().splitlines()]
ESCAPE = "\x1b"
HOSTILE = ("<script>alert(1)</script>", "\x1b[31mred\x1b]0;title\x07", "[bold]x[/bold]", "=1+cmd|' /C calc'!A0", "a\nb\rc", "\u202eevil")


def run(*arguments, code=0):
    """A command in this process; what it printed to stdout."""
    done = CliRunner().invoke(app, [str(item) for item in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done.stdout


def failure(*arguments):
    """A command that ends with exit code 2: the one line that it says."""
    done = CliRunner().invoke(app, [str(item) for item in arguments])
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr


def process(*arguments, **environment):
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rldk", *map(str, arguments)], capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def state(label, folder):
    """A real trainer_state.json."""
    path = folder / f"{label}.json"
    path.write_bytes(lzma.decompress((STATES / f"{label}.json.xz").read_bytes()))
    return path


def stream(path, run_id="r", steps=60, metrics=None, **more):
    """An event stream whose loss turns NaN at its last step, unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        for step in range(1, steps + 1):
            values = metrics(step) if metrics else {"loss": 1.0 if step < steps else float("nan"), "lr": 1e-4}
            file.write(encode(Event(step, float(step), values, model_info={"run_id": run_id, **more})))
    return path


class TestFrame:
    def test_commands_are_found(self):
        """One command a file."""
        assert {"detectors", "doctor", "ingest", "replay", "report"} <= set(command_names())
        listed = run("--help")
        assert all(re.search(rf"^  {name} ", listed, flags=re.MULTILINE) for name in command_names())

    @pytest.mark.parametrize("name", command_names())
    def test_help(self, name):
        """Every command's help has its first line and examples of itself."""
        text = run(name, "--help")
        assert "Examples:" in text and f"\n    rldk {name}" in text
        assert "Args:" not in text and max(map(len, text.splitlines())) <= 100
        assert run(name, "-h") == text

    def test_version(self):
        """The installed one."""
        assert re.fullmatch(r"rldk \d+\.\d+\S*\n", run("--version"))

    def test_unknown_command(self):
        """The nearest is named."""
        assert "Did you mean 'replay'?" in failure("relay")
        assert "No such option" in failure("replay", "--no-such")

    def test_start_up(self):
        """Help imports no command; a command's help none of the libraries that take their time."""
        code = (
            "import sys\nfrom rldk.cli import main\n"
            "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
            "heavy = {'torch', 'transformers', 'trl', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "if sys.argv[1] == '--help':\n"
            "    commands = {name for name in sys.modules if name.startswith('rldk.cli.') and '._' not in name}\n"
            "    assert not commands, commands\n"
            "    assert 'numpy' not in sys.modules\n"
        )
        for arguments in (["--help"], *([name, "--help"] for name in command_names())):
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, (arguments, done.stderr)

    @pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete")])
    def test_completion(self, shell, mark):
        """The script that a shell sources, and the names that it then asks for."""
        script = process("--help", _RLDK_COMPLETE=f"source_{shell}")
        assert script.returncode == 0 and mark.encode() in script.stdout and b"_RLDK_COMPLETE" in script.stdout
        if shell == "bash":
            names = process(_RLDK_COMPLETE="complete_bash", COMP_WORDS="rldk re", COMP_CWORD="1")
            assert {b"replay", b"report"} <= set(names.stdout.split())

    def test_a_reader_that_leaves(self):
        """`rldk ... | head -1` is no error, and not taken for alerts."""
        done = subprocess.run(
            f"{sys.executable} -m rldk detectors --json | head -1; exit ${{PIPESTATUS[0]}}", shell=True,
            executable="/bin/bash", capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stdout == "[\n" and done.stderr == "" and done.returncode in (0, 141)

    def test_a_fault_of_its_own(self, monkeypatch, tmp_path):
        """What is not meant to happen is one line and 2, since 1 means alerts; RLDK_DEBUG shows where."""
        monkeypatch.setattr("rldk.cli.replay.judge", lambda *_: 1 / 0)
        path = stream(tmp_path / "r_events.jsonl")
        assert "rldk itself failed (ZeroDivisionError" in failure("replay", path)
        monkeypatch.setenv("RLDK_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            run("replay", path)


class TestDetectors:
    def test_all(self):
        """Every code, with what it means."""
        text = run("detectors")
        for code, cls in detector_classes().items():
            assert code in text and cls.title in text
        listed = json.loads(run("detectors", "--json"))
        assert [item["code"] for item in listed] == list(detector_classes())
        assert all(len(item["sections"]) == 6 and item["about"] for item in listed)

    @pytest.mark.parametrize("code", detector_classes())
    def test_one(self, code):
        """Its docstring, with every heading and every parameter explained."""
        text = run("detectors", code)
        described = json.loads(run("detectors", code, "--json"))
        assert all(heading in text for heading in described["sections"])
        assert all(item["help"] for item in described["parameters"].values())

    def test_a_typo(self):
        """The nearest code."""
        assert "Did you mean 'kl_divergence'?" in failure("detectors", "kl_divergenc")
        assert "critical" in run("detectors", "KL-divergence")


class TestReplay:
    @pytest.mark.parametrize("label", [label["id"] for label in LABELS])
    def test_real_states(self, label, tmp_path):
        """The verdict of the engine, in JSON with the fields of alerts.json, and in words."""
        path = state(label, tmp_path)
        found = json.loads(run("replay", path, "--json", "--fail-on", "never"))
        (judged,) = found["runs"]
        events = rebuild_run(path, output_dir=tmp_path / "files")
        said = json.loads((tmp_path / "files" / f"{label}_alerts.json").read_text())
        assert judged["alerts"] == said
        assert judged["verdict"] == found["verdict"] == events["health"]["verdict"]
        assert judged["coverage"] == events["coverage"]
        text = run("replay", path, "--fail-on", "never")
        assert judged["sentence"] in text and all(alert["message"] in text for alert in said)
        assert all(alert["advice"] in text and alert["docs"] in text for alert in said)

    @pytest.mark.parametrize("item", captures(), ids=str)
    def test_every_trainer(self, item, tmp_path):
        """State, flat lines and older stream of each trainer, on each version: the same verdict as the engine's."""
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": item.rows}, indent=2))
        (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in item.rows))
        found = json.loads(run("replay", tmp_path / "trainer_state.json", tmp_path / "flat.jsonl", "--json", "--fail-on", "never"))
        first, second = found["runs"]
        assert first["alerts"] == second["alerts"] and first["coverage"] == second["coverage"]
        assert (first["format"], second["format"]) == ("trainer_state", "trl")

    def test_exit_codes(self, tmp_path):
        """0 without alerts at the level, 1 with, 2 for a level that is none."""
        ill = stream(tmp_path / "ill_events.jsonl", "ill")
        fine = stream(tmp_path / "fine_events.jsonl", "fine", metrics=lambda step: {"loss": 1.0 / step, "lr": 1e-4})
        run("replay", ill, code=1)
        run("replay", ill, "--fail-on", "info", code=1)
        run("replay", ill, "--fail-on", "never")
        run("replay", fine, "--fail-on", "info")
        run("replay", tmp_path, code=1)
        assert "is not one of" in failure("replay", ill, "--fail-on", "fatal")

    def test_a_warning_is_not_critical(self, tmp_path):
        """--fail-on is a level, not a switch."""
        path = stream(tmp_path / "r_events.jsonl", metrics=lambda step: {"kl_mean": 0.01 + 9.0 * (step > 50)})
        run("replay", path, "--threshold", "kl_divergence=5", "--fail-on", "warning", code=1)
        run("replay", path, "--threshold", "kl_divergence=5", "--fail-on", "critical")

    def test_several_runs(self, tmp_path):
        """Each has its own verdict: runs in one file, in a folder, through a glob; a file is judged once."""
        stream(tmp_path / "two_events.jsonl", "a", 30, lambda step: {"loss": 1.0 / step})
        stream(tmp_path / "two_events.jsonl", "b")
        stream(tmp_path / "c_events.jsonl", "c")
        done = json.loads(run("replay", tmp_path, f"{tmp_path}/*_events.jsonl", "--json", code=1))
        assert {judged["run_id"]: judged["verdict"] for judged in done["runs"]} == {
            "a": "no alerts", "b": "critical", "c": "critical"
        }
        text = run("replay", tmp_path, code=1)
        assert text.count("Of 3") == 3 and "3 runs; the worst verdict is: critical" in text

    def test_thresholds(self, tmp_path):
        """Those of the run's manifest are in force, detector by detector, unless one is given."""
        def high(step):
            return {"kl_mean": 0.5, "clip_frac": 0.5, "loss": 1.0}

        path = stream(tmp_path / "r_events.jsonl", metrics=high)
        (tmp_path / "r_run.json").write_text(json.dumps(
            {"run_id": "r", "rldk": {"alert_thresholds": {"kl": 0.1, "clip_fraction": 0.1}}}
        ))

        def codes(*more):
            found = json.loads(run("replay", path, "--json", "--fail-on", "never", *more))
            return sorted(alert["code"] for alert in found["runs"][0]["alerts"])

        assert codes() == ["clip_fraction", "kl_divergence"]
        assert codes("--threshold", "kl_divergence=1") == ["clip_fraction"]
        assert codes("--threshold", "kl=1", "--threshold", "clip_fraction.threshold=0.9") == []
        assert "Did you mean 'kl_divergence'?" in failure("replay", path, "--threshold", "kl_divergense=1")
        assert "takes name=value" in failure("replay", path, "--threshold", "kl_divergence")
        assert "'high'" in failure("replay", path, "--threshold", "kl_divergence=high")

    def test_a_resume(self, tmp_path):
        """What a resume made void is not judged; in a flat log a step that goes back is one."""
        path = stream(tmp_path / "r_events.jsonl", steps=20)
        with open(path, "ab") as file:
            file.write(encode(Event(10, 30.0, {}, model_info={"run_id": "r"}, notes=("resumed from step 10",))))
        stream(path, steps=20, metrics=lambda step: {"loss": 1.0})
        run("replay", path)
        flat = tmp_path / "flat.jsonl"
        rows = [{"step": step, "loss": 1.0 if step < 20 else float("nan"), "learning_rate": 1e-4} for step in range(1, 21)]
        flat.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run("replay", flat, code=1)
        with open(flat, "a") as file:
            file.writelines(json.dumps({**row, "loss": 1.0}) + "\n" for row in rows[10:])
        run("replay", flat)

    def test_damage(self, tmp_path):
        """Malformed lines are counted and named on stderr; an empty file among others is passed over."""
        path = stream(tmp_path / "r_events.jsonl")
        path.write_bytes(b"garbage\n" + path.read_bytes() + b'{"step": 9, "metr')
        (tmp_path / "empty_events.jsonl").touch()
        done = CliRunner().invoke(app, ["replay", str(tmp_path), "--json"])
        assert done.exit_code == 1 and json.loads(done.stdout)["runs"][0]["skipped_lines"] == 1
        assert "1 malformed (line 1)" in done.stderr and "empty_events.jsonl is empty" in done.stderr

    def test_bad_inputs(self, tmp_path):
        """No file, an empty one, no logs, no JSON, an unknown hint, names that nobody knows: what to do is said."""
        assert "no such file or folder" in failure("replay", tmp_path / "nothing")
        assert "no logs in folder" in failure("replay", tmp_path)
        (tmp_path / "empty.jsonl").touch()
        assert "is empty" in failure("replay", tmp_path / "empty.jsonl")
        (tmp_path / "text.jsonl").write_text("no json\n")
        assert "no line that is a JSON object" in failure("replay", tmp_path / "text.jsonl")
        (tmp_path / "odd.jsonl").write_text('{"my_iter": 1, "avg_reward": 2}\n')
        assert "--field-map my_iter=step" in failure("replay", tmp_path / "odd.jsonl")
        assert "Did you mean 'trainer_state'?" in failure("replay", tmp_path / "odd.jsonl", "--hint", "trainer_stat")
        done = CliRunner().invoke(app, ["replay", str(tmp_path / "odd.jsonl"), "--field-map", "my_iter=step"])
        assert done.exit_code == 0 and "no metric that rldk knows; it has avg_reward" in done.stderr
        (tmp_path / "state.json").write_text('{"log_history": []}')
        assert "no readable record" in failure("replay", tmp_path / "state.json")
        assert "Missing argument" in failure("replay")

    if os.name != "nt" and os.geteuid() != 0:  # root may read everything

        def test_an_unreadable_file(self, tmp_path):
            """The reason is said."""
            path = stream(tmp_path / "r_events.jsonl")
            path.chmod(0)
            assert "Permission denied" in failure("replay", path)

    def test_ten_thousand_steps(self, tmp_path):
        """A trainer_state.json of 10,000 steps: a second or two, start included."""
        rows = [row for row in capture("1.16.0_grpo").rows if "reward" in row]
        history = [{**rows[step % len(rows)], "step": step} for step in range(1, 10_001)]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}, indent=2))
        before = os.times().children_user
        done = process("replay", tmp_path / "trainer_state.json", "--json", "--fail-on", "never")
        assert json.loads(done.stdout)["runs"][0]["steps"] == 10_000
        assert os.times().children_user - before < 4.0  # of the processor; on a machine of its own it takes under one


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["grpo", "dpo"])
def test_replay_is_live(family, tmp_path):
    """On a real run: the alerts and the coverage of `rldk replay` are those that the callback wrote."""
    import zoo

    recorder = RLDKCallback(
        output_dir="logs", run_id="live", alert_thresholds={"gradient_norm": 1e-6}, enable_resource_monitoring=False
    )
    zoo.trainer(family, tmp_path / "out", callbacks=[recorder], max_steps=6, learning_rate=5e-2).train()
    said = json.loads(Path("logs/live_alerts.json").read_text())
    report = json.loads(Path("logs/live_final_report.json").read_text())
    assert any(alert["code"] == "gradient_norm" for alert in said)
    (judged,) = json.loads(run("replay", "logs", "--json", "--fail-on", "never"))["runs"]
    assert judged["alerts"] == said
    assert judged["verdict"] == report["health"]["verdict"] and judged["status"] == "completed"
    assert judged["coverage"] == report["coverage"]


class TestIngest:
    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
    def test_formats(self, ending, tmp_path):
        """What is written reads back as the frame."""
        import pandas as pd

        path = state("kto_hh_1000", tmp_path)
        out = tmp_path / f"out.{ending}"
        assert "101 rows of 1 run" in run("ingest", path, "-o", out)
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda file: pd.read_json(file, lines=True)}[ending](out)
        frame = ingest_runs(path)
        assert read.step.tolist() == frame.step.tolist()
        pd.testing.assert_series_equal(read.loss, frame.loss)
        assert set(read.run_id.astype(str)) == {"kto_hh_1000"}

    def test_json(self, tmp_path):
        """What was found, for a script; what was written too."""
        path = state("kto_hh_1000", tmp_path)
        found = json.loads(run("ingest", path, "--json"))
        assert (found["output"], found["rows"], found["skipped_lines"]) == (None, 101, 0)
        assert found["columns"][:4] == ["step", "wall_time", "run_id", "phase"]
        (said,) = found["runs"]
        assert (said["run_id"], said["last_step"], sum(said["rows"].values())) == ("kto_hh_1000", 1000, 101)
        out = tmp_path / "out.csv"
        assert json.loads(run("ingest", path, "-o", out, "--json"))["output"] == str(out) and out.is_file()
        assert "--json" in failure("ingest", path, "-o", "-", "--json")

    def test_stdout(self, tmp_path):
        """-: the table and nothing else."""
        path = state("kto_hh_1000", tmp_path)
        rows = list(csv.DictReader(io.StringIO(run("ingest", path, "-o", "-"))))
        assert len(rows) == 101 and rows[0]["loss"] == "0.5"
        lines = run("ingest", path, "-o", "-", "--format", "jsonl").splitlines()
        assert json.loads(lines[-1])["step"] == 1000 and "wall_time" not in json.loads(lines[-1])

    def test_many_runs(self, tmp_path):
        """Folders and globs become one table; runs whose files are called alike stay apart."""
        for name in ("a", "b"):
            folder = tmp_path / name / "out" / "checkpoint-6"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": capture("1.16.0_grpo").rows}))
        stream(tmp_path / "logs" / "c_events.jsonl", "c")
        out = tmp_path / "all.csv"
        run("ingest", f"{tmp_path}/*/out", tmp_path / "logs", "-o", out)
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
        assert {row["run_id"] for row in rows} == {"a/out", "b/out", "c"}
        assert len(rows) == 2 * len(capture("1.16.0_grpo").rows) + 60
        listed = run("ingest", f"{tmp_path}/*/out")
        assert "a/out" in listed and "Write them" in listed

    def test_formulas(self, tmp_path):
        """No cell of text begins as a formula, and no control character is in one."""
        names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "fine"]
        path = stream(tmp_path / "r_events.jsonl", "=cmd|' /C calc'!A0", 3, lambda step: dict.fromkeys(names, 1.0))
        header, *rows = csv.reader(io.StringIO(run("ingest", path, "-o", "-")))
        cells = [*header, *(cell for row in rows for cell in row[2:4])]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
        assert all(cell.isprintable() for cell in cells) and "fine" in header and len(header) == 4 + len(names)

    def test_infinity(self, tmp_path):
        """JSON has none."""
        path = stream(tmp_path / "r_events.jsonl", steps=1, metrics=lambda step: {"loss": float("inf"), "kl_mean": 1.0})
        assert json.loads(run("ingest", path, "-o", "-", "--format", "jsonl"))["loss"] == "inf"

    def test_bad_use(self, tmp_path, monkeypatch):
        """An ending that says nothing, a folder that is not there, the log itself, a Parquet without its library."""
        path = stream(tmp_path / "r_events.jsonl")
        before = path.read_bytes()
        assert "add --format" in failure("ingest", path, "-o", tmp_path / "x.txt")
        assert "no folder" in failure("ingest", path, "-o", tmp_path / "no" / "x.csv")
        assert "is a folder" in failure("ingest", path, "-o", tmp_path, "--format", "csv")
        assert "one of the logs" in failure("ingest", path, "-o", path)
        assert path.read_bytes() == before
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install pyarrow" in failure("ingest", path, "-o", tmp_path / "x.parquet")


class TestReport:
    def test_json(self, tmp_path):
        """The files are written, and stdout has the report and nothing else."""
        path = state("grpo_mbpp_kl_spikes_1134", tmp_path)
        said = json.loads(run("report", path, "--json", "--output-dir", tmp_path / "out"))
        assert said == json.loads(Path(said["files"]["report"]).read_text()) and Path(said["files"]["page"]).is_file()
        assert said["alerts"]["by_code"]["kl_divergence"] >= 1
        run("report", path, "--json", "--output-dir", tmp_path / "out", "--fail-on", "critical", code=1)
        assert "--json" in failure("report", path, "--json", "--format", "md")

    def test_a_killed_run(self, tmp_path):
        """All files are made from the events; what was said is what replay says."""
        stream(tmp_path / "logs" / "r_events.jsonl")
        text = run("report", tmp_path / "logs")
        made = {path.name for path in (tmp_path / "logs").iterdir()}
        assert made == {"r_events.jsonl", "r_alerts.json", "r_metrics.csv", "r_final_report.json", "r_report.html"}
        assert all(name in text for name in made - {"r_events.jsonl"})
        assert "<script" in (tmp_path / "logs" / "r_report.html").read_text()
        run("report", tmp_path / "logs" / "r_report.html", "--fail-on", "critical", code=1)

    @pytest.mark.parametrize("place", ["checkpoint", "plain", "flat"])
    def test_of_other_logs(self, place, tmp_path):
        """Into a folder of their own; beside the checkpoint for one, which may be deleted."""
        rows = capture("1.16.0_grpo").rows
        if place == "flat":
            path = tmp_path / "log.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path = tmp_path / "out" / ("checkpoint-6" if place == "checkpoint" else ".") / "trainer_state.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"log_history": rows}))
        run("report", path)
        folder = {"checkpoint": "out/out_rldk", "plain": "out/out_rldk", "flat": "log_rldk"}[place]
        report = json.loads(next((tmp_path / folder).glob("*_final_report.json")).read_text())
        assert report["status"] == "unknown" and report["trainer"] == "grpo"
        assert sorted(item.suffix for item in (tmp_path / folder).iterdir()) == [".csv", ".html", ".json", ".json"]
        # The folder does not change what is found where the log is.
        assert len(ingest_runs(path.parent)) == len(rows)
        run("report", path, "--output-dir", tmp_path / "elsewhere")
        assert len(list((tmp_path / "elsewhere").iterdir())) == 4

    def test_nothing_of_others_is_replaced(self, tmp_path):
        """A file of the same name that somebody else wrote stays, and is named."""
        path = stream(tmp_path / "r_events.jsonl")
        for name in ("r_metrics.csv", "r_alerts.json", "r_final_report.json", "r_report.html"):
            (tmp_path / name).write_text("mine,1\n")
            assert f"{name} is there and was not written by rldk" in failure("report", path)
            assert (tmp_path / name).read_text() == "mine,1\n"
            (tmp_path / name).unlink()
        run("report", path)
        run("report", path)

    @pytest.mark.parametrize(("format", "mark"), [("html", "<!doctype html>"), ("md", "### r"), ("json", "{\n"), ("text", "Run r:")])
    def test_one_document(self, format, mark, tmp_path):
        """To stdout or a file, and no file of the run's is made."""
        path = stream(tmp_path / "r_events.jsonl")
        text = run("report", path, "--format", format)
        assert text.lower().startswith(mark.lower())
        run("report", path, "--format", format, "-o", tmp_path / "document")
        assert (tmp_path / "document").read_text() == text
        assert sorted(item.name for item in tmp_path.iterdir()) == ["document", "r_events.jsonl"]
        assert "goes with --format" in failure("report", path, "-o", "x.html")
        assert "--format makes one" in failure("report", path, "--format", format, "--open")

    def test_a_run_that_goes_on(self, tmp_path):
        """What there is so far, and none of its files is touched."""
        path = stream(tmp_path / "r_events.jsonl")
        import platform

        (tmp_path / "r_run.json").write_text(json.dumps({"run_id": "r", "pid": os.getpid(), "host": platform.node()}))
        before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
        done = CliRunner().invoke(app, ["report", str(path)])
        assert done.exit_code == 0 and "is still being recorded" in done.stderr
        assert "Run r: running" in done.stdout and "--output-dir" in done.stdout
        assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before
        run("report", path, "--output-dir", tmp_path / "so_far")
        assert (tmp_path / "so_far" / "r_report.html").exists()

    def test_a_run_on_another_machine(self, tmp_path):
        """Of a run on another machine nobody can ask the process: what it wrote a moment ago says that it goes on."""
        import time

        from rldk.event import timestamp

        (tmp_path / "r_run.json").write_text(json.dumps({"run_id": "r", "pid": 1, "host": "node17"}))
        path = tmp_path / "r_events.jsonl"

        def written(at):
            row = {"step": 1, "wall_time": 1.0, "metrics": {"loss": 1.0}, "model_info": {"run_id": "r"}, "time": timestamp(at)}
            path.write_text(json.dumps(row) + '\n{"step": 2, "wa')

        written(time.time())
        done = CliRunner().invoke(app, ["report", str(path)])
        assert done.exit_code == 0 and "is still being recorded" in done.stderr
        assert sorted(item.name for item in tmp_path.iterdir()) == ["r_events.jsonl", "r_run.json"]
        with pytest.raises(ConfigurationError, match="still being recorded"):
            rebuild_run(path)
        written(time.time() - 86400)  # a copy: the file is new, and what it says is not
        assert "The run failed" in run("report", path)
        assert (tmp_path / "r_report.html").exists()

    def test_a_thinned_stream(self, tmp_path):
        """Files that hold more than their stream does are shown, and not made anew from it."""
        path = stream(tmp_path / "r_events.jsonl")
        run("report", path)
        (tmp_path / "r_run.json").write_text(json.dumps({"run_id": "r", "rldk": {"jsonl_log_interval": 50}}))
        kept = stream(tmp_path / "other" / "r_events.jsonl", steps=2)  # stands for what the interval left of it
        path.write_bytes(kept.read_bytes())
        report = json.loads((tmp_path / "r_final_report.json").read_text())
        (tmp_path / "r_final_report.json").write_text(json.dumps({**report, "status": "completed"}))
        before = {item.name: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()}
        done = CliRunner().invoke(app, ["report", str(path), "--fail-on", "critical"])
        assert done.exit_code == 1 and "60 steps" in done.stdout and "they were kept" in done.stderr
        assert json.loads(run("report", path, "--json"))["totals"]["steps"] == 60
        assert "poorer" in failure("report", path, "--threshold", "kl_divergence=5")
        with pytest.raises(ConfigurationError, match="jsonl_log_interval"):
            rebuild_run(path)
        assert {item.name: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()} == before
        run("report", path, "--output-dir", tmp_path / "anew")
        assert json.loads((tmp_path / "anew" / "r_final_report.json").read_text())["totals"]["steps"] == 2

    @pytest.mark.parametrize(
        ("manifest", "report", "said"),
        [
            ({}, {}, ""),
            ({"rldk": {"jsonl_log_interval": 1}, "resumed": None}, {"lost": {"events": 0}}, ""),
            ({"rldk": {"jsonl_log_interval": 1}, "resumed": [{"rldk_before": {"jsonl_log_interval": 5}}, 3]}, {}, "one in 5"),
            ({"rldk": "?"}, {"lost": {"events": 40}}, "lacks 40 events"),
        ],
    )
    def test_what_a_stream_lacks(self, manifest, report, said):
        """A part of the run that was thinned, or events that could not be written."""
        found = lacking(manifest, report)
        assert said in found and bool(said) == bool(found)

    def test_no_place_to_write(self, tmp_path, monkeypatch):
        """Files that could not be written are an error, and not a report that nobody finds."""
        path = stream(tmp_path / "r_events.jsonl")
        (tmp_path / "file").write_text("")
        assert "cannot write into" in failure("report", path, "--output-dir", tmp_path / "file")
        assert "cannot write into" in failure("report", path, "--output-dir", tmp_path / "file" / "below")

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("rldk.recorder.replace_json", full)
        assert "could be written" in failure("report", path)

    def test_what_only_the_live_run_knew(self, tmp_path):
        """Stays in the report when it is made anew."""
        path = stream(tmp_path / "r_events.jsonl")
        run("report", path)
        report = json.loads((tmp_path / "r_final_report.json").read_text())
        known = {"trackers": {"wandb": {"sent": 3}}, "checkpoints_not_analysed": 2, "stop_requested": "non_finite"}
        (tmp_path / "r_final_report.json").write_text(json.dumps({**report, **known}))
        run("report", path)
        assert json.loads((tmp_path / "r_final_report.json").read_text()).items() >= known.items()

    def test_which_run(self, tmp_path):
        """Two in a folder or in a file: they are listed, and --run takes one."""
        stream(tmp_path / "two_events.jsonl", "first")
        stream(tmp_path / "two_events.jsonl", "second", 5, lambda step: {"loss": 1.0})
        stream(tmp_path / "c_events.jsonl", "third")
        said = failure("report", tmp_path)
        assert "holds 3 runs" in said and "--run" in said and "third, first, second" in said
        assert "holds 2 runs" in failure("report", tmp_path / "two_events.jsonl")
        assert "Did you mean 'first'?" in failure("report", tmp_path, "--run", "frist")
        text = run("report", tmp_path, "--run", "second")
        assert text.startswith("second: ") and (tmp_path / "second_report.html").exists()
        assert not (tmp_path / "first_report.html").exists()

    def test_no_run(self, tmp_path):
        """What was looked for, and where."""
        assert "no such file or folder" in failure("report", tmp_path / "nothing")
        assert "no logs in folder" in failure("report", tmp_path)
        done = CliRunner().invoke(app, ["report", str(stream(tmp_path / "odd_events.jsonl", metrics=lambda step: {"foo": 1.0}))])
        assert done.exit_code == 0 and "no metric that rldk knows; it has foo" in done.stderr

    def test_the_browser(self, tmp_path, monkeypatch):
        """--open shows the page."""
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
        run("report", stream(tmp_path / "r_events.jsonl"), "--open")
        assert opened == [(tmp_path / "r_report.html").resolve().as_uri()]


class TestDoctor:
    def test_sound(self, tmp_path):
        """What is installed, and where files will go."""
        found = json.loads(run("doctor", "--json", "--output-dir", tmp_path / "logs", "--fail-on", "never"))
        assert found["versions"]["trl"] and found["versions"]["torch"] and found["versions"]["python"]
        assert found["output_dir"]["writable"] and not (tmp_path / "logs").exists()
        text = run("doctor", "--fail-on", "never")
        assert all(name in text for name in ("python", "transformers", "GPU", "PPO", "output"))

    def test_arguments(self, tmp_path):
        """Judged as when training begins; misspelt names are named with the nearest."""
        path = tmp_path / "args.json"
        path.write_text(json.dumps({"trainer": "GRPOTrainer", "temperature": 0.0, "num_generation": 4, "lr": 1e-5,
                                    "max_steps": 10, "warmup_steps": 20}))
        found = json.loads(run("doctor", "--args", path, "--json", code=1))
        assert {alert["code"] for alert in found["arguments"]["alerts"]} == {"gradient_arguments", "learning_rate"}
        said = [problem["message"] for problem in found["problems"]]
        assert any("Did you mean 'num_generations'?" in text for text in said)
        assert any("Did you mean 'learning_rate'?" in text for text in said)
        assert "temperature is 0.0" in run("doctor", "--args", path, code=1)
        path.write_text(json.dumps({"trainer": "grpo", "arguments": {"temperature": 1.0, "learning_rate": 1e-6}}))
        run("doctor", "--args", path, "--fail-on", "critical")

    @pytest.mark.parametrize(
        ("content", "said"),
        [("{", "cannot read"), ("[1]", "must hold a JSON object"), ("{}", "does not say which trainer"),
         ('{"trainer": "grop"}', "Did you mean 'grpo'?"), ('{"trainer": "grpo", "arguments": 1}', "must be an object")],
    )
    def test_bad_arguments(self, content, said, tmp_path):
        """What is wrong with the file."""
        (tmp_path / "args.json").write_text(content)
        assert said in failure("doctor", "--args", tmp_path / "args.json")
        assert "cannot read" in failure("doctor", "--args", tmp_path / "nothing.json")

    def test_strays(self, tmp_path):
        """A file in the way of a package is critical; the folder that wandb leaves beside an installed wandb is not."""
        (tmp_path / "trackio.py").write_text("x = 1\n")
        found = json.loads(run("doctor", "--json", code=1))
        assert "stray_trackio" in {problem["code"] for problem in found["problems"]}
        (tmp_path / "trackio.py").unlink()
        (tmp_path / "datasets").mkdir()
        found = json.loads(run("doctor", "--json", "--fail-on", "never"))
        assert not [problem for problem in found["problems"] if problem["code"].startswith("stray")]

    def test_no_place_to_write(self, tmp_path):
        """A file where the folder should be."""
        (tmp_path / "logs").touch()
        found = json.loads(run("doctor", "--json", "--output-dir", tmp_path / "logs", code=1))
        assert found["verdict"] == "critical" and not found["output_dir"]["writable"]


class TestHostile:
    @pytest.fixture
    def log(self, tmp_path):
        """Names of metrics, of the run and of its trainer that are made to do something."""
        return stream(
            tmp_path / "r_events.jsonl", "\x1b[2J<b>[red]evil\n", 5,
            lambda step: {name: float("nan") for name in HOSTILE} | {"loss": 1.0}, trainer="\x1b]0;x\x07<i>",
        )

    @pytest.mark.parametrize(
        "command", [("replay",), ("replay", "-v"), ("replay", "--json"), ("ingest",), ("report", "--format", "text"),
                    ("report", "--format", "md"), ("report",)], ids=" ".join,
    )
    def test_terminal(self, log, command):
        """Nothing reaches the terminal that it would obey, and nothing is taken for markup."""
        done = CliRunner().invoke(app, [command[0], str(log), *command[1:], *(["--fail-on", "never"] if command[0] == "replay" else [])])
        assert done.exit_code == 0, done.stderr
        printed = done.stdout + done.stderr
        assert not [character for character in printed if not character.isprintable() and character != "\n"]
        if command[-1] not in ("md", "--json", "ingest", "report"):
            assert "[red]evil" in printed

    def test_html(self, log):
        """The page and the notebook's box hold none of it as HTML."""
        import rldk

        for page in (run("report", log, "--format", "html"), rldk.load(log)._repr_html_()):
            assert "<script>alert(1)" not in page and "<b>[red]" not in page and ESCAPE not in page

    def test_a_hostile_threshold(self, log):
        """Also what is typed comes back clean."""
        assert ESCAPE not in failure("replay", log, "--threshold", "\x1b[31m=1")


def in_terminal(columns, *arguments, **environment):
    """A command in a real terminal of so many columns: what it showed, and its exit code."""
    import fcntl
    import struct
    import termios

    child, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    started = subprocess.Popen(
        [sys.executable, "-m", "rldk", *map(str, arguments)], stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True,
        env={**inherited, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment},
    )
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([child], [], [], 1.0)[0]:
            try:
                part = os.read(child, 65536)
            except OSError as error:  # on Linux the end of the terminal
                assert error.errno == errno.EIO
                break
            if not part:
                break
            shown += part
    os.close(child)
    return shown.decode(), started.wait(10)


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "plain"])
class TestTerminal:
    def test_replay(self, columns, colour, tmp_path):
        """Nothing is wider than the terminal; escapes only with colour; the words are those of a pipe."""
        path = state("dpo_guanaco_nan_1000", tmp_path)
        shown, code = in_terminal(columns, "replay", path, **({} if colour else {"NO_COLOR": "1"}))
        assert code == 1
        assert (ESCAPE in shown) == colour
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        assert ESCAPE not in plain
        assert max(map(len, re.split("[\r\n]", plain))) <= columns
        assert "".join(plain.split()) == "".join(run("replay", path, code=1).split())

    @pytest.mark.parametrize("command", [("detectors",), ("detectors", "kl_divergence"), ("doctor", "--fail-on", "never"), ("--help",)], ids=" ".join)
    def test_others(self, columns, colour, command):
        """The same of the other commands."""
        shown, code = in_terminal(columns, *command, **({} if colour else {"NO_COLOR": "1"}))
        assert code == 0
        assert colour or ESCAPE not in shown
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        assert max(map(len, re.split("[\r\n]", plain))) <= columns


class TestLoad:
    def test_of_a_state(self, tmp_path):
        """Alerts and report are found by a replay; the frame is that of ingest_runs."""
        import pandas as pd

        import rldk

        path = state("grpo_mbpp_kl_spikes_1134", tmp_path)
        loaded = rldk.load(path)
        assert {alert.code for alert in loaded.alerts} == {"kl_divergence", "gradient_norm"}
        assert loaded.report["health"]["verdict"] == "critical"
        pd.testing.assert_frame_equal(loaded.df, ingest_runs(path))
        assert "critical" in repr(loaded) and "kl_divergence" in loaded._repr_html_()
        assert len(loaded.plot("kl_mean").axes) == 1

    def test_of_a_recorded_run(self, tmp_path):
        """What its files hold is taken from them, unless thresholds are given; one of several is chosen."""
        import rldk
        from rldk.exceptions import ConfigurationError

        rebuild_run(stream(tmp_path / "r_events.jsonl"))
        report = json.loads((tmp_path / "r_final_report.json").read_text())
        (tmp_path / "r_final_report.json").write_text(json.dumps({**report, "reason": "from the file"}))
        assert rldk.load(tmp_path).report["reason"] == "from the file"
        stream(tmp_path / "s_events.jsonl", "s", 9, lambda step: {"kl_mean": 2.0})
        with pytest.raises(ConfigurationError, match="holds 2 runs"):
            rldk.load(tmp_path)
        assert rldk.load(tmp_path, "s").alerts == []
        assert [alert.code for alert in rldk.load(tmp_path, "s", alert_thresholds={"kl": 1}).alerts] == ["kl_divergence"]
        stream(tmp_path / "s_events.jsonl", "t", 4, lambda step: {"kl_mean": 2.0})
        assert set(rldk.load(tmp_path, "t").df.run_id) == {"t"}

    def test_lazy(self, tmp_path):
        """Loading reads no frame; what is asked twice is read once."""
        import rldk

        loaded = rldk.load(stream(tmp_path / "r_events.jsonl"))
        (tmp_path / "r_events.jsonl").write_bytes(b"")
        assert loaded.alerts == [] and rldk.load is not None and callable(rldk.load)


def test_the_engine_is_the_same(tmp_path):
    """`replay` over events written by hand says what a monitor says of them."""
    from rldk.replay import replay

    with EventWriter(tmp_path / "hand_events.jsonl", run_id="hand") as writer:
        for step in range(1, 40):
            writer.log(step=step, metrics={"loss": 1.0, "kl": 0.1 * step})
    (judged,) = replay([tmp_path], alert_thresholds={"kl": 2.0})
    monitor = Monitor(make_detectors({"kl": 2.0}))
    for event in judged.log.events():
        monitor.observe(event)
    assert judged.found == monitor.alerts and judged.found[0].step == 21


def test_the_page_shows_real_output():
    """docs/cli.md: each command, run in a folder of its own, prints what stands under it. If this fails, look, then run it."""
    done = subprocess.run([sys.executable, "scripts/cli_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
