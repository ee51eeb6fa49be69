"""Gradient norms of policy and value model, apart: true, invisible, and absent where they would be wrong."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zoo
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from rldk._guard import Guard
from rldk.integrations.trl import RLDKCallback
from rldk.integrations.trl._gradients import watch_gradients
from rldk.ppo import PPOConfig, PPOTrainer

pytestmark = pytest.mark.matrix

PARTS = ("grad_norm_policy", "grad_norm_value")


class Witness(TrainerCallback):
    """Measures in plain torch what each optimizer step was given, after it, and keeps the means between logs."""

    def __init__(self):
        self.steps, self.logs, self.hooks = [], [], []

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.model = model
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.handle = self.optimizer.register_step_post_hook(self.after_step)

    def after_step(self, optimizer, args, kwargs):
        norms = {}
        for name, part in (("policy", "policy."), ("value", "value_"), ("all", "")):
            gradients = [
                item.grad.flatten().double() for own, item in self.model.named_parameters()
                if own.startswith(part) and item.grad is not None
            ]
            norms[name] = torch.cat(gradients).norm().item() if gradients else math.nan
        self.steps.append(norms)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.hooks.append(len(self.optimizer._optimizer_step_pre_hooks))
        if self.steps:
            self.logs.append({
                "step": state.global_step, "logged": logs.get("grad_norm"), "steps": len(self.steps),
                **{name: sum(step[name] for step in self.steps) / len(self.steps) for name in self.steps[0]},
            })
        self.steps = []


class Both(nn.Module):
    """What a PPO trainer built on transformers' Trainer trains: policy and value model in one module."""

    def __init__(self):
        super().__init__()
        self.policy = zoo.causal_lm()
        self.value_model = zoo.sequence_classifier(1)

    def forward(self, input_ids, labels=None):
        loss = self.policy(input_ids, labels=labels).loss
        return {"loss": loss + (self.value_model(input_ids).logits - 1.0).square().mean()}


def plain_trainer(*callbacks, model=None, **arguments):
    """A transformers Trainer on such a module."""
    ids = zoo.tokenizer()("a plain text of some words")["input_ids"]
    settings = {
        "max_steps": 6, "logging_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 2, **arguments,
    }
    return Trainer(
        Both() if model is None else model, TrainingArguments("out", **settings),
        train_dataset=[{"input_ids": ids[index % 5 :][:12], "labels": ids[index % 5 :][:12]} for index in range(16)],
        callbacks=list(callbacks),
    )


def train_events(callback):
    lines = [json.loads(line) for line in Path(callback.files["events"]).read_text().splitlines()]
    return [line for line in lines if line["model_info"]["phase"] == "train"]


def weights_of(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Dies(TrainerCallback):
    """Ends training with an exception after a number of steps, as an error of a trainer would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise RuntimeError("the training's own")


def hooks_of(trainer):
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return len(optimizer._optimizer_step_pre_hooks)


def when_closed(callback):
    """Waits until the end of a run that died has been noticed."""
    deadline = time.monotonic() + 20
    while callback.report["status"] == "running" and time.monotonic() < deadline:
        callback._active.ending.poll()
        time.sleep(0.05)
    return callback.report["status"]


if zoo.has("ppo"):  # TRL removed PPO in 1.13.0

    class TestTrlsOwnPPO:
        @pytest.mark.parametrize(
            ("cut", "steps"),
            [
                ({"num_ppo_epochs": 3, "num_mini_batches": 2, "gradient_accumulation_steps": 1}, 6),
                ({"num_ppo_epochs": 2, "num_mini_batches": 1, "gradient_accumulation_steps": 2}, 2),  # two micro-batches a step
            ],
        )
        def test_the_norms_are_those_of_the_steps(self, tmp_path, cut, steps):
            """Each log has the mean over its optimizer steps: of the policy, of the value model, and of all together."""
            callback, witness = RLDKCallback(output_dir=tmp_path / "logs"), Witness()
            zoo.trainer("ppo", tmp_path / "out", callbacks=[callback, witness], max_steps=4, **cut).train()
            events = train_events(callback)
            assert len(events) == len(witness.logs) == 4
            for event, seen in zip(events, witness.logs):
                assert event["step"] == seen["step"] and seen["logged"] is None
                # In the last update of a pass over the data, accelerate lets TRL step at every micro-batch.
                assert seen["steps"] == steps or event["step"] == 4
                for name, own in (*zip(PARTS, ("policy", "value")), ("grad_norm", "all")):
                    assert event["metrics"][name] == pytest.approx(seen[own], rel=1e-5)
            assert callback.guard.failures == {}

        def test_a_value_head_on_the_policy_s_backbone(self, tmp_path):
            """What policy and value model share counts once, as the policy's; the value model's own part is its head."""
            policy, value = zoo.causal_lm(eos_bias=2.0), zoo.sequence_classifier(2)
            value.model = policy.model
            callback, witness = RLDKCallback(output_dir=tmp_path / "logs"), Witness()
            zoo.trainer(
                "ppo", tmp_path / "out", callbacks=[callback, witness], max_steps=2, model=policy, value_model=value,
                save_strategy="no",
            ).train()
            for event, seen in zip(train_events(callback), witness.logs):
                metrics = event["metrics"]
                assert metrics["grad_norm_policy"] == pytest.approx(seen["policy"], rel=1e-5)
                assert metrics["grad_norm"] == pytest.approx(seen["all"], rel=1e-5)
                assert 0 < metrics["grad_norm_value"] < metrics["grad_norm"]

        def test_training_is_the_same(self, tmp_path):
            """Weights and random state after a run do not depend on whether gradients were measured."""

            def outcome(name, *callbacks):
                set_seed(11)
                trainer = zoo.trainer("ppo", tmp_path / name, callbacks=list(callbacks), max_steps=3)
                trainer.train()
                return weights_of(trainer.model), torch.get_rng_state().tolist()

            callback = RLDKCallback(output_dir=tmp_path / "logs")
            assert outcome("plain") == outcome("recorded", callback)
            assert train_events(callback)[-1]["metrics"]["grad_norm_value"] > 0

        def test_nan_of_the_value_model_is_seen_and_named(self, tmp_path):
            """A NaN in one step of an update makes the mean NaN; the policy's stays what it is, and the alert is critical."""

            class Poison(TrainerCallback):
                def on_step_end(self, args, state, control, model=None, **kwargs):
                    if state.global_step == 2:
                        model.value_model.score.weight.register_hook(lambda gradient: gradient * math.nan)

            callback = RLDKCallback(output_dir=tmp_path / "logs")
            zoo.trainer("ppo", tmp_path / "out", callbacks=[Poison(), callback], max_steps=3, save_strategy="no").train()
            *before, last = train_events(callback)
            assert all("nonfinite" not in event and event["metrics"]["grad_norm_value"] > 0 for event in before)
            assert last["nonfinite"]["grad_norm_value"] == last["nonfinite"]["grad_norm"] == "nan"
            assert last["metrics"]["grad_norm_policy"] > 0
            alerts = {alert.code: alert for alert in callback.alerts}
            assert alerts["non_finite"].severity == "critical" and alerts["non_finite"].step == 3
            assert "grad_norm_value, grad_norm" in alerts["non_finite"].message

        def test_a_policy_that_is_not_trained_has_no_norm(self, tmp_path):
            """Absent, not 0.0, where there is no gradient at all."""
            policy = zoo.causal_lm(eos_bias=2.0)
            policy.model.requires_grad_(False)
            policy.lm_head.requires_grad_(False)
            callback = RLDKCallback(output_dir=tmp_path / "logs")
            zoo.trainer(
                "ppo", tmp_path / "out", callbacks=[callback], max_steps=2, model=policy, save_strategy="no",
            ).train()
            for event in train_events(callback):
                assert "grad_norm_policy" not in event["metrics"]
                assert event["metrics"]["grad_norm"] == event["metrics"]["grad_norm_value"] > 0

        def test_the_hook_goes_with_the_run(self, tmp_path):
            """After training, and after an exception, the optimizer is as it was; while it lasts the callback is pickled."""
            copies = []

            class Pickler(TrainerCallback):
                def on_log(self, args, state, control, **kwargs):
                    copies.append(pickle.loads(pickle.dumps(callback)))

            callback, witness = RLDKCallback(output_dir=tmp_path / "logs"), Witness()
            trainer = zoo.trainer("ppo", tmp_path / "out", callbacks=[callback, witness, Pickler()], max_steps=2)
            trainer.train()
            assert witness.hooks == [1, 1] and hooks_of(trainer) == 0 and len(copies) == 2

            callback = RLDKCallback(output_dir=tmp_path / "logs")
            trainer = zoo.trainer("ppo", tmp_path / "out2", callbacks=[callback, Dies()], max_steps=4)
            with pytest.raises(RuntimeError, match="the training's own"):
                trainer.train()
            assert when_closed(callback) == "failed"
            assert hooks_of(trainer) == 0 and callback._active.gradients is None


class TestATransformersTrainer:
    def test_after_clipping_beside_the_trainer_s_own(self):
        """grad_norm stays the trainer's, before clipping; the parts are of the gradients that were applied."""
        callback, witness = RLDKCallback(), Witness()
        plain_trainer(callback, witness, max_grad_norm=0.5).train()
        events = train_events(callback)
        assert [event["step"] for event in events] == [2, 4, 6]
        for event, seen in zip(events, witness.logs):
            metrics = event["metrics"]
            assert seen["steps"] == 2 and metrics["grad_norm"] == seen["logged"] > 0.5
            assert metrics["grad_norm_policy"] == pytest.approx(seen["policy"], rel=1e-5)
            assert metrics["grad_norm_value"] == pytest.approx(seen["value"], rel=1e-5)
            assert math.hypot(seen["policy"], seen["value"]) == pytest.approx(0.5, rel=0.02)
        assert callback.guard.failures == {}

    def test_a_log_call_of_the_user_s_gets_no_other_grad_norm(self):
        """Where the trainer logs grad_norm, no log call without it is given one of another meaning."""

        class Logs(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                trainer.log({"mine": 1.0})

        callback = RLDKCallback()
        trainer = plain_trainer(callback, Logs(), max_steps=2, logging_steps=1)
        trainer.train()
        mine = [event["metrics"] for event in train_events(callback) if "mine" in event["metrics"]]
        assert len(mine) == 2 and all("grad_norm" not in metrics and "grad_norm_policy" in metrics for metrics in mine)

    def test_training_is_the_same(self):
        """The weights after a run do not depend on whether gradients were measured."""

        def outcome(*callbacks):
            set_seed(11)
            trainer = plain_trainer(*callbacks)
            trainer.train()
            return weights_of(trainer.model)

        assert outcome() == outcome(RLDKCallback())

    def test_the_hook_goes_with_the_run(self):
        """Of a run that died too, and a second one begins with one hook."""
        callback = RLDKCallback()
        trainer = plain_trainer(callback, Dies())
        with pytest.raises(RuntimeError, match="the training's own"):
            trainer.train()
        assert when_closed(callback) == "failed" and hooks_of(trainer) == 0
        witness = Witness()
        trainer.remove_callback(Dies)
        trainer.add_callback(witness)
        trainer.train()
        assert set(witness.hooks) == {1} and hooks_of(trainer) == 0

    def test_other_trainers_are_left_alone(self, tmp_path):
        """Without a policy and a value model nothing is hooked and nothing measured."""
        callback, witness = RLDKCallback(output_dir=tmp_path / "logs"), Witness()
        zoo.trainer("sft", tmp_path / "out", callbacks=[callback, witness], max_steps=2).train()
        assert set(witness.hooks) == {0}
        assert not set(PARTS) & set(train_events(callback)[0]["metrics"])


class TestOurOwnPPO:
    @pytest.mark.parametrize("shared", [True, False])
    def test_the_norms_are_those_of_the_steps(self, shared):
        """With a value head on the policy's backbone, and with a value model: means over the steps, after clipping."""
        callback, witness = RLDKCallback(), Witness()
        PPOTrainer(
            args=PPOConfig(
                "out", per_device_train_batch_size=4, gradient_accumulation_steps=2, num_ppo_epochs=2, num_mini_batches=2,
                total_episodes=16, response_length=6, logging_steps=4, learning_rate=1e-3, max_grad_norm=0.5, use_cpu=True,
                bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
                num_sample_generations=1,
            ),
            processing_class=zoo.tokenizer(), model=zoo.causal_lm(eos_bias=2.0), reward_funcs=zoo.vowels,
            value_model=None if shared else zoo.sequence_classifier(2),
            train_dataset=Dataset.from_dict({"prompt": ["the cat ", "the dog "] * 8}), callbacks=[callback, witness],
        ).train()
        events = train_events(callback)
        assert [event["step"] for event in events] == [4, 8]
        for event, seen in zip(events, witness.logs):
            metrics = event["metrics"]
            assert seen["steps"] == 4 and metrics["grad_norm"] == seen["logged"] > 0
            assert metrics["grad_norm_policy"] == pytest.approx(seen["policy"], rel=1e-5)
            assert metrics["grad_norm_value"] == pytest.approx(seen["value"], rel=1e-5)
            assert 0 < metrics["grad_norm_value"] < 0.5001 and 0 < metrics["grad_norm_policy"] < 0.5001
        assert callback.guard.failures == {}


class Small(nn.Module):
    """Two linear layers, or three."""

    def __init__(self, other=False):
        super().__init__()
        self.policy, self.value_head = nn.Linear(3, 2), nn.Linear(3, 1)
        if other:
            self.other = nn.Linear(3, 1)

    def forward(self, inputs):
        return sum(part(inputs).square().mean() for part in self.children())


def watched(model, optimizer, trainer=None):
    """A watch as of a run of TRL's own PPO, and its guard."""
    guard = Guard()
    family = type("PPOConfig", (), {"__module__": "trl.trainer.ppo_config"})
    return watch_gradients(family(), {"model": model, "optimizer": optimizer}, trainer, guard), guard


def norm_of(*modules):
    return torch.cat([item.grad.flatten() for module in modules for item in module.parameters()]).norm().item()


class TestOptimizers:
    def test_what_belongs_to_neither_counts_in_the_total(self):
        """A third part is in grad_norm alone; a log without a step has nothing."""
        model = Small(other=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        watch, guard = watched(model, optimizer)
        model(torch.randn(4, 3)).backward()
        optimizer.step()
        optimizer.step()
        taken = watch.take()
        assert taken == pytest.approx({
            "grad_norm_policy": norm_of(model.policy), "grad_norm_value": norm_of(model.value_head),
            "grad_norm": norm_of(model),
        }, rel=1e-5)
        assert watch.take() == {} and guard.failures == {}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_types_may_differ_between_the_parts(self, dtype):
        """Norms are taken in float32 at least: in half precision they would overflow, or keep three digits."""
        model = Small()
        model.policy.to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        watch, guard = watched(model, optimizer)
        for item in model.parameters():
            item.grad = torch.full_like(item, 40000.0)
        optimizer.step()
        taken = watch.take()
        value = torch.tensor(40000.0).to(dtype).item()
        assert taken["grad_norm_policy"] == pytest.approx(value * math.sqrt(8), rel=1e-5)
        assert taken["grad_norm"] == pytest.approx(math.hypot(value * math.sqrt(8), 80000.0), rel=1e-5)
        assert guard.failures == {}

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_gradient_scaler_does_not_show(self, fused):
        """Under fp16 the norms are without the loss scale, and a step that the scaler skips does not count."""
        model = Small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused)
        watch, guard = watched(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        inputs = torch.randn(4, 3)
        for overflow in (False, True):
            optimizer.zero_grad()
            scaler.scale(model(inputs)).backward()
            if overflow:
                model.policy.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
        taken = watch.take()
        optimizer.zero_grad()
        model(inputs).backward()
        assert taken["grad_norm"] == pytest.approx(norm_of(model), rel=1e-5)
        assert taken["grad_norm_policy"] == pytest.approx(norm_of(model.policy), rel=1e-5)
        assert guard.failures == {}

    def test_parameters_that_are_added_later_count(self):
        """As when a layer is unfrozen in mid-run."""
        model = Small()
        optimizer = torch.optim.SGD(model.policy.parameters(), lr=0.0)
        watch, _ = watched(model, optimizer)
        model(torch.randn(4, 3)).backward()
        optimizer.step()
        assert "grad_norm_value" not in watch.take()
        optimizer.add_param_group({"params": list(model.value_head.parameters())})
        optimizer.step()
        assert watch.take()["grad_norm_value"] == pytest.approx(norm_of(model.value_head), rel=1e-5)

    def test_an_optimizer_of_other_tensors_is_not_measured(self):
        """Flat pieces of a partitioned model, or another model's tensors: absent rather than wrong."""
        model = Small()
        flat = nn.Parameter(torch.ones(5))
        optimizer = torch.optim.SGD([flat, *model.policy.parameters()], lr=0.0)
        watch, guard = watched(model, optimizer)
        flat.grad = torch.ones(5)
        model(torch.randn(4, 3)).backward()
        optimizer.step()
        assert watch.take() == {} and guard.failures == {}

    @pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
    def test_split_gradients_are_not_measured(self, kind):
        """Where accelerate says that a process holds a piece of each gradient, nothing is hooked."""
        from accelerate.utils import DistributedType

        model = Small()
        trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=DistributedType(kind)))
        assert watched(model, torch.optim.SGD(model.parameters(), lr=0.0), trainer)[0] is None

    def test_sharded_tensors_are_not_measured(self, run_script):
        """The same for tensors that torch itself has sharded, of which each process holds a piece."""
        done = run_script("""
import torch, torch.distributed as dist
import test_gradients as t
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", init_method="file://" + __file__ + ".store", rank=0, world_size=1)
model = t.Small()
fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch, guard = t.watched(model, optimizer)
model(torch.randn(4, 3)).backward()
optimizer.step()
print("taken", watch.take(), guard.failures)
dist.destroy_process_group()
""")
        assert "taken {} {}" in done.stdout, done.stderr[-2000:]

    def test_what_cannot_be_measured_is_named_once(self):
        """Sparse gradients have no norm in torch: the step is made, the failure is noted once, and nothing is recorded."""
        model = Small()
        model.policy = nn.Embedding(4, 2, sparse=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch, guard = watched(model, optimizer)
        before = model.policy.weight.detach().clone()
        for _ in range(3):
            (model.policy(torch.tensor([1])).sum() + model.value_head(torch.ones(3)).sum()).backward()
            optimizer.step()
        assert not torch.equal(before, model.policy.weight)
        assert guard.failures["gradient norms"]["count"] == 1 and watch.take() == {}
        watch.end()
        assert not optimizer._optimizer_step_pre_hooks
