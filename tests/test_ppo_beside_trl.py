"""rldk.ppo's trainer beside TRL's own, whole runs of both, wherever TRL ships PPO (up to 1.12)."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from ppo_runs import PAD, blurred, where_trl_has_ppo
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.ppo.contest import letters, never_padding, trainer
from benchmarks.ppo.learning import agreement, curve

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]


class Logs(TrainerCallback):
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.rows.append(dict(logs))


class Remembered:
    """In place of a policy's `generate`: the answers that TRL's policy gave to the same prompts."""

    def __init__(self, prompts: Tensor, responses: Tensor) -> None:
        self._answers = {tuple(ids.tolist()): answer for ids, answer in zip(prompts, responses, strict=True)}

    def __call__(self, input_ids: Tensor, **_: Any) -> Tensor:
        answers = torch.stack([self._answers[tuple(ids.tolist())] for ids in input_ids])
        return torch.cat([input_ids, answers], dim=1)


@where_trl_has_ppo
@pytest.mark.parametrize("kl_estimator", ["k1", "k3"])
def test_an_update_with_the_same_responses_leaves_the_same_weights(tmp_path, kl_estimator):
    """Both trainers whole, of which only the sampling of ours is set: rewards, advantages, four steps, and the log."""
    settings = {
        "per_device_train_batch_size": 16, "num_ppo_epochs": 4, "response_length": 12, "temperature": 0.8, "kl_coef": 0.2,
        "stop_token": "eos", "missing_eos_penalty": 0.5, "vf_coef": 0.5, "gamma": 0.95, "kl_estimator": kl_estimator,
        "whiten_rewards": True,
    }  # fmt: skip
    policy, value_model = never_padding(zoo.causal_lm(0, eos_bias=1.0)), zoo.sequence_classifier(2)
    parts = {
        "ref_model": blurred(policy, 0), "reward_model": zoo.sequence_classifier(1), "train_dataset": letters(8, count=16),
    }
    trained, logged = {}, {}
    for kind in ("trl", "separate"):
        models = {"model": copy.deepcopy(policy), "value_model": copy.deepcopy(value_model)}
        weights = [weight for model in models.values() for weight in model.parameters()]
        # Plain gradient descent: Adam makes a whole step of what differs in the last bit of a gradient near 0.
        descent = torch.optim.SGD(weights, lr=0.3)
        constant = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: 1.0)
        own = trainer(
            kind, str(tmp_path / kind), {**parts, **models, "optimizers": (descent, constant)}, settings, updates=1
        )
        if kind == "trl":
            kept = overhear_answers(own)
        else:
            models["model"].generate = Remembered(*kept)
        own.add_callback(logs := Logs())
        own.train()
        trained[kind] = {
            f"{part}.{name}": weight for part, model in models.items() for name, weight in model.state_dict().items()
        }
        logged[kind] = logs.rows[0]
    for name, weight in trained["separate"].items():
        torch.testing.assert_close(weight, trained["trl"][name], rtol=1e-5, atol=1e-5)
    for part, before in {"model": policy, "value_model": value_model}.items():
        moved = [float((trained["trl"][f"{part}.{name}"] - old).abs().max()) for name, old in before.state_dict().items()]
        assert max(moved) > 1e-2, part
    for name in (
        "objective/kl", "objective/scores", "objective/non_score_reward", "objective/rlhf_reward", "loss/policy_avg",
        "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg", "val/num_eos_tokens",
    ):
        assert logged["separate"][name] == pytest.approx(logged["trl"][name], rel=1e-5, abs=1e-5), name
    assert logged["trl"]["policy/clipfrac_avg"] > 0
    mask = kept[1] != PAD
    padding = mask.numel() / mask.sum().item()
    assert padding > 1.1
    approx_kl = logged["trl"]["policy/approxkl_avg"] * padding  # TRL's mean goes over padding
    assert logged["separate"]["policy/approxkl_avg"] == pytest.approx(approx_kl, rel=1e-4)


def overhear_answers(trainer: Any) -> list[Tensor]:
    """Prompts and responses of TRL's policy, filled when it has generated: its own `generate`, listened to."""
    kept: list[Tensor] = []
    generate = trainer.policy_model.generate

    def listen(*args: Any, **kwargs: Any) -> Any:
        out = generate(*args, **kwargs)
        width = kwargs["input_ids"].shape[1]
        kept.extend([kwargs["input_ids"], out.sequences[:, width:]])
        return out

    trainer.policy_model.generate = listen
    return kept


@where_trl_has_ppo
def test_both_learn_a_task_alike():
    """Three seeds of 25 updates: both learn it, and the difference is small against what they learnt.

    The benchmark has ten seeds of 40; with so few the interval alone would let too much pass, or too little.
    """
    curves = {kind: [curve(kind, seed, updates=25) for seed in range(3)] for kind in ("trl", "separate")}
    found = agreement(curves["separate"], curves["trl"])
    learnt = (found.ours + found.theirs) / 2 - found.first
    assert learnt > 0.3, found
    assert min(found.ours, found.theirs) - found.first > 0.8 * learnt, found
    assert abs(found.whole.mean) < 0.2 * learnt, found


@where_trl_has_ppo
def test_an_update_costs_no_more_than_trls(tmp_path):
    """Ratios of a short run with slack for a busy machine; what is measured at leisure stands in docs/ppo-parity.md."""
    out = tmp_path / "ppo.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.ppo", "--quick", "--only", "tiny", "--json", str(out)], cwd=ROOT, check=True, timeout=300,
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["value"] <= 1.5 * row["must"], row
