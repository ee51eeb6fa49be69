"""A run that was resumed is one run: same files, no step twice, clocks and tokens go on."""

from __future__ import annotations

import json
import logging

import pytest
import zoo
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

import rldk
from rldk.exceptions import RunExistsError
from rldk.integrations.trl import EventWriterCallback, RLDKCallback

pytestmark = pytest.mark.matrix


class Crash(TrainerCallback):
    """Ends a run the hard way, after the log of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("power cut")


def crash(family, out, callbacks, at=5):
    with pytest.raises(RuntimeError, match="power cut"):
        zoo.trainer(family, out, callbacks=[*callbacks, Crash(at)], max_steps=9).train()


def resume(family, out, callbacks, **config):
    trainer = zoo.trainer(family, out, callbacks=callbacks, max_steps=9, **config)
    trainer.train(resume_from_checkpoint=True)
    return trainer


@pytest.mark.parametrize("family", ["sft", "grpo"])
class TestResume:
    def test_goes_on_in_the_same_run(self, family, tmp_path):
        """With no run_id given, the resumed trainer finds its run; each step is there once, from the newest recording."""
        first = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
        crash(family, tmp_path / "out", [first])
        second = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
        trainer = resume(family, tmp_path / "out", [second])
        assert second.run_id == first.run_id and first.run_id is not None
        df = rldk.ingest_runs(tmp_path / "logs")
        train = df[df.phase == "train"]
        assert train.step.tolist() == list(range(1, 10))
        newest = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
        assert train.loss.tolist() == [newest[step] for step in train.step]
        assert train.wall_time.is_monotonic_increasing  # a checkpoint is read beside the steps that follow it
        assert second.report["status"] == "completed" and second.guard.failures == {}

    def test_files_cover_the_whole_run(self, family, tmp_path):
        """CSV and report of a resumed run hold its first part too, each step once; the manifest tells of the resume."""
        import pandas as pd

        crash(family, tmp_path / "out", [RLDKCallback(output_dir=tmp_path / "logs", run_id="whole", log_interval=0)])
        callback = RLDKCallback(output_dir=tmp_path / "logs", run_id="whole", log_interval=0)
        resume(family, tmp_path / "out", [callback])
        csv = pd.read_csv(callback.files["metrics"])
        assert csv.step.tolist() == list(range(1, 10))
        assert callback.report["metrics"]["loss"]["count"] == 9
        manifest = json.loads(callback.files["manifest"].read_text())
        assert [part["step"] for part in manifest["resumed"]] == [3]

    def test_tokens_go_on(self, family, tmp_path):
        """The tokens of a resumed run add up to those of a run that was never cut."""
        whole = RLDKCallback(output_dir=tmp_path / "whole", log_interval=0)
        zoo.trainer(family, tmp_path / "out-whole", callbacks=[whole], max_steps=9).train()
        crash(family, tmp_path / "out", [RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)])
        callback = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
        resume(family, tmp_path / "out", [callback])
        assert callback.report["totals"]["tokens_in"] == whole.report["totals"]["tokens_in"]

    def test_light_callback(self, family, tmp_path):
        """The light callback appends to its file under the same run id, and reads back without a step twice."""
        path = tmp_path / "light_events.jsonl"
        crash(family, tmp_path / "out", [EventWriterCallback(path)])
        resume(family, tmp_path / "out", [EventWriterCallback(path)])
        df = rldk.ingest_runs(path)
        assert df.run_id.nunique() == 1
        assert df[df.phase == "train"].step.tolist() == list(range(1, 10))


@pytest.mark.parametrize("stream", [True, False])
def test_alerts_of_the_first_part_are_kept(tmp_path, stream):
    """alerts.json of a resumed run still holds what was raised before, with a stream to replay and without."""
    def recorder():
        return RLDKCallback(
            output_dir=tmp_path / "logs", run_id="r", log_interval=0, enable_jsonl_logging=stream,
            alert_thresholds={"gradient_norm": 2.0},
        )

    crash("sft", tmp_path / "out", [recorder()])
    before = json.loads((tmp_path / "logs" / "r_alerts.json").read_text())
    assert [alert["code"] for alert in before] == ["gradient_norm"]
    resume("sft", tmp_path / "out", [recorder()])
    assert json.loads((tmp_path / "logs" / "r_alerts.json").read_text()) == before


def test_other_settings_on_another_machine(tmp_path, monkeypatch):
    """The manifest has the thresholds and the machine of the part that runs: a replay judges by them, as the run did."""
    crash("sft", tmp_path / "out", [RLDKCallback(output_dir=tmp_path / "logs", run_id="r", log_interval=0)])
    monkeypatch.setattr("platform.node", lambda: "another")
    second = RLDKCallback(output_dir=tmp_path / "logs", run_id="r", log_interval=0, alert_thresholds={"gradient_norm": 1e-9})
    resume("sft", tmp_path / "out", [second])
    manifest = json.loads(second.files["manifest"].read_text())
    assert manifest["host"] == "another" and manifest["resumed"][0]["rldk_before"]["alert_thresholds"] == {}
    live = json.loads(second.files["alerts"].read_text())
    rldk.rebuild_run(tmp_path / "logs", output_dir=tmp_path / "again")
    assert "gradient_norm" in {alert["code"] for alert in live}
    assert json.loads((tmp_path / "again" / "r_alerts.json").read_text()) == live


def test_two_callbacks_keep_their_runs(tmp_path):
    """Two recorders on one trainer each go on with a run of their own."""
    def pair():
        return [RLDKCallback(output_dir=tmp_path / "logs", log_interval=0) for _ in range(2)]

    before = pair()
    crash("sft", tmp_path / "out", before)
    after = pair()
    resume("sft", tmp_path / "out", after)
    assert {callback.run_id for callback in after} == {callback.run_id for callback in before}
    for callback in after:
        df = rldk.ingest_runs(callback.files["events"])
        assert df[df.phase == "train"].step.tolist() == list(range(1, 10))


class Exported(RLDKCallback, ExportableState):
    """A subclass that transformers replaces by a new object when it restores callbacks from a checkpoint."""

    made = 0

    def __init__(self, folder):
        super().__init__(output_dir=folder, log_interval=0)
        self.folder = str(folder)
        type(self).made += 1

    def state(self):
        return {"args": {"folder": self.folder}, "attributes": {}}


def test_a_replaced_callback_records_on(tmp_path):
    """With restore_callback_states_from_checkpoint the user's object is replaced; the new one goes on with the run."""
    crash("sft", tmp_path / "out", [Exported(tmp_path / "logs")])
    made = Exported.made
    mine = Exported(tmp_path / "logs")
    resume("sft", tmp_path / "out", [mine], restore_callback_states_from_checkpoint=True)
    assert Exported.made == made + 2 and mine.run_id is None
    df = rldk.ingest_runs(tmp_path / "logs")
    assert df.run_id.nunique() == 1
    assert df[df.phase == "train"].step.tolist() == list(range(1, 10))


def test_a_run_recorded_only_from_its_resume_on(tmp_path, caplog):
    """A checkpoint made without rldk is resumed with it: a new run begins at that step, and says so."""
    crash("sft", tmp_path / "out", [])
    callback = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
    with caplog.at_level(logging.WARNING, "rldk"):
        resume("sft", tmp_path / "out", [callback])
    assert "no earlier record" in caplog.text
    df = rldk.ingest_runs(tmp_path / "logs")
    assert df[df.phase == "train"].step.tolist() == list(range(4, 10))


def test_a_second_training_is_no_resume(tmp_path, caplog):
    """Training again from the start under the same run_id is recorded beside the first run, never over it."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", run_id="mine", log_interval=0)
    trainer = zoo.trainer("sft", tmp_path / "out", callbacks=[callback], max_steps=3)
    trainer.train()
    before = (tmp_path / "logs" / "mine_events.jsonl").read_bytes()
    with caplog.at_level(logging.WARNING, "rldk"):
        trainer.train()
    assert callback.run_id == "mine-2" and "'mine' exists already" in caplog.text
    assert (tmp_path / "logs" / "mine_events.jsonl").read_bytes() == before
    assert rldk.ingest_runs(tmp_path / "logs").run_id.nunique() == 2


def test_an_existing_run_is_refused_at_construction(tmp_path):
    """A run_id whose files exist is an error that shows it, unless a checkpoint may be resumed from."""
    zoo.trainer(
        "sft", tmp_path / "out", max_steps=3, save_strategy="no",
        callbacks=[RLDKCallback(output_dir=tmp_path / "logs", run_id="taken", log_interval=0)],
    ).train()
    with pytest.raises(RunExistsError, match="'taken' exists already"):
        RLDKCallback(output_dir=tmp_path / "logs", run_id="taken")
    assert RLDKCallback(output_dir=tmp_path / "logs", run_id="taken", resume=True).run_id == "taken"
