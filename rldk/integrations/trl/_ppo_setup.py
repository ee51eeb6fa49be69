"""A PPO run as it is about to be built: what the checks of `validate_ppo_setup` look at, and in what words they answer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

from .models import embedding_rows
from .value_head import unwrap_policy

__all__ = ["Check", "Findings", "Level", "Setup"]

Level = Literal["issues", "warnings", "recommendations"]
Findings = Iterator[tuple[Level, str]]

_SAMPLE = 64  # rows that are looked at: enough to see a wrong column, few enough for a dataset that is computed when read


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that goes into a run. Any part may be None, or of a kind that nobody foresaw.

    Attributes:
        model: The policy.
        ref_model: The reference.
        reward_model: What scores responses, or None.
        value_model: The critic, or None.
        tokenizer: The policy's.
        args: A `PPOConfig`, TRL's or rldk's, or anything with some of its fields.
        train_dataset: Prompts.
        eval_dataset: Prompts for sample generations and evaluation.
        reward_funcs: Functions that score responses, one or several.
        peft_config: The adapter that the trainer will put on the policy.
        reward_tokenizer: The reward model's own.
        backend: Whose trainer it will be.
    """

    model: Any
    ref_model: Any
    reward_model: Any
    value_model: Any
    tokenizer: Any
    args: Any
    train_dataset: Any
    eval_dataset: Any
    reward_funcs: Any
    peft_config: Any
    reward_tokenizer: Any
    backend: Literal["trl", "rldk"]

    @property
    def on_trl(self) -> bool:
        """Whether TRL's own trainer will run it."""
        return self.backend == "trl"

    @property
    def policy(self) -> Any:
        """The language model that is trained: of a value-head model the inside."""
        return unwrap_policy(self.model)[0]

    @property
    def roles(self) -> dict[str, Any]:
        """The models that there are, by the name of their argument."""
        named = {name: getattr(self, name) for name in ("model", "ref_model", "reward_model", "value_model")}
        return {name: model for name, model in named.items() if model is not None and not isinstance(model, str)}

    def arg(self, name: str, default: Any = None) -> Any:
        """One of the arguments; the default where it is absent or None."""
        value = getattr(self.args, name, None)
        return default if value is None else value

    @property
    def rollout(self) -> int | None:
        """Prompts of an update in one process; None without the arguments."""
        size = self.arg("per_device_train_batch_size", 0) * self.arg("gradient_accumulation_steps", 1)
        # rldk's trainer lowers the accumulation steps in its arguments to those of one optimizer step.
        return (self.arg("local_batch_size") if not self.on_trl else None) or size or None

    @functools.cached_property
    def rows(self) -> list[Any]:
        """The first rows of the training data; none of a stream, which can be read only once."""
        data = self.train_dataset
        if data is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            return []
        return [data[index] for index in range(min(len(data), _SAMPLE))]

    @functools.cached_property
    def columns(self) -> list[str] | None:
        """The training data's columns; None if they cannot be told."""
        names = getattr(self.train_dataset, "column_names", None)
        if names is None and self.rows and hasattr(self.rows[0], "keys"):
            names = self.rows[0].keys()
        return None if names is None else list(names)

    @functools.cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of the first prompts that are ids or plain text."""
        found = []
        for row in self.rows:
            ids, text = row.get("input_ids"), row.get("prompt") or row.get("query") or row.get("text")
            if ids is not None:
                found.append([int(token) for token in ids])
            elif isinstance(text, str) and self.tokenizer is not None:
                found.append(list(self.tokenizer(text)["input_ids"]))
        return found

    def rows_of_embeddings(self) -> dict[str, int]:
        """How many tokens each model knows, where that can be told."""
        known = {name: embedding_rows(model) for name, model in self.roles.items()}
        return {name: rows for name, rows in known.items() if rows is not None}


Check = Callable[[Setup], Findings]
