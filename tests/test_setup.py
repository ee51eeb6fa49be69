"""What is known before the first step, what the weights and the clock say: seen on real trainers, judged live, replayed alike."""

from __future__ import annotations

import gc
import json
import logging
import math
import random
import time
import weakref

import datasets
import numpy as np
import pytest
import torch
import transformers
import zoo

from rldk import RLDKCallback, rebuild_run
from rldk.exceptions import TrainingStopped
from rldk.integrations.trl._setup import facts_of, trainer_of


def recorded(family, folder, *, steps=8, recorder=None, **config):
    """Trains with a recorder; gives the recorder and the lines of the stream."""
    recorder = recorder or RLDKCallback(folder / "logs", log_interval=0, run_id="run")
    config.setdefault("eval_strategy", "no")
    config.setdefault("save_strategy", "no")
    trainer = zoo.trainer(family, folder, callbacks=[recorder], max_steps=steps, **config)
    trainer.train()
    assert recorder.report["rldk_failures"] == {}
    lines = [json.loads(line) for line in recorder.files["events"].read_text().splitlines()]
    return recorder, lines


def facts(lines):
    return lines[0]["model_info"]["setup"]["facts"]


def codes(recorder):
    return {alert.code: alert.step for alert in recorder.alerts}


def sft_rows(rows):
    return datasets.Dataset.from_list(rows)


@pytest.mark.matrix
@pytest.mark.parametrize("family", [name for name in ("sft", "dpo", "kto", "reward", "grpo", "ppo") if zoo.has(name)])
def test_a_healthy_setup_raises_nothing(family, tmp_path):
    """The facts stand in the first line and in no other; none of them is an alert."""
    recorder, lines = recorded(family, tmp_path)
    assert recorder.alerts == []
    setup = lines[0]["model_info"]["setup"]
    assert (setup["step"], setup["trainer"]) == (0, family)
    assert setup["arguments"]["max_steps"] == 8
    assert setup["facts"]["trainable_frac"] == 1.0
    assert setup["facts"]["warmup_frac"] == 0.0
    assert all("setup" not in line["model_info"] for line in lines[1:])
    assert all(step == line["step"] for step, line in enumerate(lines[:8], 1))


@pytest.mark.matrix
class TestLabels:
    def test_of_ordinary_rows(self, tmp_path):
        """TRL ends each text with the end token; pad and end token being one is no fault by itself."""
        _, lines = recorded("sft", tmp_path)
        assert facts(lines)["eos_label_frac"] == 1.0
        assert facts(lines)["empty_label_frac"] == 0.0

    def test_without_an_end(self, tmp_path):
        """Tokenised rows without the end token: said before the first step."""
        tokens = zoo.tokenizer()("the cat sat on a mat.")["input_ids"]
        rows = sft_rows([{"input_ids": tokens} for _ in range(16)])
        recorder, lines = recorded("sft", tmp_path, train_dataset=rows)
        assert facts(lines)["eos_label_frac"] == 0.0
        assert codes(recorder)["eos_labels"] == 0

    def test_with_nothing_to_learn(self, tmp_path):
        """A collator of the user's is not called out of turn: what it made is read as the model is given it."""
        calls = []
        plain = zoo.trainer("sft", tmp_path / "plain").data_collator

        def masking(rows):
            calls.append(len(rows))
            batch = plain(rows)
            batch["labels"][1:] = -100  # one row of four has labels
            return batch

        recorder, lines = recorded("sft", tmp_path, data_collator=masking)
        assert "empty_label_frac" not in facts(lines)
        assert lines[0]["metrics"]["empty_label_frac"] == 0.75
        assert codes(recorder)["empty_labels"] == 1
        assert calls[:2] == [4, 4]



@pytest.mark.matrix
def test_a_shared_reference(tmp_path):
    """A reference whose weights lie in the policy's memory, though it is another object."""
    model = zoo.causal_lm(0)
    reference = zoo.causal_lm(1)
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        theirs.data = ours.data
    recorder, lines = recorded("dpo", tmp_path, model=model, ref_model=reference)
    assert facts(lines)["ref_shared_frac"] == 1.0
    assert codes(recorder)["shared_reference"] == 0


@pytest.mark.matrix
def test_an_imbalance_of_labels(tmp_path):
    rows = [{"prompt": "the cat ", "completion": f"sat {index}.", "label": index > 1} for index in range(32)]
    recorder, lines = recorded("kto", tmp_path, train_dataset=datasets.Dataset.from_list(rows))
    assert facts(lines)["kto_balance"] == 15.0
    assert codes(recorder)["kto_imbalance"] == 0


def test_arguments_that_give_no_gradient(tmp_path):
    recorder, _ = recorded("grpo", tmp_path, steps=2, temperature=1e-4)
    assert codes(recorder)["gradient_arguments"] == 0
    alert = next(alert for alert in recorder.alerts if alert.code == "gradient_arguments")
    assert "temperature" in alert.message


class TestWarmUp:
    def test_longer_than_the_run(self, tmp_path):
        recorder, lines = recorded("sft", tmp_path, warmup_steps=80)
        assert facts(lines)["warmup_frac"] == 10.0
        assert codes(recorder)["learning_rate"] == 0


@pytest.mark.matrix
class TestWeights:
    def test_they_move(self, tmp_path):
        """One look after five steps is enough when all have moved."""
        _, lines = recorded("sft", tmp_path, steps=12)
        looks = {line["step"]: line["metrics"]["param_unmoved_frac"] for line in lines if "param_unmoved_frac" in line["metrics"]}
        assert looks == {5: 0.0}

    def test_an_optimizer_of_other_weights(self, tmp_path):
        """Loss and gradient look ordinary, and nothing is learnt: only the weights tell."""
        other = torch.optim.AdamW(zoo.causal_lm(9).parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ConstantLR(other, factor=1.0)
        recorder, lines = recorded("sft", tmp_path, steps=12, optimizers=(other, scheduler))
        assert all(line["metrics"]["grad_norm"] > 0 for line in lines[:12])
        looks = {line["step"]: line["metrics"]["param_unmoved_frac"] for line in lines if "param_unmoved_frac" in line["metrics"]}
        assert looks == {5: 1.0, 10: 1.0}
        assert codes(recorder) == {"frozen_parameters": 10}  # at the second look: the first may fall into a warm-up

    def test_nothing_trains(self, tmp_path):
        """All but one small tensor frozen: said before the first step."""
        model = zoo.causal_lm(0)
        for name, item in model.named_parameters():
            item.requires_grad_(name == "model.norm.weight")
        recorder, lines = recorded("sft", tmp_path, model=model)
        assert 0 < facts(lines)["trainable_frac"] < 0.01
        assert codes(recorder)["frozen_parameters"] == 0


class Sleeper(transformers.TrainerCallback):
    """Sleeps at one step, as a hanging collective would."""

    def __init__(self, step, seconds):
        self.step, self.seconds = step, seconds

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            time.sleep(self.seconds)


class TestSilence:
    def test_it_is_said_while_it_lasts(self, tmp_path, caplog):
        """A line in the stream says for how long and where; the alert ends with the next step."""
        caplog.set_level(logging.WARNING, logger="rldk")
        recorder = RLDKCallback(tmp_path / "logs", run_id="run", alert_thresholds={"stall.floor": 0.5})
        trainer = zoo.trainer("sft", tmp_path, callbacks=[recorder, Sleeper(20, 2.5)], max_steps=24,
                              eval_strategy="no", save_strategy="no")
        trainer.train()
        lines = [json.loads(line) for line in recorder.files["events"].read_text().splitlines()]
        silent = [line for line in lines if "silence_s" in line["metrics"]]
        assert silent[0]["step"] == 20
        assert list(silent[0]["metrics"]) == ["silence_s"]
        assert 0.5 < silent[0]["metrics"]["silence_s"] < 2.5
        assert "on_step_begin" in silent[0]["notes"][0]
        (alert,) = [alert for alert in recorder.alerts if alert.code == "stall"]
        assert (alert.step, alert.resolved_step) == (20, 21)
        rebuild_run(recorder.files["events"], output_dir=tmp_path / "again")
        again = json.loads((tmp_path / "again" / "run_alerts.json").read_text())
        assert again == json.loads(recorder.files["alerts"].read_text())

    def test_evaluation_and_substeps_are_signs_of_life(self, tmp_path):
        """A long evaluation is not silence."""

        class SlowRows(transformers.TrainerCallback):
            def on_prediction_step(self, *args, **kwargs):
                time.sleep(0.4)

        recorder = RLDKCallback(tmp_path / "logs", run_id="run", alert_thresholds={"stall.floor": 1.0})
        trainer = zoo.trainer("sft", tmp_path, callbacks=[recorder, SlowRows()], max_steps=12, eval_steps=12,
                              per_device_eval_batch_size=1, save_strategy="no")
        trainer.train()
        assert recorder.alerts == []


def test_setup_alerts_are_replayed_alike(tmp_path):
    """They are found again in the stream's first line, at the step and time at which they were raised."""
    recorder, _ = recorded("sft", tmp_path, warmup_steps=80)
    live = json.loads(recorder.files["alerts"].read_text())
    assert live
    rebuild_run(recorder.files["events"], output_dir=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "run_alerts.json").read_text()) == live


def test_looking_changes_nothing(tmp_path):
    """The random states of Python, numpy and torch are what they were."""
    trainer = zoo.trainer("sft", tmp_path, eval_strategy="no", save_strategy="no")
    loader = trainer.get_train_dataloader()
    hook = {"model": trainer.model, "train_dataloader": loader, "processing_class": zoo.tokenizer()}
    trainer.state.max_steps = 8
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = facts_of(trainer.args, trainer.state, "sft", hook, trainer, RLDKCallback(tmp_path / "logs").guard)
    assert found["eos_label_frac"] == 1.0
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_streaming_rows_are_not_drawn(tmp_path):
    """Of a dataset that can be read only once nothing is read: the fact is absent."""
    drawn = []

    def rows():
        for index in range(64):
            drawn.append(index)
            yield {"text": "the cat sat on a mat."}

    stream = datasets.IterableDataset.from_generator(rows)
    _, lines = recorded("sft", tmp_path, steps=2, train_dataset=stream)
    assert "eos_label_frac" not in facts(lines)
    assert facts(lines)["trainable_frac"] == 1.0


def test_the_trainer_is_found_on_the_stack_only_while_it_trains(tmp_path):
    trainer = zoo.trainer("sft", tmp_path)
    assert trainer_of(trainer.state) is None


@pytest.mark.matrix
@pytest.mark.skipif(not zoo.has("ppo"), reason="TRL removed PPO in 1.13.0; the other versions of the matrix have it")
class TestPPOStops:
    def test_after_the_checkpoint(self, tmp_path):
        """PPO ignores a request to stop: train() ends with an exception, and the record is whole."""
        recorder = RLDKCallback(tmp_path / "logs", run_id="run", alert_thresholds={"kl_divergence": 0.0},
                                stop_on="kl_divergence")
        trainer = zoo.trainer("ppo", tmp_path, callbacks=[recorder], max_steps=8, save_strategy="no")
        with pytest.raises(TrainingStopped, match="stop_on: kl_divergence"):
            trainer.train()
        assert 1 <= trainer.state.global_step < 8
        assert (recorder.report["status"], recorder.report["reason"]) == ("stopped", "stop_on: kl_divergence")
        assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()


class Poison(transformers.TrainerCallback):
    """Makes weights NaN at the end of a step: with GRPO the next generation raises, before anything is logged."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)


def test_a_run_that_died_of_its_weights_says_so(tmp_path):
    """Nothing was logged between the NaN and the end: the weights are looked at when the run has died."""
    recorder = RLDKCallback(tmp_path / "logs", run_id="run", log_interval=0)
    trainer = zoo.trainer("grpo", tmp_path, callbacks=[Poison(3), recorder], max_steps=20, eval_strategy="no",
                          save_strategy="no")
    with pytest.raises(RuntimeError, match="nan"):
        trainer.train()
    # The report says `failed` first, whatever becomes of the look at the weights, and then what that found.
    deadline = time.monotonic() + 20
    while "NaN or infinite" not in recorder.report["health"]["why"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert recorder.report["status"] == "failed"
    assert codes(recorder)["non_finite"] == 3
    assert "NaN or infinite" in recorder.report["health"]["why"]


class TestHarmless:
    """What the review of this code found, so that it stays away."""

    def test_masks_of_another_shape(self, tmp_path):
        """A collator of the user's may make a mask that says nothing of a row's length."""
        plain = zoo.trainer("sft", tmp_path / "plain").data_collator

        def square(rows):
            batch = plain(rows)
            rows, length = batch["labels"].shape
            batch["attention_mask"] = torch.ones(rows, 1, length, length, dtype=torch.bool).tril()
            return batch

        _, lines = recorded("sft", tmp_path, data_collator=square, steps=3)
        assert lines[0]["metrics"]["eos_label_frac"] == 1.0

    def test_the_model_is_let_go(self, tmp_path):
        """Who keeps the recorder after training does not keep the model in memory."""
        recorder = RLDKCallback(tmp_path / "logs", run_id="run", log_interval=0)
        trainer = zoo.trainer("sft", tmp_path, callbacks=[recorder], max_steps=3, eval_strategy="no", save_strategy="no",
                              report_to=["tensorboard"])
        trainer.train()
        model = weakref.ref(trainer.model)
        del trainer
        gc.collect()
        assert model() is None
        assert recorder.report["status"] == "completed"

    def test_the_setup_is_written_with_the_first_line_that_is(self, tmp_path):
        recorder = RLDKCallback(tmp_path / "logs", run_id="run", jsonl_log_interval=5)
        _, lines = recorded("sft", tmp_path, recorder=recorder, steps=12)
        assert lines[0]["step"] == 5
        assert facts(lines)["trainable_frac"] == 1.0

    def test_a_wish_to_stop_ends_with_its_training(self, tmp_path):
        recorder = RLDKCallback(tmp_path / "logs", stop_on="gradient_norm", alert_thresholds={"gradient_norm": 1e9})
        recorder._wish = 2
        trainer = zoo.trainer("sft", tmp_path, callbacks=[recorder], max_steps=4, eval_strategy="no", save_strategy="no")
        trainer.train()
        assert trainer.state.global_step == 4

    @pytest.mark.parametrize("floor", [0.0, 1e12])
    def test_any_patience(self, floor, tmp_path):
        recorder = RLDKCallback(tmp_path / "logs", run_id="run", alert_thresholds={"stall.floor": floor})
        recorded("sft", tmp_path, recorder=recorder, steps=4)
        assert recorder.report["status"] == "completed"
