"""`log_with="rldk"`: a loop that is built on accelerate is recorded, judged and reported like a trainer's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_trackers import QUIETLY, trackio_rows, wandb_rows

import rldk
from rldk import _register

ROOT = Path(__file__).resolve().parents[1]

# In a process of its own each: accelerate keeps global state, and has to be imported after rldk or before it.
BEGIN = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
import rldk
assert "accelerate" not in sys.modules
from accelerate import Accelerator
"""


def files_in(folder):
    return {path.name.removeprefix("r_"): path for path in folder.iterdir()}


def test_it_records_judges_and_reports(run_script, tmp_path):
    done = run_script(
        BEGIN + "accelerator = Accelerator(log_with='rldk', cpu=True)\n"
        "accelerator.init_trackers('p', config={'learning_rate': 1e-3, 'note': None},\n"
        "    init_kwargs={'rldk': {'output_dir': 'logs', 'run_id': 'r', 'tags': ['mine']}})\n"
        "for step in range(1, 5):\n    accelerator.log({'loss': 1.0 / step, 'text': 'words'}, step=step)\n"
        "accelerator.log({'loss': float('nan')})\n"
        "session = accelerator.get_tracker('rldk', unwrap=True)\n"
        "assert [alert.code for alert in session.alerts] == ['non_finite']\n"
        "assert 'rldk.session' in sys.modules and 'trackio' not in sys.modules and 'wandb' not in sys.modules\n"
        "accelerator.end_training()\nassert session.report['status'] == 'completed'\n"
    )
    assert done.returncode == 0, done.stderr
    files = files_in(tmp_path / "logs")
    assert sorted(files) == [
        "alerts.json", "events.jsonl", "final_report.json", "metrics.csv", "report.html", "run.json",
    ]
    df = rldk.ingest_runs(tmp_path / "logs")
    assert df.step.tolist() == [1, 2, 3, 4, 5] and df.loss.tolist()[:4] == [1.0, 1 / 2, 1 / 3, 1 / 4]
    manifest = json.loads(files["run.json"].read_text())
    assert manifest["arguments"] == {"learning_rate": 1e-3, "note": None} and manifest["tags"] == ["mine"]
    report = json.loads(files["final_report.json"].read_text())
    assert report["status"] == "completed" and report["alerts"]["by_code"] == {"non_finite": 1}
    assert "text" in report["skipped_values"] and "trackers" not in report


def test_the_project_names_the_run(run_script, tmp_path):
    """And what was not ended is seen at the end of the program."""
    done = run_script(
        BEGIN + "accelerator = Accelerator(log_with='rldk', cpu=True)\naccelerator.init_trackers('my project')\n"
        "accelerator.log({'loss': 1.0})\n"
    )
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "rldk_logs").glob("my-project-*_final_report.json")
    assert json.loads(report.read_text())["status"] == "stopped"


def test_a_loop_that_breaks_has_not_completed(run_script, tmp_path):
    """`end_training` in a finally, as accelerate's examples have it."""
    done = run_script(
        BEGIN + "accelerator = Accelerator(log_with='rldk', cpu=True)\naccelerator.init_trackers('p', init_kwargs={'rldk': {'run_id': 'r'}})\n"
        "try:\n    accelerator.log({'loss': 1.0}, step=1)\n    raise ValueError('boom')\nfinally:\n    accelerator.end_training()\n"
    )
    assert "boom" in done.stderr
    report = json.loads((tmp_path / "rldk_logs" / "r_final_report.json").read_text())
    assert (report["status"], report["reason"]) == ("failed", "ValueError: boom")


@pytest.mark.parametrize(
    "imports",
    [
        "import rldk, accelerate.tracking",
        "import accelerate, rldk",
        "import rldk.integrations.accelerate",
        "import rldk, rldk.integrations.accelerate, transformers",
    ],
)
def test_whatever_is_imported_first(run_script, imports):
    """The name is there once, without the warning that it is taken, and the names of `report_to` are there too."""
    done = run_script(
        f"import warnings\nwarnings.simplefilter('error', UserWarning)\n{imports}\n"
        "import sys\nassert 'rldk.session' not in sys.modules and 'rldk.recorder' not in sys.modules\n"
        "from accelerate.tracking import LOGGER_TYPE_TO_CLASS\nfrom rldk.integrations.accelerate import RLDKTracker\n"
        "assert LOGGER_TYPE_TO_CLASS['rldk'] is RLDKTracker\nrldk._register.register()\n"
        "from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK\n"
        "assert 'rldk' in INTEGRATION_TO_CALLBACK\n"
        "assert not [finder for finder in sys.meta_path if isinstance(finder, rldk._register._Waiter)]\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_older_accelerate_takes_an_instance(run_script, tmp_path):
    """Before 1.15 there is no table to enter, and before 1.8 nobody calls `start`."""
    older = ModuleType("accelerate.tracking")
    _register._offer(older)
    done = run_script(
        BEGIN + "from rldk.integrations.accelerate import RLDKTracker\n"
        "tracker = RLDKTracker('p', 'logs', run_id='r')\naccelerator = Accelerator(log_with=[tracker], cpu=True)\n"
        "assert tracker.tracker is None\ntracker.start = lambda: None\n"
        "accelerator.init_trackers('not used')\naccelerator.log({'loss': 1.0}, step=3)\naccelerator.end_training()\n"
        "assert accelerator.get_tracker('rldk') is tracker and tracker.tracker.closed\n"
    )
    assert done.returncode == 0, done.stderr
    assert rldk.ingest_runs(tmp_path / "logs").step.tolist() == [3]


def test_all_is_not_asking_for_it(run_script):
    done = run_script(BEGIN + "assert 'rldk' not in [str(name) for name in Accelerator(log_with='all', cpu=True).log_with]\n")
    assert done.returncode == 0, done.stderr


def test_a_bad_setting_is_refused_where_it_is_given(run_script, tmp_path):
    done = run_script(
        BEGIN + "accelerator = Accelerator(log_with='rldk', cpu=True)\n"
        "for bad in ({'alert_thresholds': {'kl_divergenc': 1}}, {'ouput_dir': 'logs'}):\n"
        "    try:\n        accelerator.init_trackers('p', init_kwargs={'rldk': bad})\n"
        "    except (rldk.exceptions.ConfigurationError, TypeError) as error:\n        print(error)\n"
        "    accelerator.trackers.clear()\n"
    )
    assert done.returncode == 0, done.stderr
    assert "kl_divergence" in done.stdout and "ouput_dir" in done.stdout
    assert not (tmp_path / "rldk_logs").exists()


def test_trackers_beside_it_hear_of_alerts_and_of_the_end(run_script, tmp_path):
    """Named before them, so that their runs have not ended when its own does."""
    pytest.importorskip("wandb")
    pytest.importorskip("trackio")
    done = run_script(
        BEGIN + "accelerator = Accelerator(log_with=['rldk', 'wandb', 'trackio'], cpu=True)\n"
        "accelerator.init_trackers('p', init_kwargs={'rldk': {'run_id': 'r'}, 'wandb': {'dir': '.'}})\n"
        "for step in range(3):\n    accelerator.log({'loss': float('nan') if step == 2 else 1.0}, step=step)\n"
        "accelerator.end_training()\n",
        TRACKIO_DIR=str(tmp_path / "trackio"), **QUIETLY,
    )
    assert done.returncode == 0, done.stderr
    alerts, summary = wandb_rows(tmp_path)
    assert [title for title, _, _ in alerts] == ["rldk: non_finite"]
    assert summary["rldk/alerts_critical"] == 1 and summary["rldk/status"] == "completed"
    assert [row[0] for row in trackio_rows(tmp_path / "trackio")] == ["rldk: non_finite", "rldk: summary"]
    report = json.loads((tmp_path / "rldk_logs" / "r_final_report.json").read_text())
    assert report["trackers"] == {name: {"sent": 2, "held_back": 0, "lost": 0, "error": None} for name in ("trackio", "wandb")}


@pytest.mark.matrix
def test_only_the_main_process_writes(tmp_path):
    """With an instance too, which every process has."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\nfrom accelerate import Accelerator\nfrom rldk.integrations.accelerate import RLDKTracker\n"
        "accelerator = Accelerator(log_with=[RLDKTracker('p', 'logs', run_id='r')], cpu=True)\n"
        "accelerator.init_trackers('p', config={'lr': 1})\naccelerator.log({'loss': 1.0}, step=1)\n"
        "accelerator.log_with[0].log({'loss': 2.0}, step=2)\nsession = accelerator.log_with[0].tracker\n"
        "accelerator.log_with[0].finish()\n"
        "print(f\"rank {os.environ['RANK']} of {accelerator.num_processes}: {session is not None}\")\n"
        "sys.stdout.flush()\nos._exit(0)\n"  # gloo sometimes aborts at the interpreter's end
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 of 2: True" in done.stdout and "rank 1 of 2: False" in done.stdout
    assert rldk.ingest_runs(tmp_path / "logs").step.tolist() == [1, 2]
