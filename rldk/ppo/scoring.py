"""Scores of whole responses: by a reward model, or by functions in GRPO's calling convention."""

from __future__ import annotations

import abc
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..exceptions import ConfigurationError
from .models import last_hidden_state
from .prompts import Prompts

__all__ = ["RewardFunctions", "RewardModel", "Scores", "Scorer"]

logger = logging.getLogger("rldk")

RewardFunction = Callable[..., Sequence[float | None]]


class Scores(NamedTuple):
    """Scores of B responses.

    Attributes:
        total: (B,); NaN where nothing scored the response.
        parts: Each function's own scores by its name, (B,), NaN where it gave None.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Scorer(abc.ABC):
    """Gives each response of a rollout a score."""

    model: Any = None  # one to be put on the device and left out of training

    @abc.abstractmethod
    def __call__(
        self, rows: Sequence[Mapping[str, Any]], prompts: Prompts, responses: Tensor, mask: Tensor, state: Any
    ) -> Scores:
        """Scores a batch.

        Args:
            rows: The dataset's rows.
            prompts: Their prompts.
            responses: (B, T) token ids.
            mask: (B, T), True where there is a token.
            state: The trainer's state.
        """


class RewardModel(Scorer):
    """A sequence classifier with one output, read at the last token of the response.

    Args:
        model: Has `base_model_prefix`, that backbone and `score`; or returns `logits` of shape (B, 1).
        batch_size: Rows of a forward pass.
        tokenizer: The policy's.
        own_tokenizer: The reward model's, if it is another one: the text is then tokenised anew, and chats are put into
            this tokenizer's chat template if it has one.

    Raises:
        ConfigurationError: If that tokenizer cannot pad.
    """

    def __init__(self, model: Any, batch_size: int, tokenizer: Any, own_tokenizer: Any | None = None) -> None:
        self.model = model
        self._batch_size = batch_size
        self._tokenizer = tokenizer
        self._own_tokenizer: Any = own_tokenizer
        if own_tokenizer is not None and own_tokenizer.pad_token_id is None:
            raise ConfigurationError("reward_processing_class has no pad_token: set one")
        self._direct = hasattr(model, "score") and hasattr(model, getattr(model, "base_model_prefix", None) or "-")

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], prompts: Prompts, responses: Tensor, mask: Tensor, state: Any
    ) -> Scores:
        """As `Scorer`."""
        ids = torch.cat([prompts.input_ids, responses], dim=1)
        attention = torch.cat([prompts.attention_mask, mask.long()], dim=1)
        if self._own_tokenizer is not None:
            ids, attention = self._again(self._texts(prompts, responses, mask, ids, attention), ids.device)
        parts = [
            self._score(ids[at : at + self._batch_size], attention[at : at + self._batch_size])
            for at in range(0, len(ids), self._batch_size)
        ]
        return Scores(torch.cat(parts).float(), {})

    def _score(self, ids: Tensor, attention: Tensor) -> Tensor:
        if not self._direct:
            logits: Tensor = self.model(input_ids=ids, attention_mask=attention).logits
            return logits[:, 0]
        hidden = last_hidden_state(self.model, ids, attention)
        # From the mask and not from ids: a pad token that is also EOS would hide the response's last token.
        last = (attention * torch.arange(1, attention.shape[1] + 1, device=ids.device)).argmax(dim=1)
        score: Tensor = self.model.score(hidden[torch.arange(len(ids), device=ids.device), last])
        return score[:, 0]

    def _texts(self, prompts: Prompts, responses: Tensor, mask: Tensor, ids: Tensor, attention: Tensor) -> list[str]:
        """What the reward model is to read: chats by its own template if it has one, else the text as the policy has it."""
        if isinstance(prompts.raw[0], str) or getattr(self._own_tokenizer, "chat_template", None) is None:
            return [self._tokenizer.decode(row[keep.bool()]) for row, keep in zip(ids, attention, strict=True)]
        answers = [self._tokenizer.decode(row[keep], skip_special_tokens=True) for row, keep in zip(responses, mask, strict=True)]
        return [
            self._own_tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
            for prompt, answer in zip(prompts.raw, answers, strict=True)
        ]

    def _again(self, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Texts in the reward model's own tokens, padded."""
        tokens = self._own_tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)


class RewardFunctions(Scorer):
    """Functions called as GRPO calls them, one after another: `f(prompts=, completions=, completion_ids=, ...)`.

    Each is given the prompts and completions as text, or as messages where the prompts are messages, the completions'
    token ids, the trainer's state as `trainer_state`, and every other column of the dataset; those that it does not
    take are not passed. It returns one number a completion, or None where it has no opinion.

    Args:
        functions: One or several.
        weights: One each, default 1.
        tokenizer: The policy's.

    Raises:
        ConfigurationError: For something that cannot be called, a coroutine, or weights of another number.
    """

    def __init__(self, functions: Any, weights: Sequence[float] | None, tokenizer: Any) -> None:
        given = list(functions) if isinstance(functions, (list, tuple)) else [functions]
        if not given:
            raise ConfigurationError("reward_funcs is empty")
        for index, function in enumerate(given):
            if not callable(function) or isinstance(function, torch.nn.Module):
                raise ConfigurationError(f"reward_funcs[{index}] is not a function: {function!r:.80}; a model goes to reward_model")
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                raise ConfigurationError(f"reward_funcs[{index}] is a coroutine; PPO calls reward functions synchronously")
        if weights is not None and len(weights) != len(given):
            raise ConfigurationError(f"reward_weights has {len(weights)} numbers for {len(given)} reward_funcs")
        self._weights = list(weights) if weights is not None else [1.0] * len(given)
        self._tokenizer = tokenizer
        self._functions: dict[str, RewardFunction] = {}
        for function in given:
            name = base = getattr(function, "__name__", type(function).__name__)
            count = 1
            while name in self._functions:  # two lambdas must not share one column
                count += 1
                name = f"{base}_{count}"
            self._functions[name] = function

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], prompts: Prompts, responses: Tensor, mask: Tensor, state: Any
    ) -> Scores:
        """As `Scorer`.

        Raises:
            ConfigurationError: If a function does not return one number or None a completion.
        """
        ids = [row[keep].tolist() for row, keep in zip(responses, mask, strict=True)]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        chat = not isinstance(prompts.raw[0], str)
        completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        columns = {
            name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion", "completion_ids")
        }
        given = {**columns, "prompts": prompts.raw, "completions": completions, "completion_ids": ids, "trainer_state": state}
        total = torch.zeros(len(ids))
        scored = torch.zeros(len(ids), dtype=torch.bool)
        parts = {}
        for weight, (name, function) in zip(self._weights, self._functions.items(), strict=True):
            own = self._numbers(name, function(**_accepted(function, given)), len(ids))
            parts[name] = own.to(responses.device)
            known = ~own.isnan()
            total = total + torch.where(known, weight * own, 0.0)
            scored |= known
        return Scores(torch.where(scored, total, torch.nan).to(responses.device), parts)

    def _numbers(self, name: str, answer: Any, count: int) -> Tensor:
        if isinstance(answer, str):  # of digits, it would pass for numbers
            raise ConfigurationError(f"reward function {name!r} must return a list of numbers, not {answer!r:.80}")
        try:
            values = [float("nan") if value is None else float(value) for value in answer]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"reward function {name!r} must return a list of numbers, not {answer!r:.80}") from error
        if len(values) != count:
            raise ConfigurationError(f"reward function {name!r} returned {len(values)} rewards for {count} completions")
        return torch.tensor(values, dtype=torch.float32)


def _accepted(function: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return dict(given)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(given)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in given.items() if name in names}
