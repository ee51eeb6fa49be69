"""The examples do what they say: they train, their loss falls, and rldk records a healthy run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rldk

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "steps", "highest_last_loss"), [("sft", 200, 1.5), ("dpo", 100, 0.6)], ids=["sft", "dpo"]
)
def test_example(name, steps, highest_last_loss, tmp_path):
    """The script ends well, leaves its five files, and what they say of the run is what its docstring promises."""
    folder = tmp_path / "logs"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--output-dir", str(folder)],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr

    (manifest,) = folder.glob("*_run.json")
    run_id = json.loads(manifest.read_text())["run_id"]
    assert run_id.startswith(f"{name}-")
    written = {path.name.removeprefix(f"{run_id}_") for path in folder.iterdir() if path.is_file()}
    assert written == {"events.jsonl", "alerts.json", "metrics.csv", "final_report.json", "run.json"}
    assert f"Run {run_id}: completed, {steps} steps" in done.stdout
    assert str(folder / f"{run_id}_events.jsonl") in done.stdout

    report = json.loads((folder / f"{run_id}_final_report.json").read_text())
    assert (report["status"], report["reason"], report["trainer"]) == ("completed", None, name)
    assert report["health"]["verdict"] == "no alerts"
    assert report["rldk_failures"] == {} and report["lost"]["events"] == 0
    assert json.loads((folder / f"{run_id}_alerts.json").read_text()) == []

    df = rldk.ingest_runs(folder)
    train = df[df.phase == "train"]
    assert train.step.tolist() == list(range(1, steps + 1))
    first, last = train.loss.head(10).mean(), train.loss.tail(10).mean()
    assert last < highest_last_loss < first
    with open(folder / f"{run_id}_metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, steps + 1))
    if name == "sft":
        evaluations = df[df.phase == "eval"].eval_loss.tolist()
        assert len(evaluations) == steps // 50 and evaluations[-1] < evaluations[0]
