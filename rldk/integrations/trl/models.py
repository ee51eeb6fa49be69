"""The models of a PPO run, from a name or from a model that is there already: policy, reference, reward, value.

Nothing here asks the network for more than transformers' own `from_pretrained` does: a local path is enough.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ...exceptions import ConfigurationError
from .value_head import fix_generation_config, is_value_head_model, unwrap_policy

__all__ = [
    "embedding_rows",
    "has_untrained_head",
    "prepare",
    "prepare_models_for_ppo",
    "value_model_from",
    "vocabulary_size",
]

logger = logging.getLogger("rldk")

# Names under which vocabularies keep a padding token that their tokenizer does not declare.
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")
_UNTRAINED = "_rldk_untrained_head"


def prepare_models_for_ppo(
    model_name: Any,
    tokenizer: Any = None,
    generation_config: Any = None,
    *,
    ref_model: Any = None,
    reward_model: Any = None,
    peft_config: Any = None,
    dtype: Any = None,
    trust_remote_code: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Loads or completes the models of a PPO run.

    Args:
        model_name: A path, a name on the hub, or a language model that is built already. Of a value-head model the language
            model is taken.
        tokenizer: A tokenizer, its path or its name; None loads the model's own. It is set to pad on the left, and gets a padding
            token if it has none: a token that is there already if there is one, with a warning that says which.
        generation_config: For the policy and the reference, in place of their own.
        ref_model: The reference, built or a path. None makes a frozen copy of the policy, or None for a PEFT policy, whose
            reference is itself with the adapter switched off.
        reward_model: The reward model, built or a path. None builds one on the base with an untrained head and warns.
        peft_config: Given if the trainer will wrap the policy with it; then no reference is copied.
        dtype: Of the weights that are loaded, such as ``torch.bfloat16``; None leaves it to transformers.
        trust_remote_code: As for `from_pretrained`.
        model_kwargs: More arguments of `from_pretrained`, for each model that is loaded.

    Returns:
        The policy, the reference (or None), the reward model, the tokenizer. The reference and a reward model that was loaded
        or built here are frozen and in eval mode.

    Raises:
        ConfigurationError: If no tokenizer can be told from the model, or the base has no sequence classifier in transformers.

    Warns:
        UserWarning: If a head is untrained, if a token was put to use as padding, and if embeddings were resized.
    """
    return prepare(
        model_name, tokenizer, generation_config, ref_model=ref_model, reward_model=reward_model, peft_config=peft_config,
        dtype=dtype, trust_remote_code=trust_remote_code, model_kwargs=model_kwargs,
    )


def prepare(
    model_name: Any,
    tokenizer: Any,
    generation_config: Any,
    *,
    ref_model: Any,
    reward_model: Any,
    peft_config: Any,
    dtype: Any = None,
    trust_remote_code: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    with_reward: bool = True,
) -> tuple[Any, Any, Any, Any]:
    """As `prepare_models_for_ppo`, for a public function to call: warnings point at that function's caller.

    `with_reward` says whether a reward model that is not given is built; not where functions score the responses.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **(model_kwargs or {})}
    if dtype is not None:
        options["dtype"] = dtype
    notes: list[str] = []
    text = _tokenizer(model_name, tokenizer, trust_remote_code)
    notes += _pad(text)

    policy = AutoModelForCausalLM.from_pretrained(model_name, **options) if isinstance(model_name, str) else model_name
    policy, note = unwrap_policy(policy)
    if note:
        logger.warning("rldk: %s", note)
    rows, needed = embedding_rows(policy), vocabulary_size(text)
    if isinstance(ref_model, str):
        ref_model = _frozen(AutoModelForCausalLM.from_pretrained(ref_model, **options))
    if isinstance(reward_model, str) or (reward_model is None and with_reward):
        how = "was not given and is built on the base" if reward_model is None else f"({reward_model}) was loaded"
        base = model_name if isinstance(model_name, str) else policy
        reward_model = _frozen(_classifier(reward_model or base, "reward_model", options))
        if has_untrained_head(reward_model):
            notes.append(
                f"reward_model {how} with an untrained head: its rewards are noise, and PPO will train on that noise. "
                "Pass a trained reward_model, or reward functions."
            )
    models = {"model": policy, "ref_model": ref_model, "reward_model": reward_model}
    notes += _fit(models, rows, needed)

    if ref_model is None and peft_config is None and not _is_peft(policy):
        # A copy made after resizing has the policy's own new rows: the divergence from it begins at zero.
        ref_model = _frozen(copy.deepcopy(policy))
    for model, own in ((policy, generation_config), (ref_model, generation_config), (reward_model, None)):
        if model is not None:
            fix_generation_config(model, text, copy.deepcopy(own))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return policy, ref_model, reward_model, text


def value_model_from(source: Any, *, stacklevel: int = 2, **options: Any) -> Any:
    """Builds a value model: a sequence classifier with one output, trainable.

    Args:
        source: A path or a name; a language model, whose backbone is copied; a reward model, which is copied with its head, the
            usual start of a value model; or a value-head model, which is one already and is returned as it is, sharing
            its backbone.
        stacklevel: Of the warning, as for `warnings.warn`.
        **options: Arguments of `from_pretrained`, if `source` is a name.

    Returns:
        The value model.

    Raises:
        ConfigurationError: If the base has no sequence classifier in transformers.

    Warns:
        UserWarning: If its head is untrained.
    """
    if is_value_head_model(source):
        return source
    model = _classifier(source, "value_model", options).requires_grad_(True)
    if has_untrained_head(model):
        warnings.warn(
            "value_model was not given and is built on the base with an untrained head: until it has learnt, advantages are noise. "
            "A value model that starts from a trained reward model learns faster.",
            UserWarning, stacklevel=stacklevel,
        )
    return model


def has_untrained_head(model: Any) -> bool:
    """Whether rldk built this model's head and nothing has been loaded into it."""
    return bool(getattr(model, _UNTRAINED, False))


def embedding_rows(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None if that cannot be told."""
    model = unwrap_policy(model)[0]
    try:
        embeddings = model.get_input_embeddings()
        return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0]) or None
    except (AttributeError, NotImplementedError, TypeError, IndexError):
        return None  # a reward model of one's own need have no embeddings


def vocabulary_size(tokenizer: Any) -> int:
    """How many embeddings a tokenizer asks for: one more than its highest id, which holes can put above its length."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def _is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")  # only a PeftModel has the latter as a context


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()


def _tokenizer(model_name: Any, tokenizer: Any, trust_remote_code: bool) -> Any:
    if tokenizer is None:
        tokenizer = model_name
        if not isinstance(model_name, str):
            tokenizer = getattr(getattr(unwrap_policy(model_name)[0], "config", None), "_name_or_path", None)
        if not tokenizer:
            raise ConfigurationError(
                f"tokenizer is None and the model ({type(model_name).__name__}) does not say where it came from: pass tokenizer="
            )
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
    return tokenizer if hasattr(tokenizer, "eos_token_id") else getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one


def _pad(tokenizer: Any) -> list[str]:
    """Sets left padding and a padding token; says in sentences what it put to use."""
    if tokenizer.padding_side != "left":
        # Padded on the right, the first token of a response would be sampled after padding.
        logger.info("rldk: padding_side was %r and is now 'left', as generation needs it", tokenizer.padding_side)
        tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is not None:
        return []
    vocabulary = tokenizer.get_vocab()
    kept = next((name for name in _PAD_NAMES if name in vocabulary), None)
    if kept is None and tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
        kept = tokenizer.unk_token
    if kept is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
        return [
            f"The tokenizer has no padding token: its EOS token {tokenizer.eos_token!r} pads now. TRL's own PPO trainer tells padding "
            "by this id and so cannot see where a response ended; set tokenizer.pad_token to another token if there is one."
        ]
    if kept is not None:
        tokenizer.pad_token = kept
        return [f"The tokenizer has no padding token: its token {kept!r} pads now."]
    tokenizer.add_special_tokens({"pad_token": _PAD_NAMES[0]})
    return [
        f"The tokenizer has no padding token and none that could serve: {_PAD_NAMES[0]!r} was added as id {tokenizer.pad_token_id}. "
        "Save this tokenizer with the models."
    ]


def _fit(models: Mapping[str, Any], rows: int | None, needed: int) -> list[str]:
    """Grows embeddings that the tokenizer has outgrown; says which.

    A model with another number of rows than the policy had has another vocabulary: growing it would only hide that, and
    `validate_ppo_setup` reports it.
    """
    if rows is None or needed <= rows:
        return []  # rows to spare are common (vocabularies are padded to a round number) and are never cut off
    grown = []
    for name, model in models.items():
        if model is not None and embedding_rows(model) == rows:
            model.resize_token_embeddings(needed)
            grown.append(name)
    return [
        f"The tokenizer has {needed} tokens and the models {rows} embeddings: those of {', '.join(grown)} were resized to {needed}. "
        "The new rows are untrained. Save tokenizer and models together."
    ]


def _classifier(source: Any, role: str, options: Mapping[str, Any]) -> Any:
    """A sequence classifier with one output, marked if its head is untrained."""
    try:
        if isinstance(source, str):
            model, info = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, output_loading_info=True, **options)
            untrained = any(not key.startswith(f"{model.base_model_prefix}.") for key in info["missing_keys"])
        else:
            source = unwrap_policy(source)[0]
            if hasattr(source, "score"):
                return copy.deepcopy(source)
            model, untrained = _on_backbone_of(source, role), True
    except ValueError as error:
        if "AutoModelForSequenceClassification" not in str(error):
            raise
        raise ConfigurationError(
            f"{role} is not given, and transformers has no sequence classifier for {source if isinstance(source, str) else type(source).__name__}: "
            f"pass {role}="
        ) from error
    setattr(model, _UNTRAINED, untrained)
    return model


def _on_backbone_of(source: Any, role: str) -> Any:
    """A new classifier with a copy of a language model's backbone, without its adapters."""
    base = copy.deepcopy(source).unload() if _is_peft(source) else source
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    first = next(base.parameters())
    model.to(device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad():
            getattr(model, model.base_model_prefix).load_state_dict(getattr(base, base.base_model_prefix).state_dict())
    except (AttributeError, RuntimeError) as error:
        raise ConfigurationError(
            f"{role} is not given, and the backbone of {type(base).__name__} could not be copied into {type(model).__name__} "
            f"({error}): pass {role}="
        ) from error
    return model
