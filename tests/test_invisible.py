"""The callback is invisible: same losses, same weights, same random state, same control flow, bit for bit."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
import zoo
from transformers import TrainerCallback, set_seed

from rldk.integrations.trl import EventWriterCallback, RLDKCallback

pytestmark = pytest.mark.matrix

CLOCKS = ("time", "runtime", "per_second")


class Hooks(TrainerCallback):
    """Keeps the order of hooks and what the control asked for."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(("step", state.global_step, vars(control).copy()))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(("log", state.global_step, sorted(logs)))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("save", state.global_step, vars(control).copy()))


def outcome(family, folder, callbacks):
    """All that a run leaves: logs without clocks, weights, random states, hooks."""
    set_seed(11)
    hooks = Hooks()
    trainer = zoo.trainer(family, folder, callbacks=[*callbacks, hooks], seed=11)
    trainer.train()
    history = [
        {key: repr(value) for key, value in row.items() if key != "eps" and not any(clock in key for clock in CLOCKS)}
        for row in trainer.state.log_history
    ]
    weights = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.contiguous().numpy().tobytes())
    random_state = (
        hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        hashlib.sha256(np.random.get_state()[1].tobytes()).hexdigest(),
        hash(random.getstate()),
    )
    return history, weights.hexdigest(), random_state, hooks.seen


@pytest.mark.parametrize("family", [family for family in ("sft", "dpo", "grpo", "ppo") if zoo.has(family)])
def test_a_run_is_the_same_with_and_without(family, tmp_path):
    """Losses, weights, random state and control flow of a run do not depend on whether it is recorded."""
    plain = outcome(family, tmp_path / "plain", [])
    recorded = outcome(
        family, tmp_path / "recorded",
        [
            RLDKCallback(output_dir=tmp_path / "logs", alert_thresholds={"gradient_norm": 0.0, "kl_divergence": 0.0}),
            EventWriterCallback(tmp_path / "light_events.jsonl"),
        ],
    )
    history, weights, random_state, hooks = zip(plain, recorded)
    assert history[0] == history[1]
    assert weights[0] == weights[1]
    assert random_state[0] == random_state[1]
    assert hooks[0] == hooks[1]


def test_logs_are_not_changed(tmp_path):
    """What later callbacks see in `logs` is what the trainer put there."""

    class Last(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            assert not {"samples_per_second", "memory_bytes", "grad_norm_policy"} & set(logs)
            self.called = True

    last = Last()
    zoo.trainer("sft", tmp_path / "out", callbacks=[RLDKCallback(output_dir=tmp_path / "logs"), last]).train()
    assert last.called
