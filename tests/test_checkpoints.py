"""Checkpoints are read beside the training: non-finite weights, norms, change since the last one."""

from __future__ import annotations

import json
import math

import pytest
import torch
import zoo
from safetensors.torch import save_file
from transformers import TrainerCallback

import rldk
from rldk import checkpoints
from rldk._guard import Guard
from rldk.checkpoints import CheckpointAnalyser
from rldk.integrations.trl import RLDKCallback


def analyse(tmp_path, *states, name="model.safetensors"):
    """The results of checkpoints with these tensors, in order."""
    guard = Guard()
    analyser = CheckpointAnalyser(guard)
    for step, state in enumerate(states, 1):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            save_file(state, folder / name)
        analyser.submit(step, folder)
    assert analyser.finish(30) and guard.failures == {}
    return list(analyser.take())


class TestAnalysis:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_norms_and_counts(self, tmp_path, dtype):
        """The norm is that of all floating-point weights; integers are left out."""
        state = {"a": torch.full((3, 4), 2.0, dtype=dtype), "b": torch.tensor(1.0, dtype=dtype), "c": torch.arange(9)}
        (result,) = analyse(tmp_path, state)
        assert result.metrics["param_norm"] == pytest.approx(math.sqrt(12 * 4 + 1))
        assert result.metrics["param_tensors"] == 2 and result.metrics["param_nonfinite"] == 0
        assert "param_update_ratio" not in result.metrics

    def test_change(self, tmp_path):
        """The change since the last checkpoint is relative, and exact for small tensors."""
        first = {"a": torch.ones(100), "frozen": torch.ones(100)}
        second = {"a": torch.ones(100) * 1.1, "frozen": torch.ones(100)}
        _, result = analyse(tmp_path, first, second)
        assert result.metrics["param_update_ratio"] == pytest.approx(math.sqrt(100 * 0.01 / 200), rel=1e-4)
        assert result.metrics["param_unchanged_frac"] == 0.5

    def test_non_finite_weights(self, tmp_path):
        """NaN and Inf are counted, and the norm is that of the others."""
        weights = torch.ones(1000)
        weights[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        (result,) = analyse(tmp_path, {"w": weights})
        assert result.metrics["param_nonfinite"] == 3
        assert result.metrics["param_norm"] == pytest.approx(math.sqrt(997))

    def test_slices(self, tmp_path, monkeypatch):
        """A tensor larger than a slice is read in several, with the same result."""
        torch.manual_seed(0)
        state = {"w": torch.randn(257, 33)}
        (whole,) = analyse(tmp_path, state)
        monkeypatch.setattr(checkpoints, "_SLICE", 100)
        (tmp_path / "again").mkdir()
        (sliced,) = analyse(tmp_path / "again", state)
        assert sliced.metrics["param_norm"] == pytest.approx(whole.metrics["param_norm"], rel=1e-9)

    def test_adapters_and_shards(self, tmp_path):
        """PEFT's adapter files and sharded models are found by their names."""
        (result,) = analyse(tmp_path, {"lora_A": torch.ones(4)}, name="adapter_model.safetensors")
        assert result.metrics["param_tensors"] == 1
        (tmp_path / "shards").mkdir()
        (result,) = analyse(tmp_path / "shards", {"w": torch.ones(4)}, name="model-00001-of-00001.safetensors")
        assert result.metrics["param_tensors"] == 1

    def test_pickles_are_not_read(self, tmp_path):
        """A checkpoint without safetensors is said to be unread; nothing is unpickled."""
        folder = tmp_path / "checkpoint-1"
        folder.mkdir()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
        analyser = CheckpointAnalyser(Guard())
        analyser.submit(1, folder)
        assert analyser.finish(30)
        (result,) = analyser.take()
        assert result.metrics == {} and "not analysed" in result.notes[0]
        assert not (tmp_path / "hacked").exists()

    def test_a_damaged_file_is_counted(self, tmp_path):
        """Garbage in a weight file costs that checkpoint's analysis, nothing else."""
        guard = Guard()
        analyser = CheckpointAnalyser(guard)
        for step, content in ((1, b"garbage"), (2, None)):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            if content is None:
                save_file({"w": torch.ones(2)}, folder / "model.safetensors")
            else:
                (folder / "model.safetensors").write_bytes(content)
            analyser.submit(step, folder)
        assert analyser.finish(30)
        assert [result.step for result in analyser.take()] == [2]
        assert guard.failures["checkpoint analysis"]["count"] == 1


class Poison(TrainerCallback):
    """NaN in the weights from a step on."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            with torch.no_grad():
                next(model.parameters()).view(-1)[:7] = math.nan


@pytest.mark.matrix
def test_checkpoints_of_a_real_run(tmp_path):
    """Each save is an event of its own; NaN weights in one are a critical alert. The last one is waited for."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", run_id="r")
    zoo.trainer("sft", tmp_path / "out", callbacks=[Poison(), callback], max_steps=6, eval_strategy="no").train()
    df = rldk.ingest_runs(tmp_path / "logs")
    saved = df[df.phase == "checkpoint"]
    assert saved.step.tolist() == [3, 6]
    assert saved.param_nonfinite.tolist()[0] == 0 and saved.param_nonfinite.tolist()[1] >= 7
    alerts = json.loads((tmp_path / "logs" / "r_alerts.json").read_text())
    assert [(alert["code"], alert["severity"]) for alert in alerts] == [("non_finite", "critical")]


def test_analysis_can_be_switched_off(tmp_path):
    """enable_checkpoint_analysis=False reads nothing."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", enable_checkpoint_analysis=False)
    zoo.trainer("sft", tmp_path / "out", callbacks=[callback], max_steps=3).train()
    assert "checkpoint" not in callback.report["totals"]["events"]


def test_old_checkpoints_may_be_gone(tmp_path):
    """save_total_limit deletes older checkpoints while they are read: at worst a note, never an error."""
    callback = RLDKCallback(output_dir=tmp_path / "logs")
    zoo.trainer(
        "sft", tmp_path / "out", callbacks=[callback], max_steps=20, save_steps=1, save_total_limit=1, eval_strategy="no",
    ).train()
    assert callback.report["status"] == "completed" and callback.guard.failures == {}
    assert callback.report["metrics"]["param_norm"]["count"] >= 1
