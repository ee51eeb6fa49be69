"""What can be wrong with the tokenizer and the models of a PPO run. Each check yields what it found, and changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._ppo_setup import Check, Findings, Level, Setup
from .models import has_untrained_head, vocabulary_size
from .value_head import is_value_head_model, unwrap_policy

__all__ = ["CHECKS"]

_ROTARY = ("rope_parameters", "rope_theta", "rotary_pct", "rotary_dim", "alibi")


def tokens(setup: Setup) -> Findings:
    """Padding and EOS."""
    text = setup.tokenizer
    if text is None:
        yield "issues", "tokenizer is None: pass the policy's tokenizer"
        return
    pad, eos = getattr(text, "pad_token_id", None), getattr(text, "eos_token_id", None)
    if eos is None:
        yield "issues", "tokenizer.eos_token is None: no response can end; set tokenizer.eos_token to the token that ends a text"
    if pad is None:
        effect = "prompts cannot be batched" if setup.on_trl else "EOS will stand in for it"
        yield ("issues" if setup.on_trl else "warnings"), f"tokenizer.pad_token is None: {effect}; prepare_models_for_ppo sets one"
    elif pad == eos and setup.on_trl:
        yield "warnings", (
            f"tokenizer.pad_token is its EOS ({text.pad_token!r}): TRL's trainer tells padding by its id, so the EOS that ends a "
            "response is masked like padding; set tokenizer.pad_token to a token that texts do not use"
        )
    if setup.on_trl and getattr(text, "padding_side", "left") != "left":
        yield "warnings", (
            f"tokenizer.padding_side is {text.padding_side!r}: the first token of a response would be sampled after padding; "
            "set tokenizer.padding_side = 'left'"
        )


def vocabularies(setup: Setup) -> Findings:
    """Tokens that a model has no embedding for, and models of different vocabularies."""
    rows = setup.rows_of_embeddings()
    own_tokenizer = setup.reward_tokenizer is not None
    text = setup.tokenizer
    if own_tokenizer and setup.on_trl and text is not None and setup.reward_tokenizer.get_vocab() != text.get_vocab():
        yield "issues", (
            "reward_tokenizer is another than tokenizer: TRL's trainer hands the policy's token ids to the reward model, where "
            "they mean other words; use a reward model of the policy's tokenizer, or backend='rldk'"
        )
    needed = vocabulary_size(text) if text is not None else 0
    for name, known in rows.items():
        if name == "reward_model" and own_tokenizer:
            continue
        if known < needed:
            yield "issues", (
                f"tokenizer has {needed} tokens and {name} {known} embeddings: ids from {known} on are out of range; "
                f"call {name}.resize_token_embeddings({needed}), or use the tokenizer that the model was trained with"
            )
        elif name != "model" and known != rows.get("model", known):
            yield "warnings", (
                f"{name} has {known} embeddings and model {rows['model']}: if they were trained with different tokenizers, "
                f"a token id means another word to {name}"
            )
    highest = max((max(ids, default=0) for ids in setup.prompts), default=-1)
    if "model" in rows and highest >= rows["model"]:
        yield "issues", (
            f"train_dataset has token id {highest} and model {rows['model']} embeddings: tokenise the prompts with tokenizer"
        )


def special_ids(setup: Setup) -> Findings:
    """A reward model whose special tokens are not the tokenizer's may have been trained with another one.

    A sign and no proof: one vocabulary can have several tokens that end a text, and padding is anyone's choice. So the padding id
    is asked only where there is no EOS, and this is no warning.
    """
    config = getattr(setup.reward_model, "config", None)
    if setup.tokenizer is None or setup.reward_tokenizer is not None or config is None:
        return
    name = "pad_token_id" if getattr(config, "eos_token_id", None) is None else "eos_token_id"
    theirs, ours = getattr(config, name, None), getattr(setup.tokenizer, name, None)
    if theirs is not None and ours is not None and ours not in (theirs if isinstance(theirs, (list, tuple)) else [theirs]):
        yield "recommendations", (
            f"reward_model.config.{name} is {theirs} and tokenizer.{name} is {ours}: make sure that the reward model was trained with "
            "this tokenizer; with another one its rewards mean nothing"
        )


def policy(setup: Setup) -> Findings:
    """What cannot be trained as a policy."""
    model = setup.policy
    note = unwrap_policy(setup.model)[1]
    if note:
        yield "warnings", f"{note} create_ppo_trainer does so; TRL's PPOTrainer itself has to be given model.pretrained_model"
    if model is None:
        yield "issues", "model is None: pass the language model to train"
        return
    if isinstance(model, str):
        return  # a name: there is nothing to look at yet
    config = getattr(model, "config", None)
    can = getattr(model, "can_generate", None)
    if not callable(getattr(model, "generate", None)) or (callable(can) and not can()):
        yield "issues", f"model is a {type(model).__name__}, which cannot generate text: pass a causal language model"
    elif getattr(config, "is_encoder_decoder", False):
        yield "issues", f"model is a {type(model).__name__}, an encoder-decoder: PPO here trains decoder-only language models"
    elif setup.on_trl and getattr(model, "generation_config", None) is None:
        yield "issues", f"model ({type(model).__name__}) has no generation_config, which PPO sets the stop token in: call fix_generation_config"
    adapted = hasattr(model, "peft_config") and hasattr(model, "disable_adapter")
    if setup.peft_config is not None and adapted:
        yield "issues", "peft_config is given and model has an adapter already: pass one of the two"
    elif setup.peft_config is None and isinstance(model, nn.Module) and not any(p.requires_grad for p in model.parameters()):
        yield "issues", f"model ({type(model).__name__}) has no trainable parameter: it would learn nothing; set requires_grad, or pass peft_config"
    if adapted and setup.ref_model is not None:
        yield "recommendations", "model has an adapter: with ref_model=None it is its own reference with the adapter off, at no memory"


def precision(setup: Setup) -> Findings:
    """Weights in float16 under training."""
    for name in ("model", "value_model"):
        model = setup.roles.get(name)
        if isinstance(model, nn.Module) and any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
            if setup.arg("fp16", False):
                yield "issues", f"{name} has trainable float16 weights and args.fp16 is True: gradients cannot be unscaled; load it with dtype=torch.float32"
            else:
                yield "warnings", f"{name} has trainable float16 weights: small updates round to nothing and large ones overflow; load it with dtype=torch.float32 or bfloat16"


def identity(setup: Setup) -> Findings:
    """One model in two roles, of which one must stand still."""
    reference = setup.roles.get("ref_model")
    if reference is not None and unwrap_policy(reference)[0] is setup.policy:
        yield "issues", "ref_model is model, the same object: the divergence would be 0 whatever is learnt; pass a copy, or None"
        return
    moving = {
        name: _storages(setup.roles.get(name), trainable=True) for name in ("model", "value_model") if setup.peft_config is None
    }
    effects: dict[str, tuple[Level, str]] = {
        "ref_model": ("issues", "it moves as the policy learns; pass a copy, or None"),
        "reward_model": (
            ("warnings", "its rewards drift while others learn; pass a copy") if setup.on_trl
            else ("issues", "it is frozen, and so would they be; pass a copy")
        ),
    }
    for name, (level, effect) in effects.items():
        fixed = _storages(setup.roles.get(name), trainable=False)
        for other, theirs in moving.items():
            if fixed & theirs:
                yield level, f"{name} shares trainable weights with {other}: {effect}"
                break


def _storages(model: Any, *, trainable: bool) -> set[int]:
    if not isinstance(model, nn.Module):
        return set()
    # 0 is where weights on no device, or partitioned away, all lie
    kept = (p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad or not trainable)
    return {pointer for pointer in kept if pointer}


def heads(setup: Setup) -> Findings:
    """What PPO reads from the reward and the value model."""
    if setup.value_model is None and setup.on_trl:
        yield "recommendations", "value_model is None: create_ppo_trainer builds one; TRL's PPOTrainer itself has to be given one"
    for name in ("reward_model", "value_model"):
        model = setup.roles.get(name)
        if model is None:
            continue
        prefix = getattr(model, "base_model_prefix", None)
        missing = [] if prefix and getattr(model, prefix, None) is not None else ["base_model_prefix and the backbone of that name"]
        missing += [] if callable(getattr(model, "score", None)) else ["score"]
        if missing and is_value_head_model(model):
            yield "warnings", (
                f"{name} is a {type(model).__name__} without {' and '.join(missing)}: call fix_generation_config({name}, tokenizer); "
                "create_ppo_trainer does so"
            )
        elif missing and (setup.on_trl or name == "value_model" or not callable(model)):
            yield "issues", (
                f"{name} is a {type(model).__name__} without {' and '.join(missing)}, which PPO reads: pass a sequence classifier "
                "with one output (AutoModelForSequenceClassification, num_labels=1)"
            )
        outputs = getattr(getattr(model, "score", None), "out_features", 1)
        if isinstance(outputs, int) and outputs != 1:
            yield "issues", f"{name}.score has {outputs} outputs: PPO takes one number a text; load it with num_labels=1"
    if setup.reward_model is not None and has_untrained_head(setup.reward_model):
        yield "warnings", "reward_model has an untrained head: its rewards are noise, and PPO will train on that noise; pass a trained one"


def positions(setup: Setup) -> Findings:
    """Texts longer than what a model has positions for."""
    response = setup.arg("response_length", 0)
    prompt = max(map(len, setup.prompts), default=0)
    for name, model in setup.roles.items():
        config = getattr(unwrap_policy(model)[0], "config", None)
        known = getattr(config, "max_position_embeddings", None)
        if isinstance(known, int) and 0 < known < prompt + response:
            rotary = any(getattr(config, kind, None) for kind in _ROTARY)
            cure = "shorten the prompts or response_length"
            effect = "it was not trained on what lies beyond" if rotary else "it has no embedding for what lies beyond and fails"
            yield ("warnings" if rotary else "issues"), (
                f"prompts of up to {prompt} tokens and args.response_length={response} make {prompt + response}, and {name} has "
                f"max_position_embeddings={known}: {effect}; {cure}"
            )


def dropout(setup: Setup) -> Findings:
    """Dropout, with which the same weights give other probabilities at each look."""
    if not isinstance(setup.policy, nn.Module):
        return
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in setup.policy.modules()):
        yield "recommendations", "model has dropout, which the trainer turns off in it (p=0): load the trained model anew to have it back"
    if not setup.on_trl:
        return
    # A number that attention reads, and no nn.Dropout, is beyond what TRL's trainer turns off.
    found = [getattr(part, "attention_dropout", None) for part in setup.policy.modules()]
    inside = [share for share in found if isinstance(share, float) and share > 0]
    if inside:
        yield "warnings", (
            f"model has attention_dropout={max(inside)}, which the trainer does not turn off: the ratio is not 1 at unchanged "
            "weights; load the model with attention_dropout=0.0"
        )


CHECKS: tuple[Check, ...] = (tokens, vocabularies, special_ids, policy, precision, identity, heads, positions, dropout)
