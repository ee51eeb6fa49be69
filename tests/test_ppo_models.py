"""Models for PPO: what a value-head model lacks, what gives it that, and models from a name or from another model."""

from __future__ import annotations

import copy
import importlib
import io
import logging

import peft
import pytest
import torch
import transformers
import zoo
from safetensors.torch import save_file
from transformers import GenerationConfig, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rldk.exceptions import ConfigurationError
from rldk.integrations.trl import fix_generation_config, prepare_models_for_ppo
from rldk.integrations.trl.models import embedding_rows, has_untrained_head, value_model_from
from rldk.integrations.trl.value_head import is_value_head_model, unwrap_policy

pytestmark = pytest.mark.matrix

NOISE = "untrained head: its rewards are noise"


def gpt2(cls=GPT2LMHeadModel, seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(GPT2Config(
            vocab_size=len(zoo.tokenizer()), n_positions=256, n_embd=16, n_layer=2, n_head=2,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, **config,
        ))


BASES = {"llama": zoo.causal_lm, "gpt2": gpt2}


class OwnHead(torch.nn.Module):
    """A value-head model of a user's own, as they are copied from older TRL: it has the shape, and nothing else."""

    def __init__(self, pretrained_model):
        super().__init__()
        self.pretrained_model = pretrained_model
        self.v_head = torch.nn.Linear(pretrained_model.config.hidden_size, 1)

    def forward(self, **inputs):
        out = self.pretrained_model(**inputs, output_hidden_states=True)
        return out.logits, None, self.v_head(out.hidden_states[-1]).squeeze(-1)

    def generate(self, *args, **kwargs):
        return self.pretrained_model.generate(*args, **kwargs)


def trls_head():
    """TRL's own value-head class; None where it ships none any more."""
    for home in ("trl.experimental.ppo", "trl"):
        try:
            return getattr(importlib.import_module(home), "AutoModelForCausalLMWithValueHead")  # noqa: B009  # its home differs
        except (ImportError, AttributeError):
            continue
    return None


HEADS = {"own": OwnHead} | ({"trl": trls_head().from_pretrained} if trls_head() else {})


@pytest.fixture(params=[(head, base) for head in HEADS for base in BASES], ids="-".join)
def value_head(request):
    head, base = request.param
    return HEADS[head](BASES[base](seed=5))


def as_ppo_reads(model):
    """Values (B, S, 1) the way that TRL's PPO takes them from a reward or value model."""
    ids = torch.tensor([[1, 4, 5, 6], [1, 7, 8, 2]])
    backbone = getattr(model, model.base_model_prefix)
    states = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True, output_hidden_states=True, use_cache=False)
    return model.score(states.hidden_states[-1])


def train(tmp_path, **parts):
    """Two updates of TRL's own PPO, with a checkpoint after each."""
    trainer = zoo.trainer("ppo", tmp_path, max_steps=2, save_steps=1, **parts)
    trainer.train()
    return trainer


class TestFixGenerationConfig:
    def test_a_value_head_model_gets_what_ppo_reads(self, value_head):
        with pytest.raises(AttributeError, match="base_model_prefix"):
            as_ppo_reads(value_head)
        tokenizer = zoo.tokenizer()
        assert fix_generation_config(value_head, tokenizer) is value_head
        assert as_ppo_reads(value_head).shape == (2, 4, 1)
        made = value_head.generation_config
        assert (made.eos_token_id, made.pad_token_id, made.bos_token_id) == (2, 0, 1)
        assert (made.max_length, made.do_sample, made.temperature, made.top_p, made.top_k) == (512, True, 1.0, 1.0, 0)
        assert value_head.base_model_prefix == "pretrained_model"
        assert value_head.score is value_head.v_head
        assert value_head.is_gradient_checkpointing is False
        assert value_head.device == torch.device("cpu")
        assert value_head.warnings_issued == {}
        assert value_head.config is value_head.pretrained_model.config

    def test_generate_uses_it(self, value_head):
        fix_generation_config(value_head, zoo.tokenizer(), GenerationConfig(max_length=9, do_sample=False))
        value_head.generation_config.eos_token_id = value_head.pretrained_model.generation_config.eos_token_id = None
        assert value_head.generate(torch.tensor([[1, 4]]), attention_mask=torch.ones(1, 2)).shape == (1, 9)

    def test_it_changes_no_weight_and_no_key(self, value_head, tmp_path):
        before = {name: tensor.clone() for name, tensor in value_head.state_dict().items()}
        parameters = [name for name, _ in value_head.named_parameters()]
        modules = [name for name, _ in value_head.named_modules()]
        fix_generation_config(value_head, zoo.tokenizer())
        after = value_head.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert [name for name, _ in value_head.named_parameters()] == parameters
        assert [name for name, _ in value_head.named_modules()] == modules
        # Two names of one tensor would be refused here. (GPT-2 ties its own weights, which only its own saving knows.)
        save_file({name: t for name, t in after.items() if "lm_head" not in name}, tmp_path / "model.safetensors")

    def test_twice_is_once(self, value_head):
        fix_generation_config(value_head, zoo.tokenizer())
        kind, state, config = type(value_head), set(vars(value_head)), copy.deepcopy(value_head.generation_config)
        made = value_head.generation_config
        fix_generation_config(value_head, zoo.tokenizer())
        assert type(value_head) is kind and set(vars(value_head)) == state
        assert value_head.generation_config is made and made == config

    def test_it_stays_what_it_was(self, value_head):
        kind = type(value_head)
        fix_generation_config(value_head, zoo.tokenizer())
        assert isinstance(value_head, kind)
        assert (type(value_head).__name__, type(value_head).__module__) == (kind.__name__, kind.__module__)

    def test_copies_and_pickles_have_their_own_head(self, value_head):
        fix_generation_config(value_head, zoo.tokenizer())
        twin = copy.deepcopy(value_head)
        assert twin.score is twin.v_head and twin.score is not value_head.score
        value_head.eval()
        if isinstance(value_head, OwnHead):  # TRL's class keeps bound methods and pickles as badly as ever
            file = io.BytesIO()
            torch.save(value_head, file)
            file.seek(0)
            again = torch.load(file, weights_only=False)
            assert again.score is again.v_head and torch.equal(as_ppo_reads(again), as_ppo_reads(value_head))

    def test_the_views_are_live(self, value_head):
        fix_generation_config(value_head, zoo.tokenizer())
        value_head.v_head = torch.nn.Linear(16, 1)
        assert value_head.score is value_head.v_head
        inner = value_head.pretrained_model
        getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)()  # the newer name first
        assert value_head.is_gradient_checkpointing is True
        assert value_head.to("meta").device == torch.device("meta")

    def test_what_is_there_already_stays(self):
        class Complete(OwnHead):
            device = torch.device("cpu")
            is_gradient_checkpointing = False
            base_model_prefix = "pretrained_model"

        model = Complete(zoo.causal_lm())
        model.score = torch.nn.Linear(16, 1)
        model.generation_config = GenerationConfig(max_length=64, eos_token_id=7)
        mine = model.score
        fix_generation_config(model, zoo.tokenizer())
        assert type(model) is Complete and model.score is mine
        assert (model.generation_config.max_length, model.generation_config.eos_token_id) == (64, 7)
        assert model.generation_config.pad_token_id == 0

    def test_one_that_is_passed_is_taken(self, value_head):
        own = GenerationConfig(max_length=32, temperature=0.5, do_sample=True, eos_token_id=[2, 5])
        fix_generation_config(value_head, zoo.tokenizer(), own)
        assert value_head.generation_config is own and value_head.pretrained_model.generation_config is own
        assert (own.max_length, own.temperature, own.eos_token_id, own.pad_token_id) == (32, 0.5, [2, 5], 0)

    def test_plain_models_get_only_what_is_missing(self):
        model = gpt2()
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 9, None
        model.config.pad_token_id = None
        length = model.generation_config.max_length
        state = set(model.state_dict())
        fix_generation_config(model, zoo.tokenizer())
        assert model.generation_config.eos_token_id == 9, "somebody set it"
        assert model.generation_config.pad_token_id == model.config.pad_token_id == 0
        assert model.generation_config.max_length == length and type(model) is GPT2LMHeadModel and set(model.state_dict()) == state

    def test_ids_that_nobody_chose_give_way_to_the_tokenizer(self):
        model = gpt2()
        model.config.eos_token_id = 50256
        model.generation_config = GenerationConfig.from_model_config(model.config)
        fix_generation_config(model, zoo.tokenizer())
        assert model.generation_config.eos_token_id == 2
        model.generation_config = GenerationConfig(eos_token_id=11)
        fix_generation_config(model, zoo.tokenizer())
        assert model.generation_config.eos_token_id == 11

    def test_sequence_classifiers(self):
        model = gpt2(GPT2ForSequenceClassification, num_labels=1)
        model.config.pad_token_id = None
        ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
        with pytest.raises(ValueError, match="batch sizes > 1"):
            model(input_ids=ids)
        fix_generation_config(model, zoo.tokenizer())
        assert model(input_ids=ids).logits.shape == (2, 1)
        assert model.generation_config.eos_token_id == 2

    def test_peft_models(self, tmp_path):
        model = peft.get_peft_model(zoo.causal_lm(), peft.LoraConfig(task_type="CAUSAL_LM"))
        state = set(model.state_dict())
        own = GenerationConfig(max_length=10, do_sample=True)
        assert fix_generation_config(model, zoo.tokenizer(), own) is model
        assert model.get_base_model().generation_config is own and own.eos_token_id == 2
        assert set(model.state_dict()) == state
        assert model.generate(input_ids=torch.tensor([[1, 4]]), attention_mask=torch.ones(1, 2)).shape[1] <= 10
        model.save_pretrained(tmp_path)

    def test_a_value_head_on_a_peft_model(self):
        model = OwnHead(peft.get_peft_model(zoo.causal_lm(), peft.LoraConfig(task_type="CAUSAL_LM")))
        fix_generation_config(model, zoo.tokenizer())
        assert as_ppo_reads(model).shape == (2, 4, 1)
        assert model.pretrained_model.get_base_model().generation_config is model.generation_config

    @pytest.mark.parametrize(("arguments", "message"), [
        ((None, zoo.tokenizer()), "model is None"),
        ((OwnHead(zoo.causal_lm()), None), "tokenizer is None"),
        ((OwnHead(zoo.causal_lm()), zoo.tokenizer(), 512), "generation_config is a int"),
    ])
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ConfigurationError, match=message):
            fix_generation_config(*arguments)


class TestShape:
    def test_by_shape_and_not_by_class(self, value_head):
        assert is_value_head_model(value_head)
        inner, note = unwrap_policy(value_head)
        assert inner is value_head.pretrained_model and "is taken as the policy" in note
        assert not is_value_head_model(inner) and unwrap_policy(inner) == (inner, None)
        assert not is_value_head_model(zoo.sequence_classifier())


if zoo.has("ppo"):

    class TestInTRLsTrainer:
        """The table of `value_head`'s text, row by row: without the fix and with it, on TRL's own class and trainer."""

        @pytest.fixture(params=list(BASES))
        def base(self, request):
            return BASES[request.param]

        def head(self, base, seed=3):
            return trls_head().from_pretrained(base(seed=seed))

        def test_bare_value_model(self, base, tmp_path):
            with pytest.raises(AttributeError, match="base_model_prefix"):
                zoo.trainer("ppo", tmp_path, model=base(), value_model=self.head(base))

        def test_bare_reward_model(self, base, tmp_path):
            with pytest.raises(AttributeError, match="base_model_prefix"):
                train(tmp_path, model=base(), reward_model=self.head(base))

        @pytest.mark.parametrize("role", ["value_model", "reward_model"])
        def test_a_prefix_alone(self, base, role, tmp_path):
            model = self.head(base)
            model.base_model_prefix = "pretrained_model"
            with pytest.raises(AttributeError, match="score"):
                train(tmp_path, model=base(), **{role: model})

        @pytest.mark.parametrize("roles", [("value_model",), ("reward_model",), ("value_model", "reward_model")], ids="+".join)
        def test_fixed_they_train_and_save(self, base, roles, tmp_path):
            parts = {role: fix_generation_config(self.head(base, seed), zoo.tokenizer()) for seed, role in enumerate(roles)}
            before = {role: copy.deepcopy(model.v_head.state_dict()) for role, model in parts.items()}
            trainer = train(tmp_path, model=base(seed=7), **parts)
            assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2" / "model.safetensors").exists()
            moved = {
                role: any(not torch.equal(old, model.v_head.state_dict()[name]) for name, old in before[role].items())
                for role, model in parts.items()
            }
            assert moved == {role: role == "value_model" for role in roles}, "the value head learns and the reward stands still"

        def test_a_bare_policy(self, base, tmp_path):
            with pytest.raises(AttributeError, match="generation_config"):
                zoo.trainer("ppo", tmp_path, model=self.head(base))

        def test_a_policy_with_a_generation_config(self, base, tmp_path):
            model = self.head(base)
            model.generation_config = GenerationConfig()
            with pytest.raises(AttributeError, match="is_gradient_checkpointing"):
                zoo.trainer("ppo", tmp_path, model=model)

        def test_a_fixed_policy_is_built_but_returns_a_tuple(self, base, tmp_path):
            with pytest.raises(AttributeError, match="'tuple' object has no attribute 'logits'"):
                train(tmp_path, model=fix_generation_config(self.head(base), zoo.tokenizer()))

        def test_an_unwrapped_policy_trains_beside_its_own_value_head(self, base, tmp_path):
            whole = fix_generation_config(self.head(base), zoo.tokenizer())
            trainer = train(tmp_path, model=unwrap_policy(whole)[0], ref_model=None, value_model=whole)
            assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2" / "model.safetensors").exists()

        def test_own_heads_train_too(self, base, tmp_path):
            heads = [fix_generation_config(OwnHead(base(seed=seed)), zoo.tokenizer()) for seed in (1, 2)]
            assert train(tmp_path, model=base(), value_model=heads[0], reward_model=heads[1]).state.global_step == 2

        def test_prepared_models_train(self, base, tmp_path):
            base().save_pretrained(tmp_path / "base")
            zoo.tokenizer().save_pretrained(tmp_path / "base")
            with pytest.warns(UserWarning, match=NOISE):
                policy, reference, reward, tokenizer = prepare_models_for_ppo(str(tmp_path / "base"))
            with pytest.warns(UserWarning, match="value_model was not given"):
                value = value_model_from(policy)
            trainer = train(
                tmp_path, model=policy, ref_model=reference, reward_model=reward, value_model=value, processing_class=tokenizer
            )
            assert trainer.state.global_step == 2

        def test_a_policy_with_an_adapter_trains_without_a_reference(self, base, tmp_path):
            adapted = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out=base is gpt2))
            with pytest.warns(UserWarning, match=NOISE):
                policy, reference, reward, tokenizer = prepare_models_for_ppo(adapted, zoo.tokenizer())
            assert reference is None
            trainer = train(tmp_path, model=policy, ref_model=None, reward_model=reward, processing_class=tokenizer)
            assert trainer.state.global_step == 2


def without_pad(**specials):
    """The zoo's tokenizer without a padding token."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=zoo.tokenizer().backend_tokenizer, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"], **specials,
    )
    assert tokenizer.pad_token_id is None
    return tokenizer


class TestPrepareModels:
    @pytest.fixture
    def path(self, tmp_path):
        zoo.causal_lm(eos_bias=2.0).save_pretrained(tmp_path / "base")
        zoo.tokenizer().save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    @pytest.fixture
    def reward(self):
        return zoo.sequence_classifier(seed=4)

    def test_from_a_path(self, path):
        with pytest.warns(UserWarning) as caught:
            policy, reference, reward, tokenizer = prepare_models_for_ppo(path)
        assert [NOISE in str(warning.message) for warning in caught] == [True]
        assert caught[0].filename == __file__
        assert type(policy) is transformers.LlamaForCausalLM and type(reward) is transformers.LlamaForSequenceClassification
        assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == 0
        assert reference is not policy and not reference.training
        assert not any(p.requires_grad for model in (reference, reward) for p in model.parameters())
        assert all(p.requires_grad for p in policy.parameters())
        ids = torch.tensor([[1, 4, 5]])
        assert torch.equal(policy.eval()(ids).logits, reference(ids).logits)
        assert reward.score.out_features == 1 and as_ppo_reads(reward).shape == (2, 4, 1)
        assert policy.generation_config.eos_token_id == 2

    @pytest.mark.parametrize("base", list(BASES))
    def test_from_a_model_that_is_built(self, base):
        model = BASES[base]()
        with pytest.warns(UserWarning, match=NOISE):
            policy, _, reward, _ = prepare_models_for_ppo(model, zoo.tokenizer())
        assert policy is model and has_untrained_head(reward)
        theirs, ours = (getattr(m, m.base_model_prefix).state_dict() for m in (reward, model))
        assert all(torch.equal(theirs[name], ours[name]) for name in ours), "the backbone is the base's"
        assert {p.data_ptr() for p in reward.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())

    def test_what_is_given_is_used_and_nothing_is_said(self, path, reward):
        reference = zoo.causal_lm(seed=9)
        own = GenerationConfig(max_length=40)
        parts = prepare_models_for_ppo(path, zoo.tokenizer(), own, ref_model=reference, reward_model=reward)
        assert parts[1] is reference and parts[2] is reward
        assert parts[0].generation_config.max_length == reference.generation_config.max_length == 40
        assert own.eos_token_id is None, "the caller's own is copied: each model has its own stop token"

    def test_models_from_paths(self, path, reward, tmp_path):
        reward.save_pretrained(tmp_path / "reward")
        parts = prepare_models_for_ppo(path, path, ref_model=path, reward_model=str(tmp_path / "reward"))
        assert not has_untrained_head(parts[2]) and torch.equal(parts[2].score.weight, reward.score.weight)
        assert not any(p.requires_grad for p in parts[1].parameters())

    def test_a_reward_model_that_was_none(self, path):
        with pytest.warns(UserWarning, match=r"base\) was loaded with an untrained head"):
            prepare_models_for_ppo(path, reward_model=path)

    def test_a_value_head_model_is_unwrapped(self, value_head, reward, caplog):
        with caplog.at_level(logging.WARNING, logger="rldk"):
            policy, *_ = prepare_models_for_ppo(value_head, zoo.tokenizer(), reward_model=reward)
        assert policy is value_head.pretrained_model and "is taken as the policy" in caplog.text

    def test_an_adapter_is_its_own_reference(self, reward):
        adapted = peft.get_peft_model(zoo.causal_lm(), peft.LoraConfig(task_type="CAUSAL_LM"))
        assert prepare_models_for_ppo(adapted, zoo.tokenizer(), reward_model=reward)[1] is None
        plain = prepare_models_for_ppo(zoo.causal_lm(), zoo.tokenizer(), reward_model=reward, peft_config=peft.LoraConfig())
        assert plain[1] is None

    def test_a_value_model_from_an_adapter_has_the_base_without_it(self):
        base = zoo.causal_lm()
        plain = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
        adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
        with pytest.warns(UserWarning, match="value_model was not given"):
            model = value_model_from(adapted)
        assert all(torch.equal(tensor, plain[name]) for name, tensor in model.model.state_dict().items())
        assert any("lora" in name for name, _ in adapted.named_parameters())

    def test_a_value_model_from_a_reward_model_keeps_its_head(self, reward):
        for p in reward.parameters():
            p.requires_grad_(False)
        model = value_model_from(reward)
        assert model is not reward and torch.equal(model.score.weight, reward.score.weight)
        assert all(p.requires_grad for p in model.parameters())

    def test_a_value_head_model_is_a_value_model(self, value_head):
        assert value_model_from(value_head) is value_head

    def test_dtype_and_more(self, path):
        with pytest.warns(UserWarning, match=NOISE):
            policy, _, reward, _ = prepare_models_for_ppo(path, dtype=torch.bfloat16, model_kwargs={"attn_implementation": "eager"})
        assert policy.dtype == reward.dtype == torch.bfloat16
        assert policy.config._attn_implementation == "eager"

    def test_a_model_that_does_not_say_where_it_came_from(self):
        with pytest.raises(ConfigurationError, match="pass tokenizer="):
            prepare_models_for_ppo(zoo.causal_lm())

    def test_a_base_without_a_classifier(self):
        config = transformers.CodeGenConfig(vocab_size=32, n_positions=64, n_ctx=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
        with pytest.raises(ConfigurationError, match="reward_model is not given, and transformers has no sequence classifier"):
            prepare_models_for_ppo(transformers.CodeGenForCausalLM(config), zoo.tokenizer())


class TestPadding:
    def prepare(self, tokenizer, model=None):
        return prepare_models_for_ppo(
            model or zoo.causal_lm(), tokenizer, ref_model=zoo.causal_lm(1), reward_model=zoo.sequence_classifier()
        )

    def test_a_padding_token_that_the_vocabulary_has(self):
        tokenizer = without_pad(eos_token="</s>", unk_token="<unk>")
        with pytest.warns(UserWarning, match="token '<pad>' pads now"):
            models = self.prepare(tokenizer)
        assert tokenizer.pad_token == "<pad>" and len(tokenizer) == 32
        assert [embedding_rows(model) for model in models[:3]] == [32, 32, 32]

    @pytest.mark.parametrize(("specials", "pad", "said"), [
        ({"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>", "token '<unk>' pads now"),
        ({"eos_token": "</s>", "unk_token": "</s>"}, "</s>", "its EOS token '</s>' pads now"),
        ({"eos_token": "</s>"}, "</s>", "its EOS token '</s>' pads now"),
    ])
    def test_a_token_that_is_there_already_pads(self, specials, pad, said, monkeypatch):
        monkeypatch.setattr("rldk.integrations.trl.models._PAD_NAMES", ("<none of this name>",))
        tokenizer = without_pad(**specials)
        with pytest.warns(UserWarning, match=said):
            models = self.prepare(tokenizer)
        assert tokenizer.pad_token == pad and len(tokenizer) == 32
        assert [embedding_rows(model) for model in models[:3]] == [32, 32, 32]

    def test_a_new_token_grows_every_model_and_is_said(self, monkeypatch):
        monkeypatch.setattr("rldk.integrations.trl.models._PAD_NAMES", ("<new pad>",))
        tokenizer = without_pad()
        with pytest.warns(UserWarning) as caught:
            models = self.prepare(tokenizer)
        said = [str(warning.message) for warning in caught]
        assert any("'<new pad>' was added as id 32" in text for text in said)
        assert any("model, ref_model, reward_model were resized to 33" in text for text in said)
        assert [embedding_rows(model) for model in models[:3]] == [33, 33, 33]

    def test_tokens_that_the_user_added_are_kept(self):
        tokenizer = zoo.tokenizer()
        tokenizer.add_tokens(["<think>", "</think>"])
        with pytest.warns(UserWarning) as caught:
            policy, reference, reward, _ = prepare_models_for_ppo(zoo.causal_lm(), tokenizer)
        assert [embedding_rows(model) for model in (policy, reference, reward)] == [34, 34, 34]
        assert any("were resized to 34" in str(warning.message) for warning in caught)
        ids = torch.tensor([[1, 32, 33]])
        assert torch.equal(policy.eval()(ids).logits, reference(ids).logits), "the new rows are the same: KL begins at 0"

    def test_a_model_of_another_vocabulary_is_not_bent(self):
        tokenizer = zoo.tokenizer()
        tokenizer.add_tokens(["<think>"])
        small = zoo.sequence_classifier()
        small.resize_token_embeddings(20)
        with pytest.warns(UserWarning, match="those of model were resized"):
            prepare_models_for_ppo(zoo.causal_lm(), tokenizer, reward_model=small)
        assert embedding_rows(small) == 20

    def test_rows_to_spare_are_not_cut_off(self):
        model = zoo.causal_lm()
        model.resize_token_embeddings(40)
        assert embedding_rows(self.prepare(zoo.tokenizer(), model)[0]) == 40
