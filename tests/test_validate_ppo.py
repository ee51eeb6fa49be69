"""validate_ppo_setup: each check speaks of the set-up that it is about, and a healthy one is left in peace."""

from __future__ import annotations

import copy
import functools
import types

import datasets
import peft
import pytest
import torch
import transformers
import zoo
from transformers import GPT2Config, GPT2LMHeadModel

from rldk.exceptions import ConfigurationError
from rldk.integrations.trl import fix_generation_config, prepare_models_for_ppo, validate_ppo_setup
from rldk.integrations.trl._compat import trl_version
from rldk.ppo import PPOConfig

pytestmark = pytest.mark.matrix

HERE = "trl" if zoo.has("ppo") else "rldk"
BOTH = ("trl", "rldk")
SETTINGS = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 2, "response_length": 12,
    "stop_token": "eos", "missing_eos_penalty": 1.0, "temperature": 1.0, "num_sample_generations": 0,
    "learning_rate": 1e-4, "use_cpu": True, "bf16": False,
}


@functools.cache
def parts():
    """A run's models, once for all tests: a check changes nothing."""
    return zoo.causal_lm(0), zoo.causal_lm(0), zoo.sequence_classifier(1), zoo.sequence_classifier(2)


def tokenizer(**changes):
    text = zoo.tokenizer()
    text.padding_side = "left"
    for name, value in changes.items():
        setattr(text, name, value)
    return text


def rows(column="input_ids", count=16):
    value = {"input_ids": [1, 4, 5], "messages": [{"role": "user", "content": "a"}], "other": 1.0}.get(column, "the cat")
    return datasets.Dataset.from_list([{column: value}] * count)


def settings(**changes):
    return types.SimpleNamespace(**{**SETTINGS, **changes})


def check(backend=HERE, **changes):
    """What is said of a healthy run with some parts changed."""
    model, reference, reward, value = parts()
    given = {
        "model": model, "ref_model": reference, "reward_model": reward, "value_model": value, "tokenizer": tokenizer(),
        "args": settings(), "train_dataset": rows(), "backend": backend,
    }
    given |= changes
    return validate_ppo_setup(given.pop("model"), **given)


def bare_head(base=None):
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_model = base if base is not None else zoo.causal_lm()
            self.v_head = torch.nn.Linear(16, 1)

    return Head()


def without_gradient(model):
    return copy.deepcopy(model).requires_grad_(False)


def sharing(model):
    """Another object around the same weights."""
    twin = zoo.causal_lm()
    twin.model.embed_tokens.weight = model.model.embed_tokens.weight
    return twin


def resized(model, rows):
    model.resize_token_embeddings(rows)
    return model


def larger(*tokens):
    text = tokenizer()
    text.add_tokens(list(tokens) or ["<new>"])
    return text


def classifier(**config):
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        **{"num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256, **config},
    ))


def gpt2(**config):
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **config,
    ))


def quiet(**config):
    return gpt2(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **config)


def trained_on_noise():
    with pytest.warns(UserWarning, match="untrained head"):
        return prepare_models_for_ppo(zoo.causal_lm(), tokenizer())[2]


def attention_dropout():
    model = zoo.causal_lm()
    model.model.layers[0].self_attn.attention_dropout = 0.1
    return model


def of_backbone_and_score():
    """A rule-based reward: any module that has what PPO reads."""

    class Rule(torch.nn.Module):
        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Identity()

        def score(self, hidden):
            return hidden.sum(-1, keepdim=True)

    return Rule()


async def later(prompts, completions, **kwargs):
    return [0.0]


class Later:
    async def __call__(self, prompts, completions, **kwargs):
        return [0.0]


def lora():
    return peft.LoraConfig(task_type="CAUSAL_LM")


class Stream(datasets.IterableDataset):
    def __init__(self):
        pass


# What is wrong, where it is said, on whose trainer, a part of what is said, and the parts that are wrong.
BAD = [
    ("no tokenizer", "issues", BOTH, "tokenizer is None", lambda: {"tokenizer": None}),
    ("no eos", "issues", BOTH, "tokenizer.eos_token is None", lambda: {"tokenizer": tokenizer(eos_token=None)}),
    ("no pad", "issues", ("trl",), "tokenizer.pad_token is None", lambda: {"tokenizer": tokenizer(pad_token=None)}),
    ("no pad", "warnings", ("rldk",), "EOS will stand in", lambda: {"tokenizer": tokenizer(pad_token=None)}),
    ("pad is eos", "warnings", ("trl",), "tokenizer.pad_token is its EOS ('</s>')", lambda: {"tokenizer": tokenizer(pad_token="</s>")}),
    ("right padding", "warnings", ("trl",), "tokenizer.padding_side is 'right'", lambda: {"tokenizer": tokenizer(padding_side="right")}),
    ("outgrown", "issues", BOTH, "tokenizer has 33 tokens and model 32 embeddings", lambda: {"tokenizer": larger()}),
    ("small ref", "issues", BOTH, "ref_model 30 embeddings", lambda: {"ref_model": resized(zoo.causal_lm(), 30)}),
    ("small reward", "issues", BOTH, "reward_model 30 embeddings", lambda: {"reward_model": resized(zoo.sequence_classifier(), 30)}),
    ("small value", "issues", BOTH, "value_model 30 embeddings", lambda: {"value_model": resized(zoo.sequence_classifier(), 30)}),
    ("large reward", "warnings", BOTH, "reward_model has 40 embeddings and model 32", lambda: {"reward_model": resized(zoo.sequence_classifier(), 40)}),
    ("large ref", "warnings", BOTH, "ref_model has 40 embeddings and model 32", lambda: {"ref_model": resized(zoo.causal_lm(), 40)}),
    ("ids beyond", "issues", BOTH, "token id 99", lambda: {"train_dataset": datasets.Dataset.from_dict({"input_ids": [[1, 99]] * 8})}),
    ("other tokenizer", "issues", ("trl",), "reward_tokenizer is another", lambda: {"reward_tokenizer": larger("<other>")}),
    ("other eos", "recommendations", BOTH, "reward_model.config.eos_token_id is 9 and tokenizer.eos_token_id is 2", lambda: {"reward_model": classifier(eos_token_id=9)}),
    ("other pad", "recommendations", BOTH, "reward_model.config.pad_token_id is 9", lambda: {"reward_model": classifier(pad_token_id=9, eos_token_id=None)}),
    ("no model", "issues", BOTH, "model is None", lambda: {"model": None}),
    ("classifier as policy", "issues", BOTH, "LlamaForSequenceClassification, which cannot generate", lambda: {"model": zoo.sequence_classifier()}),
    ("value head as policy", "warnings", BOTH, "model is a Head, whose forward returns a tuple", lambda: {"model": bare_head()}),
    ("frozen policy", "issues", BOTH, "no trainable parameter", lambda: {"model": without_gradient(zoo.causal_lm())}),
    ("two adapters", "issues", BOTH, "peft_config is given and model has an adapter", lambda: {"model": peft.get_peft_model(zoo.causal_lm(), lora()), "ref_model": None, "peft_config": lora()}),
    ("needless reference", "recommendations", BOTH, "with ref_model=None it is its own", lambda: {"model": peft.get_peft_model(zoo.causal_lm(), lora())}),
    ("half", "warnings", BOTH, "model has trainable float16", lambda: {"model": zoo.causal_lm().half()}),
    ("half twice", "issues", BOTH, "gradients cannot be unscaled", lambda: {"model": zoo.causal_lm().half(), "args": settings(fp16=True)}),
    ("one object", "issues", BOTH, "ref_model is model, the same object", lambda: dict.fromkeys(("model", "ref_model"), zoo.causal_lm())),
    ("one object inside", "issues", BOTH, "ref_model is model, the same object", lambda: (lambda m: {"model": bare_head(m), "ref_model": m})(zoo.causal_lm())),
    ("shared weights", "issues", BOTH, "ref_model shares trainable weights with model", lambda: (lambda m: {"model": m, "ref_model": sharing(m)})(zoo.causal_lm())),
    ("reward is value", "warnings", ("trl",), "reward_model shares trainable weights with value_model", lambda: dict.fromkeys(("reward_model", "value_model"), zoo.sequence_classifier())),
    ("reward is value", "issues", ("rldk",), "reward_model shares trainable weights with value_model: it is frozen", lambda: dict.fromkeys(("reward_model", "value_model"), zoo.sequence_classifier())),
    ("no value model", "recommendations", ("trl",), "value_model is None", lambda: {"value_model": None}),
    ("bare value head", "warnings", BOTH, "value_model is a Head without base_model_prefix and the backbone of that name and score: call fix_generation_config", lambda: {"value_model": bare_head()}),
    ("bare reward head", "warnings", BOTH, "reward_model is a Head without", lambda: {"reward_model": bare_head()}),
    ("lm as value", "issues", BOTH, "value_model is a LlamaForCausalLM without score", lambda: {"value_model": zoo.causal_lm(3)}),
    ("lm as reward", "issues", ("trl",), "reward_model is a LlamaForCausalLM without score", lambda: {"reward_model": zoo.causal_lm(3)}),
    ("two outputs", "issues", BOTH, "reward_model.score has 2 outputs", lambda: {"reward_model": classifier(num_labels=2)}),
    ("untrained reward", "warnings", BOTH, "reward_model has an untrained head", lambda: {"reward_model": trained_on_noise()}),
    ("too long", "issues", BOTH, "model has max_position_embeddings=14: it has no embedding", lambda: {"model": quiet(n_positions=14)}),
    ("too long to be good", "warnings", BOTH, "reward_model has max_position_embeddings=14: it was not trained", lambda: {"reward_model": classifier(max_position_embeddings=14)}),
    ("dropout", "recommendations", BOTH, "model has dropout", lambda: {"model": gpt2()}),
    ("dropout in attention", "warnings", ("trl",), "attention_dropout=0.1", lambda: {"model": attention_dropout()}),
    ("no reward", "issues", BOTH, "both None", lambda: {"reward_model": None}),
    ("two rewards", "issues", BOTH, "both given", lambda: {"reward_funcs": zoo.length}),
    ("no data", "issues", BOTH, "train_dataset is empty", lambda: {"train_dataset": rows().select([])}),
    ("no prompts", "issues", BOTH, "the columns ['other']", lambda: {"train_dataset": rows("other")}),
    ("rows without prompts", "issues", BOTH, "the columns ['label']", lambda: {"train_dataset": [{"label": 1}] * 8}),
    ("a prompt of nothing", "issues", BOTH, "train_dataset[8]: a prompt without a token", lambda: {"train_dataset": [{"prompt": "a"}] * 8 + [{"prompt": ""}]}),
    ("a stream", "issues", BOTH, "without a length", lambda: {"train_dataset": Stream()}),
    ("text on trl", "recommendations", ("trl",), "reads input_ids and fails on text", lambda: {"train_dataset": rows("prompt")}),
    ("less than a batch", "issues", ("trl",), "train_dataset has 7 rows and an update takes 8", lambda: {"train_dataset": rows(count=7)}),
    ("less than a batch", "warnings", ("rldk",), "prompts are repeated", lambda: {"train_dataset": rows(count=7)}),
    ("nothing to evaluate", "warnings", BOTH, "eval_dataset is empty", lambda: {"eval_dataset": rows().select([])}),
    ("one of two to evaluate", "warnings", BOTH, "eval_dataset['b'] is empty", lambda: {"eval_dataset": {"a": rows(), "b": rows().select([])}}),
    ("indivisible", "issues", BOTH, "makes 8, which num_mini_batches=3 does not divide", lambda: {"args": settings(num_mini_batches=3)}),
    ("too small to whiten", "issues", ("trl",), "num_mini_batches=2 of 4: with whiten_rewards", lambda: {"args": settings(whiten_rewards=True)}),
    ("two stops", "issues", BOTH, "stop_token='eos' and stop_token_id=0 are both set", lambda: {"args": settings(stop_token_id=0)}),
    ("unknown stop", "issues", BOTH, "stop_token='</s>'", lambda: {"args": settings(stop_token="</s>")}),
    ("no stop", "recommendations", BOTH, "stop_token is None", lambda: {"args": settings(stop_token=None, missing_eos_penalty=None)}),
    ("penalty without stop", "warnings", BOTH, "missing_eos_penalty=1.0 without stop_token", lambda: {"args": settings(stop_token=None)}),
    ("penalty on all", "warnings", BOTH, "stop_token_id=7 ends responses before it", lambda: {"args": settings(stop_token=None, stop_token_id=7)}),
    ("reward for no end", "issues", BOTH, "missing_eos_penalty=-1.0 rewards", lambda: {"args": settings(missing_eos_penalty=-1.0)}),
    ("temperature", "issues", BOTH, "args.temperature=0.0 must be above 0", lambda: {"args": settings(temperature=0.0)}),
    ("length", "issues", BOTH, "args.response_length=0", lambda: {"args": settings(response_length=0)}),
    ("epochs", "issues", BOTH, "args.num_ppo_epochs=0", lambda: {"args": settings(num_ppo_epochs=0)}),
    ("parts", "issues", BOTH, "args.num_mini_batches=0", lambda: {"args": settings(num_mini_batches=0)}),
    ("rate", "issues", BOTH, "args.learning_rate=0.0", lambda: {"args": settings(learning_rate=0.0)}),
    ("clip", "issues", BOTH, "args.cliprange=0.0", lambda: {"args": settings(cliprange=0.0)}),
    ("kl", "issues", BOTH, "args.kl_coef=-0.1 must not be negative", lambda: {"args": settings(kl_coef=-0.1)}),
    ("nan", "issues", BOTH, "args.kl_coef=nan must not be negative", lambda: {"args": settings(kl_coef=float("nan"))}),
    ("no kl", "recommendations", BOTH, "args.kl_coef=0", lambda: {"args": settings(kl_coef=0.0)}),
    ("value loss", "issues", BOTH, "args.vf_coef=-1", lambda: {"args": settings(vf_coef=-1)}),
    ("gamma", "issues", BOTH, "args.gamma=1.5 must be between 0 and 1", lambda: {"args": settings(gamma=1.5)}),
    ("lambda", "issues", BOTH, "args.lam=-1", lambda: {"args": settings(lam=-1)}),
    ("estimator", "issues", BOTH, "args.kl_estimator='k2'", lambda: {"args": settings(kl_estimator="k2")}),
    ("bf16", "recommendations", BOTH, "bf16=True without a GPU", lambda: {"args": settings(bf16=True)}),
]

# Of reward functions, which only rldk's trainer calls.
FUNCTIONS = [
    ("no function", "issues", "reward_funcs[0] is 'length', no function", "length"),
    ("none at all", "issues", "reward_funcs is empty", []),
    ("a model", "issues", "a model as reward_model", [torch.nn.Linear(1, 1)]),
    ("coroutine", "issues", "reward_funcs[1] is a coroutine function", [zoo.length, later]),
    ("coroutine object", "issues", "reward_funcs[0] is a coroutine function", Later()),
    ("other names", "issues", "takes neither prompts nor completions", lambda text: [0.0]),
    ("more than there is", "issues", "nothing supplies answer", lambda prompts, completions, answer: [0.0]),
    ("by position", "issues", "called with keywords alone", eval("lambda prompts, completions, /: [0.0]")),
    ("not for GRPO", "recommendations", "with **kwargs it would serve GRPO too", lambda completions: [0.0]),
]


@pytest.mark.parametrize("backend", BOTH)
class TestHealthy:
    def test_nothing_is_said(self, backend):
        assert check(backend) == {"valid": True, "issues": [], "warnings": [], "recommendations": []}

    @pytest.mark.parametrize("change", [
        lambda: {"ref_model": None},
        lambda: {"model": peft.get_peft_model(zoo.causal_lm(), lora()), "ref_model": None},
        lambda: {"model": without_gradient(zoo.causal_lm()), "ref_model": None, "peft_config": lora()},
        lambda: {"value_model": fix_generation_config(bare_head(), tokenizer())},
        lambda: {"reward_model": fix_generation_config(bare_head(zoo.causal_lm(8)), tokenizer())},
        lambda: {"reward_model": of_backbone_and_score()},
        lambda: {"train_dataset": [{"input_ids": [1, 4, 5]}] * 8},
        lambda: {"train_dataset": None},
        lambda: {"args": None},
        lambda: {"args": settings(stop_token=None, stop_token_id=2)},
        lambda: {"args": settings(per_device_train_batch_size=8, whiten_rewards=True), "train_dataset": rows(count=16)},
        lambda: {"eval_dataset": rows(), "args": settings(num_sample_generations=3)},
        lambda: {"tokenizer": tokenizer(), "reward_tokenizer": tokenizer()},
        lambda: {"model": quiet(n_positions=15)},
        lambda: {"model": zoo.causal_lm().to(torch.bfloat16)},
    ], ids=lambda change: "_".join(change().keys()))
    def test_other_healthy_runs(self, backend, change):
        assert check(backend, **change()) == {"valid": True, "issues": [], "warnings": [], "recommendations": []}

    def test_a_value_head_may_share_the_policys_backbone(self, backend):
        whole = fix_generation_config(bare_head(), tokenizer())
        assert check(backend, model=whole.pretrained_model, value_model=whole)["warnings"] == []

    def test_nothing_is_changed(self, backend):
        model = zoo.causal_lm()
        head = bare_head()
        attributes = set(vars(head))
        state = torch.get_rng_state()
        check(backend, model=model, reward_model=head)
        assert set(vars(head)) == attributes and torch.equal(torch.get_rng_state(), state)


class TestEachCheck:
    @pytest.mark.parametrize(("level", "backend", "text", "change"), [
        pytest.param(level, backend, text, change, id=f"{name}-{backend}")
        for name, level, backends, text, change in BAD for backend in backends
    ])
    def test_speaks_of_what_is_wrong(self, level, backend, text, change):
        found = check(backend, **change())
        assert any(text in sentence for sentence in found[level]), found
        assert found["valid"] is (not found["issues"])
        assert not any("could not be checked" in sentence for sentence in found["recommendations"])

    @pytest.mark.parametrize(("change", "text"), [
        (lambda: {"tokenizer": tokenizer(pad_token="</s>")}, "its EOS"),
        (lambda: {"tokenizer": tokenizer(padding_side="right")}, "padding_side"),
        (lambda: {"args": settings(whiten_rewards=True)}, "whiten_rewards"),
        (lambda: {"train_dataset": rows("prompt")}, "input_ids"),
        (lambda: {"reward_tokenizer": larger()}, "reward_tokenizer"),
        (lambda: {"args": settings(num_sample_generations=3)}, "num_sample_generations"),
        (lambda: {"value_model": None}, "value_model"),
    ])
    def test_what_is_only_trls_trouble_is_not_told_of_rldks(self, change, text):
        assert not any(text in sentence for level in ("issues", "warnings", "recommendations") for sentence in check("rldk", **change())[level])

    @pytest.mark.parametrize(("level", "text", "functions"), [pytest.param(*row[1:], id=row[0]) for row in FUNCTIONS])
    def test_reward_functions(self, level, text, functions):
        found = check("rldk", reward_model=None, reward_funcs=functions, train_dataset=rows("prompt"))
        assert any(text in sentence for sentence in found[level]), found

    @pytest.mark.parametrize("functions", [
        zoo.length, [zoo.length, zoo.vowels], lambda prompts, completions, **_: [0.0], lambda completions, answer, **_: [0.0], max,
    ])
    def test_good_reward_functions(self, functions):
        data = datasets.Dataset.from_dict({"prompt": ["a"] * 8, "answer": ["b"] * 8})
        found = check("rldk", reward_model=None, reward_funcs=functions, train_dataset=data)
        assert found == {"valid": True, "issues": [], "warnings": [], "recommendations": []}

    def test_weights_of_reward_functions(self):
        found = check("rldk", reward_model=None, reward_funcs=[zoo.length], args=settings(reward_weights=[1.0, 2.0]))
        assert "args.reward_weights has 2 numbers for 1 reward_funcs" in found["issues"][0]

    def test_every_check_is_shown_at_work(self):
        """Each function of the two lists finds something in the tables above."""
        from rldk.integrations.trl import _check_models, _check_run
        from rldk.integrations.trl._ppo_setup import Setup

        model, reference, reward, value = parts()
        silent = {check.__name__ for check in (*_check_models.CHECKS, *_check_run.CHECKS)} - {"samples", "reward_functions"}
        for _, _, backends, _, change in BAD:
            given = {
                "model": model, "ref_model": reference, "reward_model": reward, "value_model": value, "tokenizer": tokenizer(),
                "args": settings(), "train_dataset": rows(), "eval_dataset": None, "reward_funcs": None, "peft_config": None,
                "reward_tokenizer": None, "backend": backends[0], **change(),
            }
            checks = (*_check_models.CHECKS, *_check_run.CHECKS)
            silent -= {check.__name__ for check in checks if list(check(Setup(**given)))}
        assert not silent


class TestOddObjects:
    @pytest.mark.parametrize("odd", [object(), 3, "a name", [], {}, torch.nn.Linear(2, 2)], ids=repr)
    @pytest.mark.parametrize("part", [
        "model", "ref_model", "reward_model", "value_model", "tokenizer", "args", "train_dataset", "eval_dataset",
        "reward_funcs", "peft_config", "reward_tokenizer",
    ])
    def test_nothing_raises(self, odd, part):
        for backend in BOTH:
            found = check(backend, **{part: odd})
            assert set(found) == {"valid", "issues", "warnings", "recommendations"}

    def test_what_could_not_be_checked_is_said(self):
        class Broken:
            def __getattr__(self, name):
                raise RuntimeError("no")

        assert any("could not be checked (RuntimeError: no)" in sentence for sentence in check(args=Broken())["recommendations"])

    def test_an_unknown_backend(self):
        with pytest.raises(ConfigurationError, match="backend is 'openrlhf'"):
            check("openrlhf")


class TestBackend:
    def test_it_is_told_from_the_arguments(self, tmp_path):
        whitening = {
            "per_device_train_batch_size": 4, "whiten_rewards": True, "stop_token": "eos", "num_sample_generations": 0,
            "bf16": False, "use_cpu": True,
        }
        text = "with whiten_rewards=True"
        own = check(None, args=PPOConfig(output_dir=str(tmp_path), **whitening))
        assert not any(text in sentence for sentence in own["issues"])
        if zoo.has("ppo"):
            theirs = check(None, args=zoo.classes("ppo")[1](output_dir=str(tmp_path), **whitening))
            assert any(text in sentence for sentence in theirs["issues"])

    def test_without_arguments_it_is_the_installed_trls(self):
        found = check(None, args=None, tokenizer=tokenizer(pad_token="</s>"))
        assert bool(found["warnings"]) is zoo.has("ppo")
        own = check("auto", args=None, reward_model=None, reward_funcs=zoo.length, tokenizer=tokenizer(pad_token="</s>"))
        assert own["warnings"] == [], "TRL's trainer takes no functions"


if zoo.has("ppo"):

    class TestWhatIsSaidOfTRLIsSo:
        """The issues are what TRL's own trainer really does."""

        def test_a_healthy_run_is_healthy(self, tmp_path):
            trainer = zoo.trainer("ppo", tmp_path, max_steps=1, stop_token="eos")
            found = validate_ppo_setup(
                trainer.policy_model, trainer.ref_model, trainer.reward_model, trainer.value_model, trainer.processing_class,
                args=trainer.args, train_dataset=trainer.train_dataset,
            )
            assert found == {"valid": True, "issues": [], "warnings": [], "recommendations": []}

        @pytest.mark.parametrize(("config", "error", "message"), [
            ({"num_mini_batches": 3}, ValueError, "inexact division"),
            ({"whiten_rewards": True}, AssertionError, "insufficient for whitening"),
            ({"stop_token_id": 5}, ValueError, "both `stop_token` and `stop_token_id`"),
            ({"stop_token": "</s>"}, ValueError, "Unknown `stop_token`"),
            ({"kl_estimator": "k2"}, ValueError, "kl_estimator must be"),
        ])
        def test_arguments(self, tmp_path, config, error, message):
            with pytest.raises(error, match=message):
                zoo.trainer("ppo", tmp_path, **config)
            assert not check("trl", args=settings(**config))["valid"]

        @pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
        def test_tokens(self, tmp_path, missing):
            with pytest.raises((ValueError, TypeError, AttributeError)):
                zoo.trainer("ppo", tmp_path, max_steps=1, processing_class=tokenizer(**{missing: None})).train()

        def test_samples_without_data(self, tmp_path):
            from packaging.version import Version

            trainer = zoo.trainer("ppo", tmp_path, max_steps=1, num_sample_generations=1)
            found = check("trl", args=trainer.args)
            if Version(trl_version()) < Version("0.29.0"):
                with pytest.raises(TypeError):
                    trainer.train()
                assert any("num_sample_generations=1 and eval_dataset is None" in sentence for sentence in found["issues"])
            else:
                trainer.train()
                assert found["valid"]

        def test_attention_dropout_is_not_turned_off(self, tmp_path):
            trainer = zoo.trainer("ppo", tmp_path, model=attention_dropout())
            assert trainer.policy_model.model.layers[0].self_attn.attention_dropout == 0.1
            assert not any(m.p for m in trainer.policy_model.modules() if isinstance(m, torch.nn.Dropout))
