"""rldk's own PPO trainer, on real tiny models: it learns, logs what was computed, resumes bit for bit, and says what is wrong."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import peft
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

import rldk
from rldk.exceptions import ConfigurationError
from rldk.integrations.trl import RLDKCallback, fix_generation_config
from rldk.ppo import PPOConfig, PPOTrainer
from rldk.ppo.models import judge_tokens, last_hidden_state

ROOT = Path(__file__).resolve().parents[1]
EOS = 2
TIMES = ("eps", "runtime", "per_second", "total_flos")


@pytest.fixture(autouse=True)
def _mixed_precision_stays_in_its_test(monkeypatch):
    """Version 4 of transformers hands the dtype to accelerate through the environment, where the next trainer finds it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def tokenizer(**changes):
    text = zoo.tokenizer()
    for name, value in changes.items():
        setattr(text, name, value)
    return text


def prompts(count=16, column="prompt", **more):
    rows = [{column: f"the {('cat', 'dog', 'hen', 'pig')[i % 4]} {'abcdefghijklmnop'[i % 16] * (i % 3 + 1)}"} for i in range(count)]
    return datasets.Dataset.from_list([{**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows)])


def gpt2(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(
            vocab_size=len(zoo.tokenizer()), n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2,
            pad_token_id=0, bos_token_id=1, eos_token_id=EOS,
        ))


class OwnHead(torch.nn.Module):
    """A value-head model of the shape of TRL's."""

    def __init__(self, pretrained_model):
        super().__init__()
        self.pretrained_model = pretrained_model
        self.v_head = torch.nn.Linear(pretrained_model.config.hidden_size, 1)

    def forward(self, **inputs):
        out = self.pretrained_model(**inputs, output_hidden_states=True)
        return out.logits, None, self.v_head(out.hidden_states[-1]).squeeze(-1)


def value_heads():
    """Makers of a value-head model: of the shape of TRL's, and TRL's own where the installed TRL has it."""
    heads = {"own": OwnHead}
    for home in ("trl.experimental.ppo", "trl"):
        try:
            module = importlib.import_module(home)
        except ImportError:
            continue
        if "AutoModelForCausalLMWithValueHead" in dir(module):
            heads["trl"] = module.AutoModelForCausalLMWithValueHead.from_pretrained
            break
    return heads


HEADS = value_heads()


def with_head(kind, base):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return fix_generation_config(HEADS[kind](base), zoo.tokenizer())


def lora(**more):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more)


BASE = {
    "learning_rate": 3e-3, "response_length": 8, "stop_token": "eos", "temperature": 1.0, "num_ppo_epochs": 2,
    "num_mini_batches": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "total_episodes": 16,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "gradient_checkpointing": False,
    "dataloader_pin_memory": False, "disable_tqdm": True, "num_sample_generations": 0, "per_device_eval_batch_size": 4,
}


def arguments(folder, **config):
    return PPOConfig(output_dir=str(folder), **{**BASE, **config})


def ppo(folder, kind=PPOTrainer, **given):
    """A trainer of two updates of four optimizer steps; names that are no argument go to the trainer itself."""
    fields = PPOConfig.__dataclass_fields__
    parts = {
        "processing_class": tokenizer(), "model": None, "train_dataset": prompts(), "args": None,
        **{name: value for name, value in given.items() if name not in fields},
    }
    config = {name: value for name, value in given.items() if name in fields}
    if parts["model"] is None:
        parts["model"] = zoo.causal_lm(0, 2.0)
    if parts["args"] is None:
        parts["args"] = arguments(folder, **config)
    if "reward_model" not in parts and "reward_funcs" not in parts:
        parts["reward_funcs"] = zoo.vowels
    return kind(**parts)


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows_of(trainer, key="loss"):
    """The logged rows that have a key, without what is a time."""
    return [
        {name: value for name, value in row.items() if not any(time in name for time in TIMES)}
        for row in trainer.state.log_history if key in row
    ]


def all_finite(trainer):
    rows = rows_of(trainer)
    assert rows and all(math.isfinite(value) for row in rows for value in row.values()), rows
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())
    return rows


class Tap(PPOTrainer):
    """Notes the rollouts, and for each forward pass with gradient what went in and what an equal pass gives."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.passes, self.scores = [], [], []
        super().__init__(*args, **kwargs)

    def _rollout(self, rows, values=True):
        got = super()._rollout(rows, values)
        if values:
            self.rollouts.append(got[0])
            self.scores.append(got[1])
        return got

    def compute_loss(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            out = self.model(inputs.input_ids, inputs.attention_mask, inputs.mask.shape[1], self.args.temperature)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.passes.append((self.state.global_step, inputs, out, loss.item()))
        return loss


@pytest.fixture(scope="module", params=[(0, 1), (1, 4)], ids=["log each step", "log each update"])
def healthy(request, tmp_path_factory):
    seed, every = request.param
    folder = tmp_path_factory.mktemp("healthy")
    callback = RLDKCallback(output_dir=str(folder / "logs"), run_id="run", log_interval=0)
    trainer = ppo(
        folder, seed=seed, model=zoo.causal_lm(seed, 2.0), total_episodes=60 * 32, per_device_train_batch_size=16,
        learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=every, response_length=12, missing_eos_penalty=1.0,
        callbacks=[callback],
    )
    trainer.train()
    return trainer, callback, folder


class TestLearning:
    """Healthy runs of sixty updates, under the callback."""

    def test_the_reward_rises(self, healthy):
        scores = [row["objective/scores"] for row in rows_of(healthy[0], "objective/scores")]
        assert len(scores) == 60
        first, last = sum(scores[:8]) / 8, sum(scores[-8:]) / 8
        assert last > first + 0.4, (first, last)

    def test_it_raises_no_alert(self, healthy):
        assert [(alert.code, alert.step, alert.message) for alert in healthy[1].alerts] == []
        report = json.loads((healthy[2] / "logs" / "run_final_report.json").read_text())
        assert report["status"] == "completed"

    def test_the_record_has_canonical_names_and_nothing_is_corrected(self, healthy):
        trainer, _, folder = healthy
        df = rldk.ingest_runs(folder / "logs")
        df = df[df.phase == "train"]
        rows = rows_of(trainer, "objective/kl")
        for name, raw in {
            "kl_mean": "objective/kl", "reward_mean": "objective/scores", "clip_frac": "policy/clipfrac_avg",
            "entropy_mean": "policy/entropy_avg", "explained_variance": "val/explained_variance", "ratio_mean": "val/ratio",
            "length_mean": "completions/mean_length", "truncated_frac": "completions/clipped_ratio",
            "policy_loss": "loss/policy_avg", "value_loss": "loss/value_avg", "approx_kl": "policy/approxkl_avg",
        }.items():
            assert df[df.kl_mean.notna()][name].tolist() == pytest.approx([row[raw] for row in rows]), name
        assert {"loss", "grad_norm", "lr"} <= set(df.columns)
        manifest = json.loads((folder / "logs" / "run_run.json").read_text())
        assert "divided by" not in json.dumps(manifest)

    @pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
    def test_the_critic_learns(self, tmp_path, apart):
        """What the prompt alone decides is what a critic can know."""
        trainer = ppo(
            tmp_path, total_episodes=30 * 16, per_device_train_batch_size=8, vf_coef=1.0, learning_rate=1e-2, kl_coef=0.0,
            value_model=zoo.sequence_classifier(2) if apart else None, num_mini_batches=1, num_ppo_epochs=4,
            reward_funcs=lambda prompts, completions: [float("cat" in prompt) + float("dog" in prompt) for prompt in prompts],
        )
        trainer.train()
        explained = [row["val/explained_variance"] for row in rows_of(trainer, "val/explained_variance")]
        assert explained[0] < 0.1 and sum(explained[-5:]) / 5 > 0.6, explained


def in_ids(mask=False):
    text = tokenizer()
    rows = [{"input_ids": text(row["prompt"])["input_ids"]} for row in prompts()]
    if mask:  # padded on the left by its maker, as TRL's examples do
        width = max(len(row["input_ids"]) for row in rows)
        rows = [
            {"input_ids": [0] * (width - len(row["input_ids"])) + row["input_ids"],
             "attention_mask": [0] * (width - len(row["input_ids"])) + [1] * len(row["input_ids"])}
            for row in rows
        ]
    return datasets.Dataset.from_list(rows)


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def chatty(completions):
    return zoo.vowels([messages[0]["content"] for messages in completions])


CHATS = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": row["prompt"]}]} for row in prompts()])

VARIANTS = {
    "reward model": lambda: {"reward_model": zoo.sequence_classifier(1)},
    "reward model without score": lambda: {"reward_model": Bare(zoo.sequence_classifier(1))},
    "reward model with its own tokenizer": lambda: {
        "reward_model": zoo.sequence_classifier(1), "reward_processing_class": tokenizer(padding_side="right"),
    },
    "value model": lambda: {"value_model": zoo.sequence_classifier(2), "reward_model": zoo.sequence_classifier(1)},
    "value head": lambda: {"value_model": with_head("own", zoo.causal_lm(5))},
    "value head around the policy": lambda: around_the_policy("own"),
    "gpt2": lambda: {"model": gpt2()},
    "gpt2 with a value head": lambda: {"model": gpt2(), "value_model": with_head("own", gpt2(5))},
    "lora": lambda: {"peft_config": lora()},
    "lora and a value model": lambda: {"peft_config": lora(), "value_model": zoo.sequence_classifier(2)},
    "chat": lambda: {"reward_funcs": chatty, "train_dataset": CHATS, "processing_class": tokenizer(chat_template=TEMPLATE)},
    "ids": lambda: {"train_dataset": in_ids()},
    "ids and mask": lambda: {"train_dataset": in_ids(mask=True)},
    "query": lambda: {"train_dataset": prompts(column="query")},
    "k3": lambda: {"kl_estimator": "k3"},
    "whitened rewards": lambda: {"whiten_rewards": True},
    "missing eos": lambda: {"missing_eos_penalty": 1.0},
    "adaptive kl": lambda: {"kl_target": 0.5, "kl_adaptation": 0.5},
    "checkpointing": lambda: {"gradient_checkpointing": True, "value_model": zoo.sequence_classifier(2)},
    "checkpointing lora": lambda: {"gradient_checkpointing": True, "peft_config": lora()},
    "bf16": lambda: {"bf16": True},
    "a batch that does not divide": lambda: {"gradient_accumulation_steps": 3, "total_episodes": 24},
    "few at a time": lambda: {"local_rollout_forward_batch_size": 3},
    "fewer prompts than a batch": lambda: {"train_dataset": prompts(3)},
    "one prompt an update": lambda: {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_mini_batches": 1, "total_episodes": 3,
    },
    "a list of rows": lambda: {"train_dataset": list(prompts())},
    "own optimizer": lambda: {"optim": "sgd", "max_grad_norm": 0.0},
}
if "trl" in HEADS:
    VARIANTS |= {
        "trl's value head": lambda: {"value_model": with_head("trl", zoo.causal_lm(5))},
        "trl's value head around the policy": lambda: around_the_policy("trl"),
        "gpt2 with trl's value head": lambda: {"model": gpt2(), "value_model": with_head("trl", gpt2(5))},
    }


class Bare(torch.nn.Module):
    """A reward model that has logits and nothing else."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def around_the_policy(kind):
    whole = with_head(kind, zoo.causal_lm(0, 2.0))
    return {"model": whole.pretrained_model, "value_model": whole}


# Those that lean most on what differs between versions of transformers and TRL; all run on the newest.
ON_EVERY_VERSION = {
    "reward model", "value model", "value head", "gpt2", "lora", "chat", "ids and mask", "checkpointing", "checkpointing lora",
    "bf16", "trl's value head", "trl's value head around the policy", "gpt2 with trl's value head",
}


class TestVariants:
    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.matrix] if name in ON_EVERY_VERSION else []) for name in VARIANTS]
    )
    def test_it_trains_saves_and_resumes(self, name, tmp_path):
        """Each variant trains two updates; resumed in the middle of the second, it ends with the same weights."""
        config = {"save_strategy": "steps", "save_steps": 3, "seed": 1}
        trainer = ppo(tmp_path, **VARIANTS[name](), **config)
        before = weights(trainer)
        trainer.train()
        rows = all_finite(trainer)
        assert len(rows) == trainer.schedule.steps * trainer.args.num_total_batches == trainer.state.global_step
        after = weights(trainer)
        moved = [key for key in after if not torch.equal(before[key], after[key])]
        assert any("policy" in key or "value_model.pretrained_model" in key for key in moved)
        assert any(part in key for key in moved for part in ("value_head", "score", "v_head"))
        frozen = [key for key, p in trainer.model.named_parameters() if not p.requires_grad]
        assert not set(frozen) & set(moved)

        again = ppo(tmp_path, **VARIANTS[name](), **config)
        last = trainer.state.global_step // 3 * 3 - 3 * (trainer.state.global_step % 3 == 0)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{max(3, last)}"))
        assert again.state.global_step == trainer.state.global_step
        assert same(weights(again), after)
        assert rows_of(again) == rows_of(trainer)

    @pytest.mark.matrix
    def test_a_value_head_reads_the_state_under_the_language_models_head(self):
        """The states that a shared head reads are the backbone's last."""
        for model in (zoo.causal_lm(), gpt2()):
            model.eval()
            ids = torch.randint(4, 30, (2, 9))
            mask = torch.ones_like(ids)
            mask[0, :3] = 0
            _, _, shared = judge_tokens(model, ids, mask, 4, 1.0, with_hidden=True)
            apart = last_hidden_state(model, ids, mask)
            torch.testing.assert_close(shared, apart[:, -5:-1])


@pytest.mark.matrix
class TestSampling:
    @pytest.mark.parametrize("adapted", [False, True])
    def test_answers_are_drawn_from_the_distribution_that_is_trained(self, tmp_path, adapted):
        """Also where the model's own generation settings are for another one."""
        model = zoo.causal_lm(0, 2.0)
        own = {"top_k": 3, "top_p": 0.5, "temperature": 0.4, "repetition_penalty": 3.0, "do_sample": True, "max_length": 64}
        model.generation_config.update(**own)
        trainer = ppo(
            tmp_path, model=model, temperature=1.0, response_length=1, stop_token=None, peft_config=lora() if adapted else None,
        )
        count = 3000
        rollout, _, _ = trainer._rollout([{"prompt": "a cat"}] * count)
        drawn = torch.bincount(rollout.input_ids[:, -1], minlength=32) / count
        with torch.no_grad():
            logits = model(rollout.input_ids[:1, :-1]).logits[0, -1]
        p = torch.softmax(logits, 0)
        assert ((drawn - p).abs() < 4.5 * (p * (1 - p) / count).sqrt() + 1 / count).all()
        torch.testing.assert_close(rollout.logprobs[:, 0], p.log()[rollout.input_ids[:, -1]])
        left = trainer.model.policy.generation_config
        assert {name: getattr(left, name) for name in own} == own, "the model keeps its settings"

    def test_the_temperature_is_in_the_probabilities(self, tmp_path):
        trainer = ppo(tmp_path, temperature=0.5, response_length=1, stop_token=None)
        rollout, _, _ = trainer._rollout([{"prompt": "a cat"}] * 4)
        with torch.no_grad():
            logits = trainer.model.policy(rollout.input_ids[:1, :-1]).logits[0, -1]
        torch.testing.assert_close(rollout.logprobs[:, 0], torch.log_softmax(logits / 0.5, 0)[rollout.input_ids[:, -1]])

    def test_without_a_stop_token_all_run_to_their_length(self, tmp_path):
        trainer = ppo(tmp_path, Tap, stop_token=None, model=zoo.causal_lm(0, 4.0), missing_eos_penalty=5.0)
        trainer.train()
        for rollout, scores in zip(trainer.rollouts, trainer.scores, strict=True):
            assert rollout.mask.all() and rollout.mask.shape == (8, 8)
            answers = rollout.input_ids[:, -8:]
            after = (answers == EOS).cumsum(1).bool()[:, :-1]
            assert after.sum() > 20 and (answers[:, 1:][after] != 0).float().mean() > 0.7, "nothing is padded after EOS"
            has = (answers == EOS).any(dim=1)
            torch.testing.assert_close(rollout.scores, torch.where(has, scores.total, scores.total - 5.0))
        assert all("completions/clipped_ratio" not in row for row in rows_of(trainer))
        assert {row["completions/min_length"] for row in rows_of(trainer, "completions/min_length")} == {8}

    def test_any_token_can_stop(self, tmp_path):
        stop = zoo.tokenizer().convert_tokens_to_ids("a")
        trainer = ppo(tmp_path, Tap, stop_token=None, stop_token_id=stop, missing_eos_penalty=5.0, response_length=20)
        trainer.train()
        row = rows_of(trainer, "completions/clipped_ratio")[0]
        rollout, scores = trainer.rollouts[0], trainer.scores[0]
        answers, width = rollout.input_ids[:, -rollout.mask.shape[1] :], rollout.mask.shape[1]
        lengths = [ids.index(stop) + 1 if stop in ids else width for ids in answers.tolist()]
        assert rollout.mask.sum(dim=1).tolist() == lengths
        stopped = [stop in ids for ids in answers.tolist()]
        assert any(stopped) and row["completions/clipped_ratio"] == pytest.approx(1 - sum(stopped) / 8)
        has_eos = torch.tensor([EOS in ids[:n] for ids, n in zip(answers.tolist(), lengths, strict=True)])
        torch.testing.assert_close(rollout.scores, torch.where(has_eos, scores.total, scores.total - 5.0))

    def test_padding_with_the_eos_token_is_the_same_training(self, tmp_path):
        plain, padded = ppo(tmp_path / "a", Tap), ppo(tmp_path / "b", Tap, processing_class=tokenizer(pad_token="</s>"))
        assert padded.pad_token_id == padded.eos_token_id != plain.pad_token_id
        plain.train()
        padded.train()
        for a, b in zip(plain.rollouts, padded.rollouts, strict=True):
            assert torch.equal(a.attention_mask, b.attention_mask)
            assert torch.equal(a.input_ids * a.attention_mask, b.input_ids * b.attention_mask)
            assert not a.attention_mask.all()
        assert same(weights(plain), weights(padded)) and rows_of(plain) == rows_of(padded)


class TestRewards:
    def test_functions_are_called_as_grpo_calls_them(self, tmp_path):
        calls = []

        def one(prompts, completions, completion_ids, answer, trainer_state, **rest):
            calls.append((prompts, completions, completion_ids, answer, trainer_state.global_step, rest))
            return [float(len(text)) for text in completions]

        def two(completions):
            return torch.tensor([0.5] * len(completions))

        data = prompts(answer=[f"answer {i}" for i in range(16)], number=list(range(16)))
        trainer = ppo(tmp_path, Tap, reward_funcs=[one, two], train_dataset=data)
        trainer.train()
        asked, completions, ids, answers, step, rest = calls[1]
        number = dict(zip(data["prompt"], data["number"], strict=True))
        assert [f"answer {number[prompt]}" for prompt in asked] == answers
        assert rest == {"number": [number[prompt] for prompt in asked]}
        assert step == 4 and len(calls) == 2
        rollout = trainer.rollouts[1]
        width = rollout.mask.shape[1]
        for row in range(8):
            tokens = rollout.input_ids[row, -width:][rollout.mask[row]].tolist()
            assert ids[row] == tokens and completions[row] == tokenizer().decode(tokens, skip_special_tokens=True)
            assert asked[row] == tokenizer().decode(rollout.input_ids[row, :-width], skip_special_tokens=True)
        assert rollout.scores.tolist() == pytest.approx([len(text) + 0.5 for text in completions])

    def test_chats_are_given_as_messages(self, tmp_path):
        calls = []

        def judge(prompts, completions, messages):
            calls.append((prompts, completions, messages))
            return [float(len(text[0]["content"])) for text in completions]

        trainer = ppo(tmp_path, Tap, reward_funcs=judge, train_dataset=CHATS, processing_class=tokenizer(chat_template=TEMPLATE))
        trainer.train()
        asked, completions, messages = calls[0]
        assert asked == messages and asked[0][0]["role"] == "user"
        assert completions[0][0]["role"] == "assistant"
        text = tokenizer().decode(trainer.rollouts[0].input_ids[0, :-8], skip_special_tokens=True)
        assert text.endswith(asked[0][0]["content"] + " "), "through the chat template"

    def test_weights_and_functions_without_an_opinion(self, tmp_path):
        given = []

        def rare(completions):
            given.append([float(i) if i % 3 == 0 else None for i in range(len(completions))])
            return given[-1]

        def always(completions):
            return [2.0] * len(completions)

        def never(completions):
            return [None] * len(completions)

        trainer = ppo(tmp_path, Tap, reward_funcs=[rare, always, never, lambda completions: [1.0] * len(completions)],
                      reward_weights=[0.5, 3.0, 7.0, 1.0])
        trainer.train()
        expected = [(0.5 * i if i % 3 == 0 else 0.0) + 6.0 + 1.0 for i in range(8)]
        assert trainer.rollouts[0].scores.tolist() == pytest.approx(expected)
        row = rows_of(trainer)[0]
        assert row["objective/scores"] == pytest.approx(sum(expected) / 8)
        assert row["rewards/rare/mean"] == pytest.approx(3.0) and row["rewards/rare/std"] == pytest.approx(3.0)
        assert row["rewards/always/mean"] == 2.0 and row["rewards/<lambda>/mean"] == 1.0
        assert not any("never" in name for name in row)

    def test_a_reward_model_scores_the_last_token(self, tmp_path):
        classifier = zoo.sequence_classifier(1)
        trainer = ppo(tmp_path, Tap, reward_model=classifier)
        trainer.train()
        rollout = trainer.rollouts[0]
        for row in range(8):
            ids = rollout.input_ids[row][rollout.attention_mask[row].bool()]
            with torch.no_grad():
                alone = classifier(ids[None]).logits[0, 0]
            torch.testing.assert_close(rollout.scores[row], alone, rtol=1e-4, atol=1e-5)
        assert not any(p.requires_grad for p in classifier.parameters())

    def test_a_reward_model_reads_chats_by_its_own_template(self, tmp_path):
        own = tokenizer(chat_template="{% for m in messages %}{{ m['role'][0] }}.{{ m['content'] }}{% endfor %}")
        classifier = zoo.sequence_classifier(1)
        trainer = ppo(
            tmp_path, Tap, reward_model=classifier, reward_processing_class=own, train_dataset=CHATS,
            processing_class=tokenizer(chat_template=TEMPLATE),
        )
        trainer.train()
        rollout, text = trainer.rollouts[0], zoo.tokenizer()
        for row in range(8):
            length = rollout.mask.shape[1]
            prompt = text.decode(rollout.input_ids[row, :-length], skip_special_tokens=True).strip()
            answer = text.decode(rollout.input_ids[row, -length:], skip_special_tokens=True)
            with torch.no_grad():
                alone = classifier(**text(f"u.{prompt}a.{answer}", return_tensors="pt")).logits[0, 0]
            torch.testing.assert_close(rollout.scores[row], alone, rtol=1e-4, atol=1e-5)

    def test_a_score_that_is_not_finite_later_in_the_run(self, tmp_path, caplog):
        """A warning; the response is left out and the training goes on finite."""
        calls = itertools.count()
        bad = {1: math.nan, 2: math.inf, 3: None}

        def judge(completions):
            scores = [float(len(text)) for text in completions]
            scores[5] = bad.get(next(calls), 1.0)
            return scores

        trainer = ppo(tmp_path, Tap, reward_funcs=judge, total_episodes=8 * 5)
        with caplog.at_level(logging.WARNING, logger="rldk"):
            trainer.train()
        assert len([r for r in caplog.records if "reward_funcs (judge) gave no finite score for 1 of 8" in r.message]) == 3
        for update, rollout in enumerate(trainer.rollouts):
            assert rollout.scores.isnan().tolist() == [row == 5 and update in bad for row in range(8)]
        mine = [passes for passes in trainer.passes if 4 <= passes[0] < 8]
        spoiled = trainer.rollouts[1].input_ids[5]
        for _, inputs, _, _ in mine:
            for row in range(len(inputs.input_ids)):
                assert inputs.mask[row].any() != torch.equal(inputs.input_ids[row], spoiled)
        assert all(tensor.isfinite().all() for tensor in weights(trainer).values())
        assert all(math.isfinite(row["loss"]) and math.isfinite(row["loss/policy_avg"]) for row in rows_of(trainer))
        assert all(math.isfinite(row["objective/scores"]) for row in rows_of(trainer, "objective/scores"))


@pytest.mark.matrix
class TestAdapters:
    def test_the_base_model_stays_and_is_the_reference(self, tmp_path):
        base = zoo.causal_lm(0, 2.0)
        twin = copy.deepcopy(base).eval()
        trainer = ppo(tmp_path, Tap, model=base, peft_config=lora(), learning_rate=1e-2, save_strategy="steps", save_steps=8)
        assert trainer.ref_model is None
        trainer.train()
        after = {name.replace(".base_layer", ""): tensor for name, tensor in trainer.model.policy.base_model.model.named_parameters()}
        assert all(torch.equal(after[name], tensor) for name, tensor in twin.named_parameters())
        assert any("lora_B" in name and tensor.any() for name, tensor in after.items())
        for rollout in trainer.rollouts:
            with torch.no_grad():
                logprobs = judge_tokens(twin, rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1], 1.0)[0]
            torch.testing.assert_close(rollout.ref_logprobs, logprobs)
        second = trainer.rollouts[1]
        assert not torch.allclose(second.logprobs[second.mask], second.ref_logprobs[second.mask])
        assert all(p.requires_grad for name, p in trainer.model.policy.named_parameters() if "lora" in name)
        saved = peft.PeftModel.from_pretrained(twin, tmp_path / "checkpoint-8")
        mine, theirs = (peft.get_peft_model_state_dict(model) for model in (trainer.model.policy, saved))
        assert mine and same(mine, theirs)

    def test_one_adapter_is_the_reference_and_another_is_trained(self, tmp_path):
        base = zoo.causal_lm(0, 2.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = peft.get_peft_model(base, lora(init_lora_weights=False), adapter_name="old")
            model.add_adapter("new", lora(init_lora_weights=False))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = ppo(tmp_path, Tap, model=model, model_adapter_name="new", ref_adapter_name="old")
        trainer.train()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed and all("lora" in name and ".new." in name for name in changed)
        rollout = trainer.rollouts[1]
        model.set_adapter("old")
        with torch.no_grad():
            logprobs = judge_tokens(model.eval(), rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1], 1.0)[0]
        torch.testing.assert_close(rollout.ref_logprobs, logprobs)

    def test_names_of_adapters_that_are_wrong(self, tmp_path):
        model = peft.get_peft_model(zoo.causal_lm(), lora())
        for config, said in (
            ({"ref_adapter_name": "old"}, "ref_adapter_name='old', but model has no adapter of that name .it has default"),
            ({"model_adapter_name": "old"}, "model_adapter_name='old'"),
            ({"ref_adapter_name": "default"}, "is the adapter that is trained"),
        ):
            with pytest.raises(ConfigurationError, match=said):
                ppo(tmp_path, model=model, **config)
        with pytest.raises(ConfigurationError, match="model already has an adapter"):
            ppo(tmp_path, model=model, peft_config=lora())
        with pytest.raises(ConfigurationError, match="it has none"):
            ppo(tmp_path, ref_adapter_name="old")
        model.requires_grad_(False)
        with pytest.raises(ConfigurationError, match="model has no parameter that is trained"):
            ppo(tmp_path, model=model)


@pytest.mark.matrix
class TestSteps:
    def one_update(self, folder, per_device, accumulation, **more):
        trainer = ppo(
            folder, Tap, per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation, optim="sgd",
            learning_rate=0.5, total_episodes=8, num_mini_batches=1, lr_scheduler_type="constant", max_grad_norm=0.0, **more,
        )
        trainer.train()
        return trainer

    @pytest.mark.parametrize(("per_device", "accumulation"), [(4, 2), (2, 4), (1, 8)])
    def test_accumulation_changes_nothing(self, tmp_path, per_device, accumulation):
        whole = self.one_update(tmp_path / "whole", 8, 1)
        parts = self.one_update(tmp_path / "parts", per_device, accumulation)
        assert torch.equal(whole.rollouts[0].input_ids, parts.rollouts[0].input_ids)
        assert len(parts.passes) == accumulation * len(whole.passes) == 2 * accumulation
        before = weights(ppo(tmp_path / "before"))
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-5, atol=1e-6)
            assert not torch.equal(before[name], tensor), name
        for a, b in zip(rows_of(whole), rows_of(parts), strict=True):
            for name in set(a) - {"val/ratio_var"}:
                assert b[name] == pytest.approx(a[name], abs=2e-5), name

    def test_mini_batches_are_optimizer_steps(self, tmp_path):
        one = ppo(tmp_path / "one", num_mini_batches=1, total_episodes=8)
        two = ppo(tmp_path / "two", num_mini_batches=2, total_episodes=8)
        four = ppo(tmp_path / "four", num_mini_batches=4, num_ppo_epochs=3, total_episodes=8)
        for trainer, steps in ((one, 2), (two, 4), (four, 12)):
            trainer.train()
            assert trainer.state.global_step == trainer.state.max_steps == steps
            assert rows_of(trainer)[-1]["episode"] == 8

    def test_max_steps_may_end_in_the_middle_of_an_update(self, tmp_path):
        trainer = ppo(tmp_path, total_episodes=None, max_steps=6)
        trainer.train()
        assert trainer.state.global_step == 6 and trainer.update == 2

    def test_epochs_are_passes_over_the_prompts(self, tmp_path):
        trainer = ppo(tmp_path, Tap, total_episodes=None, num_train_epochs=2)
        trainer.train()
        assert trainer.state.global_step == 2 * 2 * 4 and trainer.state.epoch == pytest.approx(2.0)
        decoded = [tokenizer().batch_decode(rollout.input_ids[:, :-8], skip_special_tokens=True) for rollout in trainer.rollouts]
        asked = [[text.strip() for text in batch] for batch in decoded]
        everything = sorted(prompts()["prompt"])
        assert sorted(asked[0] + asked[1]) == sorted(asked[2] + asked[3]) == everything
        assert asked[0] + asked[1] != asked[2] + asked[3], "in a new order"

    def test_gradients_are_clipped(self, tmp_path):
        norms = []

        class Norm(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())

        trainer = ppo(tmp_path, max_grad_norm=0.05, callbacks=[Norm()])
        trainer.train()
        assert len(norms) == 8 and all(norm <= 0.0501 for norm in norms)
        assert all(row["grad_norm"] > 0.06 for row in rows_of(trainer)), "logged before it is clipped"

    def test_every_hook_fires_in_order(self, tmp_path):
        names = [name for name in dir(TrainerCallback) if name.startswith("on_")]
        fired = []

        def note(name):
            return lambda self, args, state, control, **kwargs: fired.append((name, state.global_step))

        recorder = type("Recorder", (TrainerCallback,), {name: note(name) for name in names})()
        trainer = ppo(
            tmp_path, callbacks=[recorder], per_device_train_batch_size=2, gradient_accumulation_steps=4, total_episodes=8,
            num_ppo_epochs=1, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, eval_dataset=prompts(5),
            train_dataset=prompts(8),
        )
        trainer.train()
        step = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
        evaluation = ["on_prediction_step", "on_prediction_step", "on_log", "on_evaluate"]
        expected = [
            "on_init_end", "on_train_begin", "on_epoch_begin", *step, *step, *evaluation, "on_save",
            "on_epoch_end", "on_log", "on_train_end",
        ]
        assert [name for name, _ in fired] == expected
        assert [at for name, at in fired if name == "on_step_end"] == [1, 2]

    def test_it_stops_when_asked(self, tmp_path):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 3

        trainer = ppo(tmp_path, callbacks=[Stop()])
        trainer.train()
        assert trainer.state.global_step == 3

    def test_the_adaptive_coefficient_follows_the_kl(self, tmp_path):
        trainer = ppo(tmp_path, kl_target=0.05, kl_adaptation=1.0, kl_coef=0.1, total_episodes=8 * 6, learning_rate=1e-2)
        trainer.train()
        rows = rows_of(trainer, "objective/kl_coef")
        coefficient = 0.1
        for row in rows:
            assert row["objective/kl_coef"] == pytest.approx(coefficient)
            assert row["objective/non_score_reward"] == pytest.approx(-coefficient * row["objective/kl"])
            coefficient *= 1 + min(max(row["objective/kl"] / 0.05 - 1, -0.2), 0.2)
        assert len(rows) == 6 and trainer.kl_coef == pytest.approx(coefficient)
        assert rows[1]["objective/kl_coef"] < 0.1 < rows[-1]["objective/kl_coef"], "down at a KL of 0, up after"


class TestLogs:
    @pytest.mark.parametrize(("every", "config"), [
        (1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
        (4, {"num_mini_batches": 4}),
        (8, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "value_model": "apart"}),
    ])
    def test_averages_are_of_what_was_computed(self, tmp_path, every, config):
        if "value_model" in config:
            config = {**config, "value_model": zoo.sequence_classifier(2)}
        trainer = ppo(tmp_path, Tap, logging_steps=every, learning_rate=1e-2, **config)
        trainer.train()
        args = trainer.args
        rows = rows_of(trainer)
        steps = trainer.state.global_step
        assert len(rows) == steps // every
        assert any(not inputs.mask.all() for _, inputs, _, _ in trainer.passes), "with padding"
        for row in rows:
            sums = dict.fromkeys(("policy", "clip", "ratio", "kl", "entropy", "value", "value_clip", "tokens", "states"), 0.0)
            ratios, loss = [], []
            for at, inputs, out, got in trainer.passes:
                if not row["step"] - every <= at < row["step"]:
                    continue
                mask, states = inputs.mask, inputs.value_mask
                ratio = (out.logprobs - inputs.logprobs).exp()[mask].double()
                advantages = inputs.advantages[mask].double()
                held = ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
                sums["policy"] += torch.maximum(-advantages * ratio, -advantages * held).sum().item()
                sums["clip"] += (-advantages * held > -advantages * ratio).sum().item()
                sums["ratio"] += ratio.sum().item()
                sums["kl"] += 0.5 * ratio.log().square().sum().item()
                sums["entropy"] += out.entropy[mask].double().sum().item()
                values, old, returns = (t[states].double() for t in (out.values, inputs.values, inputs.returns))
                near = old + (values - old).clamp(-args.cliprange_value, args.cliprange_value)
                worse = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
                sums["value"] += 0.5 * worse.sum().item()
                sums["value_clip"] += ((near - returns) ** 2 > (values - returns) ** 2).sum().item()
                sums["tokens"] += mask.sum().item()
                sums["states"] += states.sum().item()
                ratios.append(ratio.mean().item())
                loss.append(got / trainer.schedule.accumulation)
            tokens, states = sums["tokens"], sums["states"]
            for name, expected in {
                "loss/policy_avg": sums["policy"] / tokens, "policy/clipfrac_avg": sums["clip"] / tokens,
                "val/ratio": sums["ratio"] / tokens, "policy/approxkl_avg": sums["kl"] / tokens,
                "policy/entropy_avg": sums["entropy"] / tokens, "loss/value_avg": sums["value"] / states,
                "val/clipfrac_avg": sums["value_clip"] / states, "loss": sum(loss) / every,
            }.items():
                assert row[name] == pytest.approx(expected, rel=1e-4, abs=6e-5), name
            if len(ratios) > 1:
                assert row["val/ratio_var"] == pytest.approx(torch.tensor(ratios).var().item(), rel=1e-3, abs=1e-7)
        if every == 1:  # with accumulation, a step's loss is the sum of its means
            row = rows[0]
            assert row["loss"] == pytest.approx(row["loss/policy_avg"] + args.vf_coef * row["loss/value_avg"], abs=1e-4)

    def test_what_is_logged_of_a_rollout(self, tmp_path):
        trainer = ppo(tmp_path, Tap, missing_eos_penalty=1.0)
        trainer.train()
        rows = rows_of(trainer, "objective/kl")
        assert [row["step"] for row in rows] == [1, 5], "with the first log after it"
        total = 0
        for row, rollout in zip(rows, trainer.rollouts, strict=True):
            mask, lengths = rollout.mask, rollout.mask.sum(dim=1)
            kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, 0.0).sum(dim=1).mean().item()
            entropy = -torch.where(mask, rollout.logprobs, 0.0).sum(dim=1).mean().item()
            answers = rollout.input_ids[:, -mask.shape[1] :]
            ends = ((answers == EOS) & mask).sum().item()
            total += int(rollout.attention_mask.sum())
            for name, expected in {
                "objective/kl": kl, "objective/entropy": entropy, "objective/scores": rollout.scores.mean().item(),
                "objective/non_score_reward": -0.05 * kl, "objective/rlhf_reward": rollout.scores.mean().item() - 0.05 * kl,
                "completions/mean_length": lengths.float().mean().item(), "completions/min_length": lengths.min().item(),
                "completions/max_length": lengths.max().item(), "completions/clipped_ratio": 1 - ends / 8,
                "val/num_eos_tokens": ends, "num_tokens": total,
            }.items():
                assert row[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        assert rows[0]["objective/kl"] == 0.0 and rows[1]["objective/kl"] != 0.0
        assert 0 < ends < 8, "some have EOS"

    def test_the_first_pass_is_the_policy_that_sampled(self, tmp_path):
        trainer = ppo(tmp_path, Tap, learning_rate=1e-9, reward_model=zoo.sequence_classifier(1), temperature=0.7)
        trainer.train()
        for row in rows_of(trainer):
            assert row["val/ratio"] == pytest.approx(1, abs=1e-5) and row["policy/clipfrac_avg"] == 0
            assert row["policy/approxkl_avg"] < 1e-10

    def test_completions_are_shown(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO, logger="rldk"):
            ppo(tmp_path, num_sample_generations=2).train()
        shown = [record.message for record in caplog.records if record.message.startswith("update ")]
        assert [text.split(",")[0] for text in shown] == ["update 1"] * 3 + ["update 2"] * 3
        assert "'the " in shown[0]

    def test_the_callback_changes_nothing(self, tmp_path):
        plain = ppo(tmp_path / "plain")
        watched = ppo(tmp_path / "watched", callbacks=[RLDKCallback(output_dir="logs", log_interval=1)])
        plain.train()
        watched.train()
        assert same(weights(plain), weights(watched)) and rows_of(plain) == rows_of(watched)


@pytest.mark.matrix
class TestEvaluation:
    def evaluated(self, folder, **more):
        return ppo(folder, eval_strategy="steps", eval_steps=3, eval_dataset=prompts(7), **more)

    def test_it_leaves_the_training_alone(self, tmp_path):
        plain, evaluated = ppo(tmp_path / "plain"), self.evaluated(tmp_path / "evaluated")
        plain.train()
        evaluated.train()
        assert same(weights(plain), weights(evaluated)) and rows_of(plain) == rows_of(evaluated)
        rows = rows_of(evaluated, "eval_objective/scores")
        assert [row["step"] for row in rows[:2]] == [3, 6]
        assert {"eval_objective/kl", "eval_completions/mean_length", "eval_rewards/vowels/mean"} <= set(rows[0])
        assert "eval_loss" not in rows[0] and "eval_tokens" not in rows[0]

    def test_it_is_a_mean_over_all_answers_and_repeats(self, tmp_path):
        seen = []

        def judge(completions):
            seen.append([float(len(text)) for text in completions])
            return seen[-1]

        trainer = ppo(tmp_path, eval_dataset=prompts(7), reward_funcs=judge)
        first, second = trainer.evaluate(), trainer.evaluate()
        assert [len(batch) for batch in seen] == [4, 3] * 2, "batches of two sizes"
        answers = seen[0] + seen[1]
        assert first["eval_objective/scores"] == pytest.approx(sum(answers) / 7)
        assert first["eval_rewards/judge/mean"] == first["eval_objective/scores"]
        assert first["eval_completions/max_length"] >= max(answers)
        assert {k: v for k, v in first.items() if "per_second" not in k and "runtime" not in k} == {
            k: v for k, v in second.items() if "per_second" not in k and "runtime" not in k
        }

    def test_several_sets(self, tmp_path):
        trainer = self.evaluated(tmp_path, eval_on_start=True)
        trainer.eval_dataset = {"a": prompts(3), "b": prompts(5)}
        metrics = trainer.evaluate()
        assert {"eval_a_objective/scores", "eval_b_objective/scores"} <= set(metrics)

    @pytest.mark.filterwarnings("ignore:mtime may not be reliable on this filesystem:UserWarning")  # transformers 4's
    def test_the_best_model_is_kept(self, tmp_path):
        trainer = self.evaluated(
            tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_objective/scores", greater_is_better=True,
            save_strategy="steps", save_steps=3, save_total_limit=1, total_episodes=8 * 4, learning_rate=2e-2,
            value_model=zoo.sequence_classifier(2),
        )
        trainer.train()
        scores = {row["step"]: row["eval_objective/scores"] for row in rows_of(trainer, "eval_objective/scores")}
        best = max(scores, key=scores.get)
        assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}") and len(set(scores.values())) > 1
        left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
        assert f"checkpoint-{best}" in left and len(left) <= 2
        kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}")
        assert same(dict(kept.named_parameters()), dict(trainer.model.policy.named_parameters()))


@pytest.mark.matrix
class TestSavedModel:
    @pytest.mark.parametrize("make", [lambda: zoo.causal_lm(0, 2.0), gpt2], ids=["llama", "gpt2"])
    def test_the_policy_is_a_model_of_its_own(self, tmp_path, make):
        trainer = ppo(tmp_path / "run", model=make())
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert same(dict(loaded.named_parameters()), dict(trainer.model.policy.named_parameters()))
        assert (tmp_path / "saved" / "tokenizer.json").is_file()
        again = ppo(tmp_path / "again", model=str(tmp_path / "saved"))
        assert same(dict(again.model.policy.named_parameters()), dict(loaded.named_parameters()))


LONG = {
    "total_episodes": 8 * 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "kl_target": 0.05,
    "missing_eos_penalty": 0.5,
}
KINDS = {
    "shared": dict,
    "apart": lambda: {"value_model": zoo.sequence_classifier(2)},
    "lora": lambda: {"peft_config": lora()},
}


@pytest.fixture(scope="module", params=["apart", *(pytest.param(kind, marks=pytest.mark.matrix) for kind in ("shared", "lora"))])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = ppo(folder, **KINDS[request.param](), **LONG)
    trainer.train()
    return request.param, folder, trainer


class TestResume:
    @pytest.mark.parametrize("step", [4, 6, 8, 10], ids=["end of an update", "middle", "end of an epoch", "in the second epoch"])
    def test_bit_for_bit(self, whole, step, tmp_path):
        kind, folder, first = whole
        trainer = ppo(tmp_path, **KINDS[kind](), **LONG)
        torch.manual_seed(999)  # what the process did before must not matter
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert same(weights(trainer), weights(first))
        # transformers' own `loss` is an average that begins anew at a checkpoint within a log window
        cut = [step // 3 * 3 + 3] if step % 3 else []
        drop = [{k: v for k, v in row.items() if not (k == "loss" and row["step"] in cut)} for row in rows_of(first)]
        assert [{k: v for k, v in row.items() if not (k == "loss" and row["step"] in cut)} for row in rows_of(trainer)] == drop
        assert (trainer.kl_coef, trainer.episode, trainer.update) == (first.kl_coef, first.episode, first.update)
        assert trainer.state.num_input_tokens_seen == first.state.num_input_tokens_seen > 0
        assert len({row["objective/kl_coef"] for row in rows_of(trainer, "objective/kl_coef")}) > 1

    def test_a_checkpoint_has_the_rollout_only_in_the_middle_of_an_update(self, whole):
        for step in (2, 4, 6, 8):
            assert (whole[1] / f"checkpoint-{step}" / "ppo_state" / "rollout_0.safetensors").exists() == (step % 4 == 2)

    def test_without_the_rollout_a_new_one_begins(self, whole, tmp_path):
        kind, folder, _ = whole
        folder = copied(folder / "checkpoint-6", tmp_path / "checkpoint-6")
        (folder / "ppo_state" / "rollout_0.safetensors").unlink()
        trainer = ppo(tmp_path, Tap, **KINDS[kind](), **LONG)
        trainer.train(resume_from_checkpoint=str(folder))
        assert trainer.state.global_step == 16 and len(trainer.rollouts) == 3
        assert [at for at, *_ in trainer.passes] == list(range(6, 16))
        assert all(tensor.isfinite().all() for tensor in weights(trainer).values())

    def test_without_ppos_state(self, whole, tmp_path, caplog):
        kind, folder, _ = whole
        folder = copied(folder / "checkpoint-6", tmp_path / "checkpoint-6")
        for path in (folder / "ppo_state").iterdir():
            path.unlink()
        trainer = ppo(tmp_path, Tap, **KINDS[kind](), **LONG)
        with caplog.at_level(logging.WARNING, logger="rldk"):
            trainer.train(resume_from_checkpoint=str(folder))
        assert "has no state of PPO for process 0: a new rollout begins at once" in caplog.text
        assert trainer.state.global_step == 16 and len(trainer.rollouts) == 3
        # Eight prompts an update of four steps; the second update, broken off, is begun anew.
        counted = {row["step"]: row["episode"] for row in trainer.state.log_history if "grad_norm" in row}
        assert {step: counted[step] for step in (9, 12, 15)} == {9: 24, 12: 24, 15: 32}

    def test_a_fixed_kl_coefficient_is_that_of_the_arguments(self, whole, tmp_path):
        kind, folder, _ = whole
        trainer = ppo(tmp_path, **{**KINDS[kind](), **LONG, "kl_coef": 0.3, "kl_target": None})
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
        assert trainer.kl_coef == 0.3

    def test_other_batch_sizes_are_refused(self, whole, tmp_path):
        kind, folder, _ = whole
        trainer = ppo(tmp_path, **KINDS[kind](), **{**LONG, "num_mini_batches": 4})
        with pytest.raises(ConfigurationError, match="the checkpoint was made with other batch sizes"):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))

    def test_another_kind_of_critic_is_refused(self, whole, tmp_path):
        kind, folder, _ = whole
        other = {"value_model": zoo.sequence_classifier(2)} if kind != "apart" else {}
        base = KINDS[kind]() if kind == "lora" else {}
        trainer = ppo(tmp_path, **base, **other, **LONG)
        with pytest.raises(ConfigurationError, match="holds another value model than this run has"):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))

    @pytest.mark.matrix
    def test_a_checkpoint_of_something_else_is_refused(self, tmp_path):
        zoo.trainer("sft", tmp_path / "sft", max_steps=3).train()
        trainer = ppo(tmp_path / "ppo")
        with pytest.raises(ConfigurationError, match=r"checkpoint-3 has no value.safetensors: it is not a checkpoint of rldk.ppo"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "sft" / "checkpoint-3"))


def copied(source, target):
    target.mkdir()
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            place.write_bytes(path.read_bytes())
    return target


class AsyncJudge:
    async def __call__(self, completions):
        return [0.0] * len(completions)


async def later(completions):
    return [0.0] * len(completions)


MODEL = zoo.causal_lm(0, 2.0)
CLASSIFIER = zoo.sequence_classifier(1)


def on_the_backbone_of(model):
    other = zoo.sequence_classifier(5)
    other.model = model.model
    return other


# what is given, and what the error says
WRONG = {
    "no eos": ({"processing_class": tokenizer(eos_token=None)}, "processing_class has no eos_token"),
    "the policy as reference": ({"model": MODEL, "ref_model": MODEL}, "ref_model is the same object as model"),
    "two sources of reward": ({"reward_model": CLASSIFIER, "reward_funcs": zoo.vowels}, "reward_model or reward_funcs"),
    "a reference on the policy's weights": ({"model": MODEL, "ref_model": on_the_backbone_of(MODEL)}, "ref_model shares trainable weights with model"),
    "a reward on the policy's weights": ({"model": MODEL, "reward_model": on_the_backbone_of(MODEL)}, "reward_model shares trainable weights with model"),
    "a reward on the critic's weights": ({"reward_model": on_the_backbone_of(CLASSIFIER), "value_model": CLASSIFIER}, "reward_model shares trainable weights with value_model"),
    "no reward": ({"reward_funcs": None}, "reward_model or reward_funcs"),
    "the reward model as value model": ({"reward_model": CLASSIFIER, "value_model": CLASSIFIER}, "value_model is the same object as reward_model"),
    "not callable": ({"reward_funcs": [zoo.vowels, 3]}, r"reward_funcs\[1\] is not a function: 3"),
    "a model as function": ({"reward_funcs": CLASSIFIER}, "a model goes to reward_model"),
    "no functions": ({"reward_funcs": []}, "reward_funcs is empty"),
    "a coroutine": ({"reward_funcs": later}, "is a coroutine"),
    "a coroutine in disguise": ({"reward_funcs": AsyncJudge()}, "is a coroutine"),
    "too many weights": ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 reward_funcs"),
    "weights of nothing": ({"reward_model": CLASSIFIER, "reward_weights": [1.0]}, "reward_weights are weights of reward_funcs"),
    "no dataset": ({"train_dataset": None}, "train_dataset is required"),
    "an empty dataset": ({"train_dataset": prompts(0)}, "train_dataset is empty"),
    "no prompt column": ({"train_dataset": prompts(column="question")}, r"train_dataset has no prompts: none of input_ids, prompt, .*\['question'\]"),
    "an endless dataset": ({"train_dataset": iter(())}, "train_dataset has no length"),
    "columns": ({"train_dataset": {"prompt": ["a"]}}, "train_dataset is a dict of prompt: give a dataset of rows"),
    "an endless dataset to evaluate": ({"eval_dataset": iter(())}, "eval_dataset has no length"),
    "the best by no loss": ({"eval_dataset": prompts(), "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}, "metric_for_best_model is 'loss'"),
    "a reward tokenizer that cannot pad": ({"reward_model": CLASSIFIER, "reward_processing_class": tokenizer(pad_token=None)}, "reward_processing_class has no pad_token"),
    "rows of text": ({"train_dataset": ["a cat"]}, "a row of train_dataset is a mapping"),
    "an empty prompt": ({"train_dataset": [{"prompt": ""}]}, "train_dataset: a prompt without a token"),
    "a number as prompt": ({"train_dataset": [{"prompt": 3}]}, "train_dataset: a prompt is text, a list of chat messages or"),
    "chat without template": ({"train_dataset": CHATS}, "train_dataset: .*the tokenizer has no chat_template"),
    "no prompts to evaluate": ({"eval_dataset": prompts(column="question")}, "eval_dataset has no prompts"),
    "no prompts in one of two": ({"eval_dataset": {"a": prompts(), "b": prompts(column="x")}}, r"eval_dataset\['b'\] has no prompts"),
    "evaluation of nothing": ({"eval_strategy": "steps", "eval_steps": 2}, "eval_strategy is .*no eval_dataset"),
    "mini-batches that do not divide": ({"num_mini_batches": 3}, "num_mini_batches=3 does not divide the 8 prompts"),
    "other arguments": ({"args": TrainingArguments("out", use_cpu=True, report_to="none")}, "args must be rldk.ppo.PPOConfig, not transformers"),
    **{
        f"{name}={value}": ({name: value}, name) for name, value in {
            "num_ppo_epochs": 0, "num_mini_batches": 0, "response_length": 0, "temperature": 0.0, "kl_coef": -0.1,
            "cliprange": -0.2, "cliprange_value": -1.0, "vf_coef": -0.1, "gamma": 1.5, "lam": -0.1, "total_episodes": 0,
            "kl_target": 0.0, "kl_adaptation": -1.0, "kl_estimator": "k2", "stop_token": "pad", "missing_eos_penalty": -1.0,
            "local_rollout_forward_batch_size": 0, "per_device_train_batch_size": 0, "gradient_accumulation_steps": 0,
            "stop_token_id": -1,
        }.items()
    },
    "a temperature of nan": ({"temperature": math.nan}, "temperature"),
    "two stop tokens": ({"stop_token": "eos", "stop_token_id": 5}, "stop_token and stop_token_id are both set"),
}

BAD_ANSWERS = {
    "too few": (lambda completions: [0.0], "returned 1 rewards for 8 completions"),
    "none at all": (lambda completions: [None] * len(completions), "gave no finite score for 8 of 8"),
    "nan": (lambda completions: [math.nan] + [0.0] * (len(completions) - 1), "gave no finite score for 1 of 8 responses .the first is number 0"),
    "text": (lambda completions: "12345678", "must return a list of numbers, not '12345678'"),
    "words": (lambda completions: ["good"] * len(completions), "must return a list of numbers"),
    "a number": (lambda completions: 1.0, "must return a list of numbers, not 1.0"),
    "nothing": (lambda completions: None, "must return a list of numbers, not None"),
}


class TestBadInput:
    @pytest.mark.parametrize("name", WRONG)
    def test_it_is_named_at_construction(self, name, tmp_path):
        given, said = WRONG[name]
        with pytest.raises(ConfigurationError, match=said):
            ppo(tmp_path, **given)

    @pytest.mark.parametrize("name", BAD_ANSWERS)
    def test_answers_of_reward_functions_are_named_before_the_first_step(self, name, tmp_path):
        function, said = BAD_ANSWERS[name]
        trainer = ppo(tmp_path, reward_funcs=[function])
        before = weights(trainer)
        with pytest.raises(ConfigurationError, match=said):
            trainer.train()
        assert trainer.state.global_step == 0 and same(before, weights(trainer))

    def test_a_reward_function_that_raises_leaves_the_mode_as_it_was(self, tmp_path):
        def fails(completions):
            raise OSError("the judge is out")

        trainer = ppo(tmp_path, reward_funcs=fails)
        with pytest.raises(OSError, match="the judge is out"):
            trainer.train()
        assert trainer.model.training

    def test_arguments_are_not_changed(self, tmp_path):
        args = arguments(tmp_path)
        before = copy.deepcopy(vars(args))
        trainer = ppo(tmp_path, args=args)
        assert {name for name in before if vars(args)[name] != before[name]} <= {"distributed_state"}
        assert trainer.args.gradient_accumulation_steps == 1 and args.gradient_accumulation_steps == 2


SCRIPT = """
import json, os, sys, torch, transformers, torch.distributed as dist
import test_ppo as t
from rldk.ppo import PPOTrainer

judged = []
def judge(completions, prompts):
    judged.append((list(prompts), list(completions)))
    return t.zoo.vowels(completions)

def run(folder, resume=None, **config):
    judged.clear()
    trainer = t.ppo(folder, t.Tap, reward_funcs=judge, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=6,
                    eval_dataset=t.prompts(5), train_dataset=t.prompts(32), **{"total_episodes": 48, **config})
    trainer.train(resume_from_checkpoint=resume)
    return trainer

def everybody(value):
    out = [None] * 2
    dist.all_gather_object(out, value)
    return out

first = run("out")
told = {"world": first.args.world_size, "steps": first.state.global_step, "batch": first.args.batch_size}
told["prompts"] = everybody(judged[0][0])
states = everybody([t for t in t.weights(first).values()])
told["equal"] = all(torch.equal(a, b) for a, b in zip(*states))
told["rows"] = t.rows_of(first)
told["eval"] = t.rows_of(first, "eval_objective/scores")
told["rollouts"] = everybody([(r.scores.tolist(), r.mask.sum(1).tolist(), int(r.attention_mask.sum())) for r in first.rollouts])
told["ratio"] = everybody([
    (at, float((o.logprobs - i.logprobs).exp()[i.mask].sum()), int(i.mask.sum())) for at, i, o, _ in first.passes])
if transformers.__version__ >= "5":
    second = run("again", resume="out/checkpoint-9")
    told["resumed"] = t.same(t.weights(first), t.weights(second)) and t.rows_of(second) == told["rows"]
third = run("value", total_episodes=16, value_model=t.with_head("own", t.zoo.causal_lm(5)), gradient_checkpointing=True)
states = everybody([t for t in t.weights(third).values()])
told["value head"] = all(torch.equal(a, b) for a, b in zip(*states))
lora = run("lora", total_episodes=16, peft_config=t.lora(), gradient_checkpointing=True)
states = everybody([t for t in t.weights(lora).values()])
told["lora"] = all(torch.equal(a, b) for a, b in zip(*states))
few = t.ppo("few", t.Tap, train_dataset=t.prompts(1), total_episodes=16)
few.train()
told["answers"] = everybody([r.input_ids[:, -8:].tolist() for r in few.rollouts])
if dist.get_rank() == 0:
    open("told.json", "w").write(json.dumps(told))
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # see test_distributed
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"], cwd=folder,
        capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads((folder / "told.json").read_text()), "folder": folder}


@pytest.mark.matrix
class TestTwoProcesses:
    def test_they_train_as_one(self, told):
        assert told["world"] == 2 and told["batch"] == 16 and told["steps"] == 12
        assert told["equal"] and told["value head"] and told["lora"]

    def test_each_has_its_own_prompts_and_draws_its_own_answers(self, told):
        a, b = told["prompts"]
        assert len(a) == len(b) == 8 and not set(a) & set(b)
        a, b = told["answers"]
        assert a[0] != b[0], "to one prompt"

    def test_what_is_logged_is_of_both(self, told):
        of_both = [[one + two for one, two in zip(a, b, strict=True)] for a, b in [
            [[r[0] for r in rank] for rank in told["rollouts"]], [[r[1] for r in rank] for rank in told["rollouts"]],
        ]]
        rows = [row for row in told["rows"] if "objective/kl" in row]
        for row, scores, lengths in zip(rows, *of_both, strict=True):
            assert row["objective/scores"] == pytest.approx(sum(scores) / 16)
            assert row["completions/mean_length"] == pytest.approx(sum(lengths) / 16)
            assert row["completions/max_length"] == max(lengths)
        assert rows[-1]["num_tokens"] == sum(r[2] for rank in told["rollouts"] for r in rank)
        assert rows[-1]["episode"] == 48
        for row in told["rows"]:
            mine = [one for rank in told["ratio"] for one in rank if one[0] == row["step"] - 1]
            assert len(mine) == 2
            assert row["val/ratio"] == pytest.approx(sum(one[1] for one in mine) / sum(one[2] for one in mine), rel=1e-5)
        assert len(told["eval"]) == 2

    def test_they_resume_bit_for_bit(self, told):
        if "resumed" not in told:
            pytest.skip("the Trainer of transformers 4 cannot load an optimizer in several processes on a CPU (device cpu:0)")
        assert told["resumed"]

    def test_another_number_of_processes_is_refused(self, told, tmp_path):
        """One would have a rollout to go on with and the other none, and they would wait for each other for ever."""
        trainer = ppo(tmp_path, train_dataset=prompts(16), total_episodes=48)
        with pytest.raises(ConfigurationError, match=r"'processes': 2\}, these are .*'processes': 1\}"):
            trainer.train(resume_from_checkpoint=str(told["folder"] / "out" / "checkpoint-9"))
