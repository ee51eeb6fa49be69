"""Several processes: one record, nobody waits, everybody stops together.

`accelerate launch --num_processes 2 --cpu` starts one process with accelerate 1.15 unless MPI is there, so the tests that
need two use torch's own launcher; accelerate inside them is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rldk

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import os, sys, torch, zoo
from rldk.integrations.trl import EventWriterCallback, RLDKCallback

class Late(RLDKCallback):
    def on_log(self, args, state, control, logs, **kwargs):
        if state.is_world_process_zero and state.global_step == 4:
            logs["mine"] = float("inf")
        super().on_log(args, state, control, logs, **kwargs)

callback = Late(output_dir="logs", run_id="run", log_interval=0, stop_on=sys.argv[1:] or None)
light = EventWriterCallback("light_events.jsonl")
trainer = zoo.trainer("sft", "out", callbacks=[callback, light], max_steps=6)
trainer.train()
print(f"rank {os.environ.get('RANK', '0')} at {trainer.state.global_step}, files {len(callback.files)}, {callback.guard.failures}")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
sys.stdout.flush()
# Not through the interpreter's end: with gloo, torch sometimes aborts there ("terminate called without an active
# exception"), with or without rldk. All that is tested has been written by now.
os._exit(0)
"""


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]


def launch(tmp_path, *arguments, launcher=TORCHRUN):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=180,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class TestTwoProcesses:
    def test_only_the_main_process_writes(self, tmp_path):
        """There is one stream with each step once, and the other process has no files."""
        out = launch(tmp_path)
        assert "rank 0 at 6, files 6, {}" in out and "rank 1 at 6, files 0, {}" in out
        for path in ("logs", "light_events.jsonl"):
            df = rldk.ingest_runs(tmp_path / path)
            assert df[df.phase == "train"].step.tolist() == [1, 2, 3, 4, 5, 6]
        manifest = json.loads((tmp_path / "logs" / "run_run.json").read_text())
        assert manifest["arguments"]["world_size"] == 2
        assert len(list((tmp_path / "logs").iterdir())) == 6

    def test_all_stop_together(self, tmp_path):
        """A stop that only the main process sees the reason for stops the other one too, after the next step."""
        out = launch(tmp_path, "non_finite")
        assert "rank 0 at 5" in out and "rank 1 at 5" in out
        assert json.loads((tmp_path / "logs" / "run_final_report.json").read_text())["status"] == "stopped"


def test_accelerate_launch(tmp_path):
    """The launcher's own command trains to the end, whatever number of processes it makes of it."""
    assert "rank 0 at 6, files 6, {}" in launch(tmp_path, launcher=ACCELERATE)
    df = rldk.ingest_runs(tmp_path / "logs")
    assert df[df.phase == "train"].step.tolist() == [1, 2, 3, 4, 5, 6]
