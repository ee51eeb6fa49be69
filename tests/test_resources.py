"""What the run uses is sampled beside it; what is not there is absent."""

from __future__ import annotations

import threading
import time

import psutil
import zoo
from transformers import TrainerCallback

import rldk
from rldk._guard import Guard
from rldk.integrations.trl import RLDKCallback
from rldk.resources import ResourceSampler


def sampled(count):
    sampler = ResourceSampler(Guard(), interval=0.01)
    sampler.start()
    deadline = time.monotonic() + 10
    while sampler._samples < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return sampler


class TestSampler:
    def test_values_are_those_of_this_process_and_host(self):
        """Memory is this process's, shares are between 0 and 1, peaks are not below means."""
        sampler = sampled(3)
        taken = sampler.take()
        sampler.stop()
        assert 0.5 < taken["memory_bytes"] / psutil.Process().memory_info().rss < 2
        assert 0 < taken["host_memory_frac"] <= taken["host_memory_peak_frac"] < 1
        assert taken["memory_peak_bytes"] >= taken["memory_bytes"]
        assert 0 <= taken["host_cpu_percent"] <= 100 and taken["cpu_percent"] >= 0

    def test_without_a_gpu_there_are_no_gpu_metrics(self):
        """Absent, not zero."""
        import torch

        sampler = sampled(2)
        taken = sampler.take()
        sampler.stop()
        assert any(name.startswith("gpu") for name in taken) == torch.cuda.is_available()

    def test_nothing_new_is_nothing(self):
        """Between two samples there is nothing to take."""
        sampler = sampled(1)
        sampler.stop()
        sampler.take()
        assert sampler.take() == {}


class Slow(TrainerCallback):
    """Makes a step last long enough to be sampled."""

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.4)


def test_events_carry_resources_and_rates(tmp_path):
    """Samples ride on training events; tokens and samples a second come from the counts and the clock of the steps."""
    callback = RLDKCallback(output_dir=tmp_path / "logs")
    zoo.trainer("sft", tmp_path / "out", callbacks=[callback, Slow()], max_steps=8, save_strategy="no").train()
    df = rldk.ingest_runs(tmp_path / "logs")
    train, evaluation = df[df.phase == "train"], df[df.phase == "eval"]
    assert train.memory_bytes.notna().any() and evaluation.memory_bytes.isna().all()
    rates = train.dropna(subset=["tokens_per_second"])
    assert len(rates) == 8
    # The pause lies within the step, so a step of two rows cannot be faster than that.
    assert (rates.samples_per_second < 4 / 0.4 * 2).all()
    report = callback.report["resources"]
    assert report["memory_peak_bytes"]["max"] >= report["memory_bytes"]["mean"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rldk-")]


def test_without_monitoring(tmp_path):
    """enable_resource_monitoring=False adds nothing and starts no thread."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", enable_resource_monitoring=False)
    zoo.trainer("sft", tmp_path / "out", callbacks=[callback, Slow()], max_steps=4, save_strategy="no").train()
    df = rldk.ingest_runs(tmp_path / "logs")
    assert not {"memory_bytes", "samples_per_second", "tokens_per_second"} & set(df.columns)
    assert callback.report["resources"] == {}


def test_memory_threshold(tmp_path):
    """`memory_usage` is a share of the device or, without one, of the host."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", alert_thresholds={"memory_usage": 1e-6})
    zoo.trainer("sft", tmp_path / "out", callbacks=[callback, Slow()], max_steps=6, save_strategy="no").train()
    (alert,) = callback.alerts
    assert alert.code == "memory_usage" and 0 < alert.value < 1
