"""All that knows value-head models: a language model with a second head that says what a text is worth.

TRL's `AutoModelForCausalLMWithValueHead` is one; TRL shipped it until 1.12, and copies of it live on in users' own code. They
are known by their shape, a `pretrained_model` and a `v_head`, and not by their class.

TRL's PPO trainer takes every model for a transformers model and reads from it what a value-head model never had. Measured on
TRL 0.23.1 and 1.12.0, on Llama and GPT-2:

| as | it reads | and dies with |
|---|---|---|
| value or reward model | `base_model_prefix`, the backbone of that name, `score` | AttributeError base_model_prefix, then score |
| policy | `generation_config`, `is_gradient_checkpointing`, `logits` of the output | AttributeError, and 'tuple' object has no attribute 'logits' |

`fix_generation_config` cures all but the last: a value-head model's output is a tuple, so it cannot be the policy, and
`unwrap_policy` takes the language model out of it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import GenerationConfig

from ...exceptions import ConfigurationError

__all__ = ["fix_generation_config", "is_value_head_model", "unwrap_policy"]

_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")
_BACKBONE = "pretrained_model"


def is_value_head_model(model: Any) -> bool:
    """Tells whether a model is a language model with a value head beside it, by its shape."""
    return hasattr(model, _BACKBONE) and hasattr(model, "v_head")


def unwrap_policy(model: Any) -> tuple[Any, str | None]:
    """Takes the language model out of a value-head model, which no PPO trainer can train as the policy.

    Args:
        model: Any model.

    Returns:
        What can be the policy, and one sentence for the user if that is not `model` itself, else None. The weights are shared,
        not copied: the value-head model may go on serving as the value model.
    """
    if not is_value_head_model(model):
        return model, None
    inner = getattr(model, _BACKBONE)
    return inner, (
        f"model is a {type(model).__name__}, whose forward returns a tuple that PPO cannot train on: its pretrained_model "
        f"({type(inner).__name__}) is taken as the policy. Pass the whole as value_model to use its value head."
    )


def fix_generation_config(model: Any, tokenizer: Any, generation_config: Any = None) -> Any:
    """Gives a model what PPO reads from it and what it may lack. Changes no weight and no key of its `state_dict`.

    A value-head model gets a generation config, `base_model_prefix`, `config`, `warnings_issued`, and live views of its parts:
    `score` (its `v_head`), `device` and `is_gradient_checkpointing`. What it has already stays, so a second call does nothing.
    Any other model (language model, sequence classifier, PEFT model) gets a generation config if it has none, and the ids
    of the tokens that are missing.

    Ids come from the tokenizer. An id that somebody set in the generation config stays; one that transformers derived from
    the model's config gives way to the tokenizer, which makes the texts that PPO trains on.

    Args:
        model: The model, changed in place.
        tokenizer: The tokenizer (or processor) of the run.
        generation_config: To use in place of the default: max_length 512, sampling at temperature 1.0 and top_p 1.0 from all
            of the vocabulary, since log-probabilities of PPO are those of the whole distribution. Missing ids are filled in,
            in this very object.

    Returns:
        The same model.

    Raises:
        ConfigurationError: If `model` or `tokenizer` is None, or `generation_config` is no `GenerationConfig`.
    """
    if model is None or tokenizer is None:
        raise ConfigurationError(f"{'model' if model is None else 'tokenizer'} is None: fix_generation_config needs both")
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        raise ConfigurationError(
            f"generation_config is a {type(generation_config).__name__}: pass a transformers.GenerationConfig or None"
        )
    ids = _token_ids(tokenizer)
    layers = _layers(model)
    own = generation_config if generation_config is not None else getattr(model, "generation_config", None)
    if own is None:
        own = GenerationConfig(
            max_length=512, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
            **{name: value for name, value in ids.items() if value is not None},
        )
    for layer in layers:
        inner = getattr(layer, "generation_config", None)
        # generate() is the innermost model's: what nobody chose there gives way, what somebody chose stays.
        if generation_config is not None or inner is None or (is_value_head_model(model) and _derived(inner)):
            layer.generation_config = inner = own
        _fill(inner, ids, getattr(layer, "config", None))
    for layer in layers:
        config = getattr(layer, "config", None)
        for name, value in ids.items():
            if config is not None and value is not None and getattr(config, name, None) is None:
                setattr(config, name, value)  # without a pad id a sequence classifier refuses batches
    if is_value_head_model(model):
        _give_base_attributes(model)
    return model


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
    text = tokenizer if hasattr(tokenizer, "eos_token_id") else getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
    return {name: getattr(text, name, None) for name in _IDS}


def _layers(model: Any) -> list[Any]:
    """The model, and what it wraps: the language model in a value head, the base in a PEFT model."""
    found = [model]
    while len(found) < 4:  # a value head around a PEFT model around a model is the deepest there is
        last = found[-1]
        if is_value_head_model(last):
            inner = getattr(last, _BACKBONE)
        elif hasattr(last, "get_base_model"):
            inner = last.get_base_model()
        else:
            break
        if inner is last:
            break
        found.append(inner)
    return found


def _derived(generation_config: Any) -> bool:
    """Whether transformers made it from the model's config, so that nobody has chosen it."""
    return bool(getattr(generation_config, "_from_model_config", False))


def _fill(generation_config: Any, ids: dict[str, int | None], config: Any) -> None:
    for name, value in ids.items():
        current = getattr(generation_config, name, None)
        nobody_chose = _derived(generation_config) and current == getattr(config, name, None)
        if value is not None and current != value and (current is None or nobody_chose):
            setattr(generation_config, name, value)


def _give_base_attributes(model: Any) -> None:
    inner = getattr(model, _BACKBONE)
    prefix = getattr(model, "base_model_prefix", None)
    if not prefix or getattr(model, prefix, None) is None:
        model.base_model_prefix = _BACKBONE
    if not hasattr(model, "config") and hasattr(inner, "config"):
        model.config = inner.config
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = getattr(inner, "warnings_issued", None) or {}
    missing = tuple(name for name in _VIEWS if not hasattr(model, name))
    if missing:
        base: Any = type(model)
        model.__class__ = _with_views(base, missing)


# Views, not attributes. A module assigned under a second name is registered twice: its weights appear twice in state_dict, and
# safetensors refuses to save tensors that share memory. A device written down once is wrong after `.to(...)`. Only a class
# can hold a property, so the model gets a subclass of its own, as torch's fully_shard and parametrize do it too.
_VIEWS: dict[str, property] = {
    "score": property(lambda self: self.v_head),
    "device": property(lambda self: next((p.device for p in self.parameters()), torch.device("cpu"))),
    "is_gradient_checkpointing": property(
        lambda self: bool(getattr(getattr(self, _BACKBONE), "is_gradient_checkpointing", False))
    ),
}


@functools.cache
def _with_views(base: Any, names: tuple[str, ...]) -> Any:
    """A subclass that goes by its base's name, with views; its instances can be copied and pickled."""
    body: dict[str, Any] = {name: _VIEWS[name] for name in names}
    # By name, the pickled class would be taken for its base and refused.
    body["__reduce__"] = lambda self: (_rebuild, (base, names), self.__dict__)
    body |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), body)


def _rebuild(base: Any, names: tuple[str, ...]) -> Any:
    made = _with_views(base, names)
    return made.__new__(made)
