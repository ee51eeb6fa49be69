"""The verdicts on real histories from public repositories, held against one engineer's labels."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from rldk.adapters.trainer_state import TrainerState
from rldk.detectors import make_detectors
from rldk.monitor import Monitor

STATES = Path(__file__).parent / "data" / "real_states"
LABELS = [json.loads(line) for line in (STATES / "manifest.jsonl").read_text().splitlines()]

# Codes that name a problem of the labels; a plateau and a KTO estimate stuck at its clamp of 0 have none.
NAMES = {
    "nonfinite": {"non_finite", "zero_loss"},
    "kl_explosion": {"kl_divergence"},
    "grad_spike": {"gradient_norm"},
    "truncation": {"truncation"},
    "degenerate_groups": {"degenerate_groups", "zero_gradient"},
    "dead_reward_component": {"reward_components"},
    "overfit": {"overfit"},
    "plateau": set(),
    "kl_stuck_zero": set(),
}


def alerts_of(label, folder):
    path = folder / f"{label['id']}.json"
    path.write_bytes(lzma.decompress((STATES / f"{label['id']}.json.xz").read_bytes()))
    monitor = Monitor(make_detectors())
    for event in TrainerState(path).events():
        monitor.observe(event)
    assert monitor.guard.failures == {}
    return monitor.alerts


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label["id"])
def test_nothing_else_is_said(label, tmp_path):
    """No alert of anything that the labels do not list."""
    listed = set().union(*(NAMES[problem["problem"]] for problem in label["problems"]))
    assert {alert.code for alert in alerts_of(label, tmp_path)} <= listed


@pytest.mark.parametrize("label", [label for label in LABELS if label["label"] == "broken"], ids=lambda label: label["id"])
def test_what_is_broken_is_named(label, tmp_path):
    """Each serious or transient problem of a broken run is named, no earlier than it is there."""
    alerts = alerts_of(label, tmp_path)
    for problem in label["problems"]:
        if NAMES[problem["problem"]]:
            steps = [alert.step for alert in alerts if alert.code in NAMES[problem["problem"]]]
            assert steps, problem
            assert min(steps) >= problem["first_step"], problem
