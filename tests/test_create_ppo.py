"""`create_ppo_trainer`: PPO that trains on every TRL, by the trainer that fits what was asked for."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

import rldk
import rldk.ppo
from rldk.exceptions import ConfigurationError
from rldk.integrations.trl import EventWriterCallback, PPOConfig, create_ppo_trainer
from rldk.ppo.prompts import ids_of

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]
TRL = importlib.metadata.version("trl")
OWN = zoo.has("ppo")  # whether TRL has a PPO of its own
CHAT = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %} {% endif %}"
)


def config(folder, cls=None, **changes):
    """Arguments for two updates of eight responses, by names that all PPOConfigs have."""
    settings = {
        "output_dir": str(folder / "out"), "learning_rate": 1e-3, "total_episodes": 16, "per_device_train_batch_size": 8,
        "num_ppo_epochs": 2, "response_length": 8, "stop_token": "eos", "temperature": 1.0, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "disable_tqdm": True, "seed": 0, **changes,
    }
    return (cls or PPOConfig)(**settings)


def prompts(kind="prompt", count=16):
    """Prompts as text, chat messages or ids, beside a column that a reward function may want."""
    texts = [row["prompt"] for row in zoo._rows(("prompt",), count, seed=1)]
    values = {
        "prompt": texts, "text": texts, "query": texts,
        "messages": [[{"role": "user", "content": text}] for text in texts],
        "input_ids": [zoo.tokenizer()(text)["input_ids"] for text in texts],
    }
    return datasets.Dataset.from_dict({kind: values[kind], "answer": [str(index) for index in range(count)]})


@pytest.fixture
def base(tmp_path):
    """A folder with a tiny policy and its tokenizer, as a path to load from."""
    text = zoo.tokenizer()
    text.chat_template = CHAT
    folder = tmp_path / "base"
    zoo.causal_lm(0, 2.0).save_pretrained(folder)
    text.save_pretrained(folder)
    return str(folder)


def curve(trainer):
    """What was logged of each update."""
    return [row for row in trainer.state.log_history if "objective/scores" in row]


def test_the_quickstart(tmp_path):
    """The example trains from end to end on this TRL: the reward rises, rldk calls the run healthy."""
    folder = tmp_path / "logs"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ppo_quickstart.py"), "--output-dir", str(folder), "--updates", "25"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "PPO by rldk.ppo: reward_funcs" in done.stderr
    (path,) = folder.glob("*_final_report.json")
    report = json.loads(path.read_text())
    assert (report["status"], report["trainer"], report["health"]["verdict"]) == ("completed", "ppo", "no alerts")
    assert report["rldk_failures"] == {}
    train = rldk.ingest_runs(folder).query("phase == 'train'")
    reward = train.reward_mean.dropna().tolist()
    assert len(reward) == 25
    assert reward[0] < 0.45 and sum(reward[-5:]) / 5 > 0.8
    assert (train.ratio_mean.dropna() - 1).abs().max() < 0.2
    assert train.grad_norm_policy.notna().sum() == train.grad_norm_value.notna().sum() == 25


@pytest.mark.parametrize(
    ("asked", "chosen", "why"),
    [
        ({}, "trl" if OWN else "rldk", "has one" if OWN else "ships no PPO"),
        ({"reward_funcs": zoo.vowels}, "rldk", "reward_funcs"),
        ({"value_model": "shared"}, "rldk", "value_model='shared'"),
        ({"resume_from_checkpoint": "somewhere"}, "rldk", "resume_from_checkpoint"),
        ({"cls": rldk.ppo.PPOConfig}, "rldk", "rldk.ppo's"),
        ({"backend": "rldk"}, "rldk", "backend='rldk'"),
        *([({"backend": "trl"}, "trl", "backend='trl'")] if OWN else []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_choice_of_trainer(asked, chosen, why, base, tmp_path, caplog):
    """TRL's own where it has one, rldk's where something is asked for that only it has; the log says which and why."""
    asked = dict(asked)
    arguments = {name: asked.pop(name) for name in ("resume_from_checkpoint", "cls") if name in asked}
    if "reward_funcs" not in asked:
        asked["reward_model"] = zoo.sequence_classifier(1)
    if chosen == "trl":
        asked["value_model"] = zoo.sequence_classifier(2)
    with caplog.at_level(logging.INFO, "rldk"):
        trainer = create_ppo_trainer(base, config(tmp_path, **arguments), prompts(), **asked)
    assert isinstance(trainer, rldk.ppo.PPOTrainer) == (chosen == "rldk")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("PPO by ")]
    if not OWN and "cls" not in arguments and not asked.keys() & {"reward_funcs", "backend"} and not arguments:
        why = "value_model" if asked.get("value_model") == "shared" else "rldk.ppo's"  # its PPOConfig is rldk's there
    assert why in line


@pytest.mark.parametrize("backend", ["trl", "rldk"] if OWN else ["rldk"])
@pytest.mark.parametrize("kind", ["prompt", "text", "query", "messages", "input_ids"])
def test_prompts_of_any_kind(kind, backend, base, tmp_path, caplog):
    """Text, chat and ids train on both; TRL's own is given ids alone, and a note says what was dropped."""
    with caplog.at_level(logging.INFO, "rldk"):
        trainer = create_ppo_trainer(
            base, config(tmp_path), prompts(kind), backend=backend, reward_model=zoo.sequence_classifier(1),
            value_model=zoo.sequence_classifier(2),
        )
    trainer.train()
    assert len(curve(trainer)) == 2 and all(math.isfinite(row["objective/kl"]) for row in curve(trainer))
    dropped = "the columns answer are dropped" in caplog.text
    assert dropped == (backend == "trl")


@pytest.mark.parametrize("backend", ["trl", "rldk"] if OWN else ["rldk"])
@pytest.mark.parametrize("variant", ["plain", "lora", "value_head", "untrained"])
def test_variants_train_and_save(variant, backend, base, tmp_path):
    """LoRA, value-head policies, reward models, and heads that rldk has to build: two updates and a checkpoint that loads."""
    given = {"reward_model": zoo.sequence_classifier(1), "value_model": zoo.sequence_classifier(2)}
    if variant == "lora":
        from peft import LoraConfig

        given["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    elif variant == "value_head":
        given = {"model": value_head_model(base), "reward_model": zoo.sequence_classifier(1)}
    elif variant == "untrained":
        given = {}
    arguments = {"save_strategy": "steps", "save_steps": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = create_ppo_trainer(base, config(tmp_path, **arguments), prompts(), backend=backend, **given)
    said = [str(warning.message) for warning in caught if "untrained head" in str(warning.message)]
    assert [text.split()[0] for text in said] == (
        [] if variant != "untrained" else ["reward_model", "value_model"] if backend == "trl" else ["reward_model"]
    )
    before = {name: weight.clone() for name, weight in trainer.model.policy.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and (variant != "lora" or all("lora_" in name for name in changed))
    checkpoint = tmp_path / "out" / f"checkpoint-{trainer.state.max_steps}"
    if variant == "lora":
        assert (checkpoint / "adapter_model.safetensors").is_file()
    else:
        saved = AutoModelForCausalLM.from_pretrained(checkpoint)
        policy = dict(trainer.model.policy.named_parameters())
        assert all(torch.equal(weight, policy[name]) for name, weight in saved.named_parameters())


def value_head_model(base):
    """TRL's own value-head model where TRL has one, else one of its shape."""
    if OWN:
        import trl

        home = trl if hasattr(trl, "AutoModelForCausalLMWithValueHead") else __import__("trl.experimental.ppo", fromlist=["x"])
        return home.AutoModelForCausalLMWithValueHead.from_pretrained(base)

    class Shape(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.pretrained_model, self.v_head = inner, torch.nn.Linear(inner.config.hidden_size, 1)

        def forward(self, *args, **kwargs):
            out = self.pretrained_model(*args, **kwargs, output_hidden_states=True)
            return out.logits, None, self.v_head(out.hidden_states[-1]).squeeze(-1)

    return Shape(AutoModelForCausalLM.from_pretrained(base))


def test_ids_win_over_text_and_rewards_see_the_text(base, tmp_path):
    """Who has tokenised the prompts himself means those ids; the reward function still gets the text."""
    rows = prompts().add_column("input_ids", [[5, 6, 7]] * 16)
    seen = []

    def reward(prompts, completions):
        seen.extend(prompts)
        return zoo.vowels(completions)

    trainer = create_ppo_trainer(base, config(tmp_path), rows, reward_funcs=reward)
    trainer.train()
    assert trainer._experience.input_ids[:, :3].tolist() == [[5, 6, 7]] * 8
    assert set(seen) == set(rows["prompt"])


def test_an_answer_that_has_been_begun_is_gone_on_with(base):
    """Messages that end with the assistant's get no second header of an assistant."""
    text = zoo.tokenizer()
    text.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %} now{% endif %}"
    )
    asked = [{"role": "user", "content": "the cat"}]
    begun = [*asked, {"role": "assistant", "content": "sat"}]
    assert text.decode(ids_of(asked, text)) == "the cat now"
    assert text.decode(ids_of(begun, text)) == "the cat sat"


def test_one_callback_is_taken_as_it_is(base, tmp_path):
    """A list around a single callback is easily forgotten."""
    writer = EventWriterCallback(tmp_path / "one.jsonl")
    trainer = create_ppo_trainer(base, config(tmp_path), prompts(), writer, reward_funcs=zoo.vowels)
    assert writer in trainer.callback_handler.callbacks
    with pytest.raises(ConfigurationError, match="needs an eval_dataset"):
        trainer.evaluate()


def test_another_temperature_ends_the_rollout_that_was_stored(base, tmp_path, caplog):
    """What was sampled at one temperature is not trained at another."""
    arguments = {"total_episodes": 32, "save_strategy": "steps", "save_steps": 3}
    create_ppo_trainer(base, config(tmp_path, **arguments), prompts(), reward_funcs=zoo.vowels).train()
    again = create_ppo_trainer(base, config(tmp_path, **arguments, temperature=0.5), prompts(), reward_funcs=zoo.vowels)
    with caplog.at_level(logging.WARNING, "rldk"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert "temperature was 1.0 and is 0.5: a new rollout begins" in caplog.text
    assert again.state.global_step == 8


def test_a_run_resumes_on_the_same_curve(base, tmp_path):
    """On rldk.ppo a run cut off goes on as if it had not been."""
    arguments = {"total_episodes": 32, "save_strategy": "steps", "save_steps": 3}
    whole = create_ppo_trainer(base, config(tmp_path, **arguments), prompts(), reward_funcs=zoo.vowels)
    whole.train()
    again = create_ppo_trainer(base, config(tmp_path, **arguments), prompts(), reward_funcs=zoo.vowels)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))  # in the middle of the second update
    names = ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg")

    def seen(trainer):
        return [[row.get(name) for name in names] for row in trainer.state.log_history if "grad_norm" in row]

    assert len(seen(whole)) == 8 and seen(again) == seen(whole)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_value_model_may_be_a_path(base, tmp_path):
    """As a reward model may."""
    zoo.sequence_classifier(2).save_pretrained(tmp_path / "critic")
    trainer = create_ppo_trainer(
        base, config(tmp_path), prompts(), reward_funcs=zoo.vowels, value_model=str(tmp_path / "critic")
    )
    assert all(weight.requires_grad for weight in trainer.model.value_model.parameters())
    assert torch.equal(trainer.model.value_model.score.weight, zoo.sequence_classifier(2).score.weight)


if OWN:

    @pytest.mark.parametrize("kind", [dict, lambda **sets: sets["a"].to_iterable_dataset(), lambda **sets: list(sets["a"])])
    def test_trl_evaluates_on_one_dataset(kind, base, tmp_path):
        """Its trainer knows neither several sets nor a stream."""
        with pytest.raises(ConfigurationError, match=r"eval_dataset must be a datasets\.Dataset, not"):
            create_ppo_trainer(
                base, config(tmp_path), prompts(), backend="trl", reward_model=zoo.sequence_classifier(1),
                value_model=zoo.sequence_classifier(2), eval_dataset=kind(a=prompts()),
            )


if not OWN:

    def test_trl_without_ppo_cannot_be_forced(base, tmp_path):
        """The error names the version that removed it."""
        with pytest.raises(ImportError, match=r"removed PPO in 1\.13\.0"):
            create_ppo_trainer(base, config(tmp_path), prompts(), backend="trl", reward_model=zoo.sequence_classifier(1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"backend": "ours"}, "backend must be 'auto', 'trl' or 'rldk', not 'ours'"),
        ({"backend": "trl", "reward_funcs": zoo.vowels}, "no reward_funcs"),
        ({"evaldataset": None}, "Did you mean 'eval_dataset'"),
        ({"processing_class": None}, "is given to create_ppo_trainer as tokenizer"),
        ({"args": None}, "is given to create_ppo_trainer as ppo_config"),
        ({"reward_funcs": zoo.vowels, "eval_dataset": iter(())}, "eval_dataset"),
        ({"kl_coef": 0.1}, "set it in ppo_config"),
        ({"ppo_config": {"kl_coef": 0.1}}, "must be a PPOConfig .* not dict"),
        ({"reward_funcs": [lambda completions: [0.0], 3]}, "reward_funcs"),
        ({"train_dataset": datasets.Dataset.from_dict({"prompt": []})}, "train_dataset"),
        ({"train_dataset": datasets.Dataset.from_dict({"question": ["a"]})}, "train_dataset"),
        ({"reward_funcs": zoo.vowels, "reward_model": zoo.sequence_classifier(1)}, "reward_model"),
        ({"reward_funcs": zoo.vowels, "num_mini_batches": 3}, "num_mini_batches"),
        ({"reward_funcs": zoo.vowels, "neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        ({"reward_funcs": zoo.vowels, "include_for_metrics": ["inputs"]}, "include_for_metrics"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_said_before_the_first_step(asked, message, base, tmp_path):
    """One error that names the argument, for each way to get it wrong."""
    asked = dict(asked)
    arguments = {name: asked.pop(name) for name in ("num_mini_batches", "neftune_noise_alpha", "include_for_metrics") if name in asked}
    ppo_config = asked.pop("ppo_config", None) or config(tmp_path, **arguments)
    dataset = asked.pop("train_dataset") if "train_dataset" in asked else prompts()
    if "reward_funcs" not in asked:
        asked["reward_model"] = zoo.sequence_classifier(1)
    with pytest.raises(ConfigurationError, match=message):
        create_ppo_trainer(base, ppo_config, dataset, **asked)


def test_the_check_can_be_skipped(base, tmp_path):
    """`validate_setup=False` builds what the check refuses, where that is possible at all."""
    given = {"reward_funcs": lambda texts: [0.0] * len(texts)}  # PPO has no `texts` to give it
    arguments = config(tmp_path)
    with pytest.raises(ConfigurationError, match="validate_setup=False skips"):
        create_ppo_trainer(base, arguments, prompts(), **given)
    assert create_ppo_trainer(base, arguments, prompts(), **given, validate_setup=False) is not None


def test_event_log_path(base, tmp_path):
    """It attaches one EventWriterCallback, and none where the caller brought one."""
    for brought in ([], [EventWriterCallback(tmp_path / "own.jsonl")]):
        trainer = create_ppo_trainer(
            base, config(tmp_path), prompts(), brought, reward_funcs=zoo.vowels, event_log_path=tmp_path / "events.jsonl"
        )
        writers = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, EventWriterCallback)]
        assert len(writers) == 1
        trainer.train()
    for name in ("events.jsonl", "own.jsonl"):
        train = rldk.ingest_runs(tmp_path / name).query("phase == 'train'")
        assert train.step.tolist() == [1, 2, 3, 4]  # optimizer steps, two of each rollout
        assert train.reward_mean.notna().tolist() == [True, False, True, False]


def test_the_caller_keeps_what_he_gave(base, tmp_path):
    """Arguments are not written into, and each trainer's PPOConfig becomes the other's with the same settings."""
    for cls in {PPOConfig, rldk.ppo.PPOConfig}:
        given = config(tmp_path, cls, kl_coef=0.07, gradient_accumulation_steps=2, num_mini_batches=2)
        before = given.to_json_string()
        trainer = create_ppo_trainer(base, given, prompts(), backend="rldk", reward_funcs=zoo.vowels)
        assert given.to_json_string() == before
        assert type(trainer.args) is rldk.ppo.PPOConfig
        assert (trainer.args.kl_coef, trainer.args.stop_token, trainer.args.learning_rate) == (0.07, "eos", 1e-3)
        assert (trainer.args.batch_size, trainer.args.mini_batch_size, trainer.args.num_total_batches) == (16, 8, 1)
    if OWN:
        given = config(tmp_path, rldk.ppo.PPOConfig, kl_coef=0.07)
        models = {"reward_model": zoo.sequence_classifier(1), "value_model": zoo.sequence_classifier(2)}
        trainer = create_ppo_trainer(base, given, prompts(), backend="trl", **models)
        assert isinstance(trainer.args, zoo.classes("ppo")[1]) and trainer.args.kl_coef == 0.07
        with pytest.raises(ConfigurationError, match="kl_target"):
            create_ppo_trainer(
                base, config(tmp_path, rldk.ppo.PPOConfig, kl_target=6.0), prompts(), backend="trl", **models
            )
