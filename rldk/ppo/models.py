"""The module that PPO trains: a policy and its values, in one backbone or two."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..exceptions import ConfigurationError

__all__ = [
    "Outputs", "PolicyAndValue", "ValueHead", "check_apart", "choose_adapters", "freeze", "frozen_copy", "judge_tokens",
    "last_hidden_state", "only_these_settings", "without_dropout",
]

_VALUE_FILE = "value.safetensors"


class Outputs(NamedTuple):
    """What the policy and the critic say of the T tokens of B responses; (B, T) each.

    Attributes:
        logprobs: Of the tokens, nats, at the sampling temperature.
        entropy: Of the distributions that the tokens were drawn from, nats; without gradient.
        values: Of the states before the tokens, in units of the reward.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class ValueHead(nn.Module):
    """A value for each state of a backbone: one linear layer that starts at 0, so that the first values are 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden size) to (..., 1)."""
        values: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return values


class PolicyAndValue(nn.Module):
    """A policy and its critic as one module, so that one optimizer, one checkpoint and one DDP wrapper hold both.

    Args:
        policy: A causal language model, or a PEFT model of one.
        value_model: A model with `base_model_prefix`, that backbone, and `score`. None puts a `ValueHead` on the
            policy's backbone: one backbone in memory, one forward pass for both.

    Attributes:
        policy: As given.
        value_model: As given, or None.
        value_head: The head on the policy's backbone, or None.
    """

    def __init__(self, policy: Any, value_model: Any | None) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.config = policy.config
        self.value_head = None
        if value_model is None:
            embedding = policy.get_input_embeddings().weight
            text_config = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
            self.value_head = ValueHead(text_config.hidden_size).to(embedding.device)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the policy recomputes activations."""
        return bool(getattr(self.policy, "is_gradient_checkpointing", False))

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turns recomputation on in both models; transformers' Trainer calls it, by this name from 5.23 on."""
        self._checkpointing("activation_checkpointing_enable", kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same by the older name."""
        self._checkpointing("gradient_checkpointing_enable", kwargs)

    def _checkpointing(self, method: str, kwargs: dict[str, Any]) -> None:
        for model in (self.policy, self.value_model):
            if getattr(model, "supports_gradient_checkpointing", False):
                getattr(model, method)(**kwargs)
        if hasattr(self.policy, "enable_input_require_grads") and hasattr(self.policy, "peft_config"):
            self.policy.enable_input_require_grads()  # else nothing flows back through frozen embeddings

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, response_length: int, temperature: float,
        policy: bool = True, value: bool = True, entropy: bool = True,
    ) -> Outputs:
        """Judges the last `response_length` tokens of each row.

        Args:
            input_ids: (B, P + T), prompts padded on the left, responses on the right.
            attention_mask: (B, P + T).
            response_length: T.
            temperature: Divides the logits.
            policy: Whether log-probabilities and entropies are wanted; zeros otherwise.
            value: Whether values are wanted; zeros otherwise.
            entropy: Whether entropies are wanted; zeros otherwise.
        """
        nothing = input_ids.new_zeros(input_ids.shape[0], response_length, dtype=torch.float32)
        logprobs = entropies = values = nothing
        shared = value and self.value_head is not None
        if policy or shared:
            logprobs, entropies, hidden = judge_tokens(
                self.policy, input_ids, attention_mask, response_length, temperature, with_hidden=shared, with_entropy=entropy
            )
            if shared and self.value_head is not None:
                values = self.value_head(hidden).squeeze(-1)
        if value and self.value_model is not None:
            hidden = last_hidden_state(self.value_model, input_ids, attention_mask)
            values = self.value_model.score(hidden[:, -response_length - 1 : -1]).squeeze(-1)
        return Outputs(logprobs, entropies, values.float())

    def save_value(self, folder: str | Path) -> None:
        """Writes the critic's weights beside the policy's."""
        save_file({name: tensor.contiguous() for name, tensor in self._value_weights().items()}, str(Path(folder) / _VALUE_FILE))

    def load_value(self, folder: str | Path) -> None:
        """Reads them back.

        Raises:
            ConfigurationError: If the checkpoint has none, or those of another kind of critic.
        """
        path = Path(folder) / _VALUE_FILE
        if not path.is_file():
            raise ConfigurationError(f"{path.parent} has no {path.name}: it is not a checkpoint of rldk.ppo")
        own, read = self._value_weights(), load_file(str(path))
        if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in read.items()}:
            raise ConfigurationError(f"{path} holds another value model than this run has: {_difference(own, read)}")
        for name, tensor in own.items():
            tensor.copy_(read[name])

    def _value_weights(self) -> dict[str, Tensor]:
        """The critic's weights, each once.

        TRL's value-head class names its weights in `state_dict()` otherwise than `load_state_dict()` knows them, so the
        names are those of torch's own method; tied weights have one name in `named_parameters()` and two there.
        """
        critic: Any = self.value_head if self.value_head is not None else self.value_model
        weights = nn.Module.state_dict(critic)
        return {name: weights[name] for name, _ in chain(critic.named_parameters(), critic.named_buffers()) if name in weights}

    @contextmanager
    def reference(self, adapter: str | None) -> Iterator[Any]:
        """The policy as it was before training, where it is a PEFT model: without its adapter, or with another one.

        Args:
            adapter: Name of the adapter that is the reference; None for the bare base model.
        """
        if adapter is None:
            with self.policy.disable_adapter():
                yield self.policy
            return
        trained = self.policy.active_adapter
        self.policy.set_adapter(adapter)
        try:
            yield self.policy
        finally:
            self.policy.set_adapter(trained)


def judge_tokens(
    model: Any, input_ids: Tensor, attention_mask: Tensor, response_length: int, temperature: float, with_hidden: bool = False,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a causal language model says of the last T tokens of each row.

    Args:
        model: The model, or a PEFT model of it.
        input_ids: (B, P + T), prompts padded on the left, responses on the right.
        attention_mask: (B, P + T).
        response_length: T.
        temperature: Divides the logits.
        with_hidden: Whether the states under the head are wanted.
        with_entropy: Whether entropies are wanted; zeros otherwise.

    Returns:
        Log-probabilities of the tokens in nats, (B, T); entropies of their distributions in nats, (B, T), without
        gradient; and the states that they were predicted from, (B, T, hidden size), or nothing, (0,).
    """
    takes = _parameters((model.get_base_model() if hasattr(model, "get_base_model") else model).__class__)
    extra: dict[str, Any] = {}
    if "position_ids" in takes:
        extra["position_ids"] = _positions(attention_mask)
    if "logits_to_keep" in takes:  # else the head runs over the prompt too
        extra["logits_to_keep"] = response_length + 1
    out = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=with_hidden,
        return_dict=True, **extra,
    )
    place = slice(-response_length - 1, -1)
    hidden = out.hidden_states[-1][:, place] if with_hidden else out.logits.new_empty(0)
    # log_softmax keeps its result alone for the backward pass: with logsumexp and gather on the logits, the peak is five
    # tensors as large as the logits; so it is three.
    logs = torch.log_softmax(out.logits[:, place].float() / temperature, dim=-1)
    del out  # with all other layers' states
    logprobs = logs.gather(-1, input_ids[:, -response_length:].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = torch.special.entr(logs.exp()).sum(dim=-1) if with_entropy else torch.zeros_like(logprobs)
    return logprobs, entropy, hidden


def last_hidden_state(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last layer's states under a model's head, (B, S, hidden size).

    Args:
        model: Has `base_model_prefix` and that backbone; the backbone may itself be a model with a head.
        input_ids: (B, S).
        attention_mask: (B, S).
    """
    backbone = getattr(model, model.base_model_prefix)
    inner = getattr(backbone, "base_model", backbone)  # of a language model, the part below its head
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    inputs |= {"position_ids": _positions(attention_mask), "return_dict": True}
    if not _is_bare(inner):
        inputs["output_hidden_states"] = True
    known = _parameters(inner.__class__)
    out = inner(**{name: value for name, value in inputs.items() if name in known or "**" in known})
    hidden = getattr(out, "last_hidden_state", None)
    states: Tensor = hidden if hidden is not None else out.hidden_states[-1]
    return states


def _positions(attention_mask: Tensor) -> Tensor:
    """Places of the tokens, counted from the first real one."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


@lru_cache(maxsize=32)
def _parameters(cls: type) -> frozenset[str]:
    """Names that a class's `forward` takes; `**` if it takes any."""
    parameters = inspect.signature(cls.forward).parameters.values()  # type: ignore[attr-defined]  # of a module
    return frozenset("**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters)


def _is_bare(module: Any) -> bool:
    """Whether a transformers model has no head of its own, so that it returns `last_hidden_state`."""
    return hasattr(module, "base_model_prefix") and not hasattr(module, module.base_model_prefix or "-")


def _difference(own: dict[str, Tensor], read: dict[str, Tensor]) -> str:
    """One weight that two models do not have in common."""
    name = min(name for name in {**own, **read} if name not in own or name not in read or own[name].shape != read[name].shape)
    here, there = (tuple(weights[name].shape) if name in weights else "absent" for weights in (own, read))
    return f"{name} is {there} there and {here} here"


def choose_adapters(model: Any, trained: str | None, reference: str | None) -> None:
    """Makes one of a policy's adapters the one that is trained.

    Args:
        model: The policy.
        trained: Its name; None for the one that is active.
        reference: Name of the adapter that is the reference policy, if one is.

    Raises:
        ConfigurationError: If there is no such adapter, or both are one.
    """
    known = model.peft_config if hasattr(model, "peft_config") and hasattr(model, "disable_adapter") else {}
    for argument, name in (("model_adapter_name", trained), ("ref_adapter_name", reference)):
        if name is not None and name not in known:
            raise ConfigurationError(
                f"{argument}={name!r}, but model has no adapter of that name (it has {', '.join(known) or 'none'})"
            )
    if trained is not None:
        model.set_adapter(trained)
    if reference is not None and reference == model.active_adapter:
        raise ConfigurationError(f"ref_adapter_name={reference!r} is the adapter that is trained")


@contextmanager
def only_these_settings(policy: Any, settings: Any) -> Iterator[None]:
    """While it lasts, generation is as `settings` say and nothing else.

    `generate` fills what the settings leave at a default from the model's own `generation_config` (EOS, top_p, a
    repetition penalty ...), and then samples from another distribution than the one whose probabilities are trained.
    """
    models = [policy, policy.get_base_model()] if hasattr(policy, "get_base_model") else [policy]
    kept = [(model, vars(model)["generation_config"]) for model in models if "generation_config" in vars(model)]
    for model, _ in kept:
        model.generation_config = settings
    try:
        yield
    finally:
        for model, own in kept:
            model.generation_config = own


def without_dropout(*modules: nn.Module | None) -> None:
    """Turns dropout off: the probabilities of one policy must not differ between rollout and training (N+, detail 4)."""
    for module in modules:
        for part in module.modules() if module is not None else ():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            elif isinstance(getattr(part, "attention_dropout", None), float):
                part.attention_dropout = 0.0  # type: ignore[assignment]  # a number in attention layers


def check_apart(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> None:
    """That no weight is to be trained in one model and to stand still in another: freezing the one would freeze both.

    Args:
        trained: Models by the name of their argument; None where there is none.
        frozen: The same.

    Raises:
        ConfigurationError: If two of them share a weight that is trained.
    """
    for name, model in trained.items():
        moving = {id(weight) for weight in model.parameters() if weight.requires_grad} if model is not None else set()
        for other, still in frozen.items():
            if still is not None and any(id(weight) in moving for weight in still.parameters()):
                raise ConfigurationError(f"{other} shares trainable weights with {name}, and {other} is frozen: give a copy of it")


def freeze(model: Any) -> Any:
    """Puts a model into evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def frozen_copy(policy: Any) -> Any:
    """A copy of the policy to be its reference."""
    return freeze(copy.deepcopy(policy))
