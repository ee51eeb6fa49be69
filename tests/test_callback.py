"""RLDKCallback and EventWriterCallback: parameters, habits of users, and what happens when things go wrong."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from transformers import TrainerCallback

import rldk
from rldk.exceptions import ConfigurationError
from rldk.integrations.trl import EventWriterCallback, RLDKCallback


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def train(*callbacks, family="sft", steps=6, **config):
    config.setdefault("save_strategy", "no")
    trainer = zoo.trainer(family, "out", callbacks=list(callbacks), max_steps=steps, **config)
    trainer.train()
    return trainer


class WithMetrics(RLDKCallback):
    """The documented way to add metrics."""

    def __init__(self, values, **parameters):
        super().__init__(**parameters)
        self.values = values

    def on_log(self, args, state, control, logs, **kwargs):
        logs.update(self.values(state.global_step))
        super().on_log(args, state, control, logs, **kwargs)


class TestParameters:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"run_id": "a/b"}, "path separator.*'a/b'"),
            ({"run_id": "..x"}, "'..x'"),
            ({"run_id": ""}, "non-empty"),
            ({"run_id": "a\nb"}, "control characters"),
            ({"run_id": "x" * 129}, "at most 128"),
            ({"run_id": 7}, "got 7"),
            ({"log_interval": -1}, "log_interval.*got -1"),
            ({"log_interval": 2.5}, "log_interval.*got 2.5"),
            ({"jsonl_log_interval": 0}, "jsonl_log_interval.*1 or more.*got 0"),
            ({"alert_thresholds": {"kl_divergance": 1}}, "unknown threshold 'kl_divergance'.*Did you mean 'kl_divergence'"),
            ({"alert_thresholds": {"clip_fraction": 1.5}}, "clip_fraction.*between 0 and 1.*got 1.5"),
            ({"alert_thresholds": {"memory_usage": 90}}, "Did you mean 0.9"),
            ({"alert_thresholds": {"gradient_norm": "high"}}, "got 'high'"),
            ({"alert_thresholds": {"zero_loss.patients": 3}}, "no parameter 'patients'.*Did you mean 'patience'"),
            ({"stop_on": "critcal"}, "unknown code or severity 'critcal'.*Did you mean 'critical'"),
            ({"stop_on": 5}, "stop_on.*got 5"),
            ({"alert_thresholds": 0.5}, "alert_thresholds must be a mapping.*got 0.5"),
            ({"alert_thresholds": ["kl_divergence"]}, r"must be a mapping.*got \['kl_divergence'\]"),
            ({"tags": 5}, "tags must be a mapping or a list.*got 5"),
            ({"on_alert": "print"}, "on_alert must be callable"),
            ({"output_dir": None}, "output_dir must be a non-empty path; got None"),
            ({"event_log_path": ""}, "event_log_path must be a non-empty path"),
            ({"event_log_path": "."}, "event_log_path must be a file, and is a folder"),
        ],
    )
    def test_bad_values_are_refused_at_construction(self, parameters, message):
        """The error comes at once, and shows the value and what is allowed."""
        with pytest.raises(ConfigurationError, match=message):
            RLDKCallback(**parameters)

    def test_the_light_callback_refuses_a_folder(self, tmp_path):
        """A folder is no stream; that is said at once, not after every event is lost."""
        with pytest.raises(ConfigurationError, match="is a folder"):
            EventWriterCallback(tmp_path)

    def test_nothing_is_touched_before_training(self, tmp_path):
        """Constructing the callback makes no folder and no file."""
        RLDKCallback(), EventWriterCallback("deep/down_events.jsonl")
        assert list(tmp_path.iterdir()) == []

    def test_defaults(self, tmp_path):
        """With no argument the run gets a readable id from the output folder and its six files in ./rldk_logs."""
        callback = RLDKCallback()
        train(callback)
        assert callback.run_id.startswith("out-20")
        written = {path.name.removeprefix(callback.run_id + "_") for path in (tmp_path / "rldk_logs").iterdir()}
        assert written == {"events.jsonl", "alerts.json", "metrics.csv", "final_report.json", "report.html", "run.json"}

    def test_intervals(self, caplog):
        """Every fourth step has its line, evaluations and the last log have theirs; the console has its own interval."""
        callback = RLDKCallback(log_interval=3, jsonl_log_interval=4)
        with caplog.at_level(logging.INFO, "rldk"):
            train(callback, steps=10, eval_strategy="steps", eval_steps=5)
        seen = [(line["model_info"]["phase"], line["step"]) for line in lines(callback.files["events"])]
        assert seen == [("train", 4), ("eval", 5), ("train", 8), ("eval", 10), ("train", 10), ("summary", 10)]
        shown = [record.args[0] for record in caplog.records if record.msg.startswith("step %d  %s")]
        assert shown == [3, 5, 6, 9, 10]

    def test_tokens_of_unwritten_events_are_kept(self):
        """With an interval, an event counts the tokens of the logs before it that were not written."""
        callback = RLDKCallback(jsonl_log_interval=3)
        train(callback, steps=7, eval_strategy="no")
        written = lines(callback.files["events"])
        total = sum(line["data_slice"].get("tokens_in", 0) for line in written)
        assert total == max(line["metrics"].get("num_tokens", 0) for line in written)

    def test_without_a_stream(self):
        """enable_jsonl_logging=False leaves the other files, complete."""
        callback = RLDKCallback(enable_jsonl_logging=False)
        train(callback)
        assert "events" not in callback.files and not list(Path("rldk_logs").glob("*_events.jsonl"))
        assert len(callback.files["metrics"].read_text().splitlines()) == 7

    def test_event_log_path_and_tags(self):
        """The stream goes where it was asked to go, with the tags in each event."""
        callback = RLDKCallback(event_log_path="streams/mine.jsonl", tags={"team": "a"}, run_id="r")
        train(callback)
        events = lines("streams/mine.jsonl")
        assert all(event["model_info"]["tags"] == {"team": "a"} for event in events)
        assert all(event["model_info"]["run_id"] == "r" for event in events)

    def test_manifest_has_no_secrets(self):
        """Tokens and passwords in the arguments or tags do not reach run.json."""
        callback = RLDKCallback(tags={"api_key": "s3cr3t", "note": "hf_" + "a" * 30})
        train(callback, hub_token="hf_" + "b" * 30)
        text = callback.files["manifest"].read_text() + callback.files["events"].read_text()
        assert "s3cr3t" not in text and "hf_aaa" not in text and "hf_bbb" not in text
        manifest = json.loads(callback.files["manifest"].read_text())
        assert manifest["arguments"]["learning_rate"] > 0 and manifest["model"]["parameters"] > 0
        assert manifest["environment"]["versions"]["trl"]


class TestAlerts:
    def test_one_alert_an_episode(self):
        """A threshold crossed for many steps is one alert, in the file, the notes and the report, and it resolves."""
        callback = WithMetrics(
            lambda step: {"kl": 9.0 if 3 <= step <= 5 else 0.1}, alert_thresholds={"kl_divergence": 2.0}, run_id="r")
        train(callback, family="kto", steps=8, eval_strategy="no")
        (alert,) = json.loads(callback.files["alerts"].read_text())
        assert (alert["code"], alert["step"], alert["resolved_step"]) == ("kl_divergence", 3, 6)
        assert alert["value"] == 9.0 and alert["threshold"] == 2.0 and "9" in alert["message"]
        assert [line["step"] for line in lines(callback.files["events"]) if line["notes"]] == [3]
        assert callback.report["health"]["verdict"] == "warning"

    @pytest.mark.parametrize("logging_steps", [1, 5])
    def test_a_nan_weight_is_caught(self, logging_steps):
        """A NaN in the weights, which transformers logs as a loss of 0.0, is a critical alert at the next log."""

        class Poison(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                if state.global_step == 10:
                    with torch.no_grad():
                        next(model.parameters()).view(-1)[:50] = math.nan

        callback = RLDKCallback(run_id="r")
        train(Poison(), callback, steps=30, logging_steps=logging_steps, eval_strategy="no")
        alerts = {alert["code"]: alert for alert in json.loads(callback.files["alerts"].read_text())}
        assert alerts["non_finite"]["severity"] == "critical"
        assert alerts["non_finite"]["step"] == (11 if logging_steps == 1 else 15)
        last = lines(callback.files["events"])[-2]
        assert last["metrics"]["loss"] == 0.0 and last["metrics"]["grad_norm"] is None
        assert last["nonfinite"]["grad_norm"] == "nan"
        if logging_steps == 1:
            assert alerts["zero_loss"]["step"] == 13

    def test_a_healthy_long_run_is_silent(self):
        """Hundreds of healthy steps raise nothing with the default parameters."""
        callback = RLDKCallback(log_interval=0)
        train(callback, steps=200, eval_strategy="no")
        assert callback.alerts == []

    def test_thresholds_by_synonym(self):
        """A threshold may be given by the name of its metric, or a synonym of that."""
        for name in ("kl_divergence", "kl", "kl_mean"):
            callback = WithMetrics(lambda step: {"kl": 9.0}, alert_thresholds={name: 2.0}, output_dir=name)
            train(callback, family="kto", steps=2, eval_strategy="no")
            assert [alert.code for alert in callback.alerts] == ["kl_divergence"]

    def test_acting_on_alerts(self):
        """on_alert hears of an alert as it is raised and resolved; what it raises itself is only noted."""
        heard = []

        def listen(alert):
            heard.append((alert.code, alert.resolved_step))
            raise RuntimeError("mine")

        callback = WithMetrics(lambda step: {"x": math.inf if step == 2 else 0.0}, on_alert=listen)
        train(callback)
        assert heard == [("non_finite", None), ("non_finite", 3)]
        assert callback.guard.failures["on_alert"]["count"] == 2
        assert callback.report["status"] == "completed"

    @pytest.mark.parametrize(("stop_on", "stops"), [("warning", True), (["non_finite"], True), ("critical", False)])
    def test_stopping(self, stop_on, stops):
        """stop_on ends the run at the alert's step, by code or by severity and worse; without a match it goes on."""
        callback = WithMetrics(lambda step: {"mine": math.nan if step == 3 else 1.0}, stop_on=stop_on)
        trainer = train(callback)
        assert trainer.state.global_step == (3 if stops else 6)
        assert callback.report["status"] == ("stopped" if stops else "completed")
        if stops:
            assert callback.report["reason"] == "stop_on: non_finite"

    def test_stopping_asks_for_a_checkpoint_where_it_is_worth_one(self):
        """A threshold's stop saves a checkpoint first; a NaN's does not."""
        train(WithMetrics(lambda step: {"kl": float(step)}, stop_on="kl_divergence", run_id="a",
                          alert_thresholds={"kl_divergence": 2}), family="kto", save_strategy="steps", save_steps=100)
        assert Path("out/checkpoint-3").is_dir()
        train(WithMetrics(lambda step: {"grad_norm": math.nan}, stop_on="critical", run_id="b"),
              save_strategy="steps", save_steps=100)
        assert not Path("out/checkpoint-1").exists()

    def test_coverage_tells_what_could_not_be_judged(self):
        """A detector whose metric was never logged is reported as unseen: its silence says nothing."""
        callback = RLDKCallback(alert_thresholds={"kl_divergence": 1, "clip_fraction": 0.5, "gradient_norm": 1e6})
        train(callback)
        states = {row["code"]: row["state"] for row in callback.report["coverage"]}
        quiet = {code for code, state in states.items() if state == "quiet"}
        assert {"gradient_norm", "non_finite", "zero_loss", "eos_labels", "learning_rate"} <= quiet
        unseen = {code for code, state in states.items() if state == "unseen"}
        assert {"clip_fraction", "kl_divergence", "degenerate_groups", "truncation", "value_loss"} <= unseen
        assert set(states.values()) <= {"quiet", "unseen", "warming"}


class TestHabits:
    def test_custom_metrics_by_subclassing(self):
        """Keys that a subclass adds to logs are recorded under their own names."""
        callback = WithMetrics(lambda step: {"my/metric": step * 0.5})
        train(callback, steps=3)
        df = rldk.ingest_runs(callback.files["events"])
        assert df["my/metric"].dropna().tolist()[:3] == [0.5, 1.0, 1.5]

    @pytest.mark.parametrize(
        ("value", "recorded"),
        [
            (np.float32(0.5), 0.5), (np.int64(3), 3.0), (np.array(2.5), 2.5), (torch.tensor(1.5), 1.5), (True, 1.0),
            (10**400, None), (-(10**400), None), (2**70, float(2**70)), (None, None), (math.inf, None),
        ],
    )
    def test_odd_values_are_recorded(self, value, recorded):
        """Numpy scalars, 0-d arrays, tensors and huge integers are numbers too."""
        callback = WithMetrics(lambda step: {"odd": value})
        train(callback, steps=2)
        assert lines(callback.files["events"])[0]["metrics"]["odd"] == recorded
        assert callback.guard.failures == {}

    @pytest.mark.parametrize("value", ["text", b"bytes", [1, 2], {"a": 1}, torch.ones(3), np.ones((2, 2)), object()])
    def test_what_is_no_number_is_skipped_with_a_reason(self, value):
        """Strings and arrays are left out of the event, and the report says which and why."""
        callback = WithMetrics(lambda step: {"odd": value, "fine": 1.0})
        train(callback, steps=2)
        event = lines(callback.files["events"])[0]
        assert "odd" not in event["metrics"] and event["metrics"]["fine"] == 1.0
        assert callback.report["skipped_values"]["odd"]
        assert callback.guard.failures == {}

    def test_hostile_names(self):
        """Quotes, newlines, formulas, surrogates and keys that are no strings are names like any other."""
        names = ['say "x"', "two\nlines", "=1+1", "\ud800", "", "{", "\x1b[31m"]
        callback = WithMetrics(lambda step: {**dict.fromkeys(names, 1.0), 7: 2.0})
        train(callback, steps=2)
        event = lines(callback.files["events"])[0]
        assert event["metrics"]['say "x"'] == 1.0 and event["metrics"]["7"] == 2.0
        header = callback.files["metrics"].read_text().splitlines()[0]
        assert "'=1+1" in header and "\x1b" not in header
        assert callback.guard.failures == {} and "\x1b" not in callback.summary_text()

    def test_several_callbacks_at_once(self):
        """Two recorders and a light one on one trainer do not meet."""
        callbacks = [RLDKCallback(), RLDKCallback(), EventWriterCallback("light_events.jsonl")]
        train(*callbacks)
        counts = [len(lines(callbacks[0].files["events"])), len(lines(callbacks[1].files["events"]))]
        assert counts[0] == counts[1] == len(lines("light_events.jsonl"))
        assert callbacks[0].run_id != callbacks[1].run_id

    def test_pickling_and_copying(self):
        """Before, during and after training a callback can be pickled and copied; the copy records when trained."""
        kept = []

        class Pickler(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                kept.extend([pickle.dumps(callback), copy.deepcopy(light)])

        callback, light = RLDKCallback(run_id="a", output_dir="one"), EventWriterCallback("l_events.jsonl")
        pickle.loads(pickle.dumps(callback))
        train(callback, light, Pickler(), steps=2)
        again = pickle.loads(kept[0])
        again.run_id = again._given_run_id = "b"
        train(again, kept[1], steps=2)
        assert again.report["status"] == "completed"
        assert len({line["model_info"]["run_id"] for line in lines("l_events.jsonl")}) == 2

    def test_report_to_rldk(self, run_script):
        """After `import rldk`, before or after transformers, report_to="rldk" attaches the callback."""
        done = run_script(
            "import rldk\nimport zoo\nt = zoo.trainer('sft', 'out', max_steps=2, report_to='rldk')\nt.train()\n"
            "print([type(c).__name__ for c in t.callback_handler.callbacks])")
        assert "'RLDKCallback'" in done.stdout, done.stderr
        train(report_to="rldk", steps=2)  # here transformers came first
        assert len(list(Path("rldk_logs").glob("*_events.jsonl"))) == 2

    def test_evaluating_after_training(self):
        """An evaluation after training is part of the run, in the stream, the CSV and the report."""
        callback, light = RLDKCallback(), EventWriterCallback("light_events.jsonl")
        trainer = train(callback, light, eval_steps=100)
        trainer.evaluate()
        for path in (callback.files["events"], "light_events.jsonl"):
            assert lines(path)[-1]["model_info"]["phase"] == "eval"
        assert "eval_loss" in callback.files["metrics"].read_text().splitlines()[0]
        assert callback.report["status"] == "completed" and "eval_loss" in callback.report["metrics"]

    def test_evaluating_before_training(self):
        """An evaluation before training is the beginning of the run."""
        callback = RLDKCallback()
        trainer = zoo.trainer("sft", "out", callbacks=[callback], max_steps=3, save_strategy="no")
        trainer.evaluate()
        trainer.train()
        phases = [line["model_info"]["phase"] for line in lines(callback.files["events"])]
        assert phases[:2] == ["eval", "train"] and callback.report["status"] == "completed"
        assert len(list(Path("rldk_logs").glob("*_events.jsonl"))) == 1

    def test_a_plain_trainer(self):
        """Any transformers Trainer is recorded, its unknown metrics under their own names."""
        from transformers import Trainer, TrainingArguments

        model, tokenizer = zoo.causal_lm(), zoo.tokenizer()
        ids = tokenizer("a plain text of some words")["input_ids"]
        callback = RLDKCallback()
        Trainer(
            model, TrainingArguments("out", max_steps=3, logging_steps=1, use_cpu=True, report_to="none",
                                     save_strategy="no", disable_tqdm=True),
            train_dataset=[{"input_ids": ids, "labels": ids}] * 8, callbacks=[callback],
        ).train()
        events = lines(callback.files["events"])
        assert [event["step"] for event in events] == [1, 2, 3, 3]
        assert {event["model_info"]["trainer"] for event in events} == {"generic"}


class TestTrouble:
    def test_an_unwritable_folder(self, caplog):
        """Training goes on, there is one warning, and the report that the callback still has counts what was lost."""
        Path("file").write_text("in the way")
        callback, light = RLDKCallback(output_dir="file/logs"), EventWriterCallback("file/light_events.jsonl")
        with caplog.at_level(logging.WARNING, "rldk"):
            trainer = train(callback, light)
        assert trainer.state.global_step == 6
        assert sum("cannot write (" in record.getMessage() for record in caplog.records) == 1
        assert callback.report["lost"]["events"] == 9 == light.lost
        assert callback.guard.failures == {}

    def test_a_disk_that_is_full_for_a_while(self, run_script):
        """Events are lost while the disk is full and counted; later ones are written, each line whole."""
        done = run_script("""
import os, resource, signal, zoo
from transformers import TrainerCallback
from rldk.integrations.trl import RLDKCallback
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

class Disk(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step in (4, 8):
            full = os.path.getsize("logs/run_events.jsonl") + 100
            size = full if state.global_step == 4 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

callback = RLDKCallback(run_id="run", output_dir="logs")
trainer = zoo.trainer("sft", "out", callbacks=[Disk(), callback], max_steps=12, save_strategy="no", eval_strategy="no")
trainer.train()
print("trained", trainer.state.global_step, callback.report["lost"]["events"], callback.guard.failures)
""")
        assert "trained 12 4 {}" in done.stdout, done.stdout + done.stderr
        assert done.stderr.count("cannot write") == 1
        # What was written of the line that hit the limit is there as a malformed line; none of the others is touched.
        with pytest.warns(UserWarning, match="1 malformed"):
            df = rldk.ingest_runs("logs")
        assert df[df.phase == "train"].step.tolist() == [1, 2, 3, 4, 9, 10, 11, 12]

    def test_a_run_that_cannot_begin_is_not_tried_again(self):
        """If opening the run fails, that is logged once, and no log call pays for another attempt."""

        class Broken(RLDKCallback):
            begun = 0

            def _files_of(self, run_id):
                self.begun += 1
                raise RuntimeError("a bug")

        callback = Broken()
        assert train(callback).state.global_step == 6
        assert callback.begun == 1 and callback.guard.failures["on_train_begin"]["count"] == 1

    def test_a_bug_of_ours_is_counted_and_named(self):
        """An exception inside rldk reaches the log and the report, never the training."""

        class Broken(WithMetrics):
            def _tell(self, changed):
                raise RuntimeError("a bug")

        callback = Broken(lambda step: {"mine": math.nan if step == 2 else 1.0})
        assert train(callback).state.global_step == 6
        assert callback.guard.failures["on_log"] == {"error": "RuntimeError: a bug", "count": 2}
        report = json.loads(callback.files["report"].read_text())
        assert report["rldk_failures"]["on_log"]["count"] == 2 and report["status"] == "completed"
