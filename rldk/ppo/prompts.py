"""Prompts, whatever column they stand in: plain text, chat messages, or token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..exceptions import ConfigurationError

__all__ = ["PROMPT_COLUMNS", "Prompts", "check_first_prompt", "encode", "ids_of", "prompt_column"]

# In the order in which they are looked for: who has tokenised the prompts himself means those ids. The others are texts.
PROMPT_COLUMNS = ("input_ids", "prompt", "messages", "query", "text")


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        input_ids: (B, P), padded on the left.
        attention_mask: (B, P).
        raw: Text, or messages, as the dataset has them; where it has only ids, these decoded. For reward functions.
    """

    input_ids: Tensor
    attention_mask: Tensor
    raw: list[Any]


def prompt_column(columns: Iterable[str], argument: str = "train_dataset") -> str:
    """The column that holds the prompts.

    Raises:
        ConfigurationError: If there is none.
    """
    columns = list(columns)
    for name in PROMPT_COLUMNS:
        if name in columns:
            return name
    raise ConfigurationError(f"{argument} has no prompts: none of {', '.join(PROMPT_COLUMNS)} is among its columns {columns}")


def ids_of(prompt: Any, tokenizer: Any) -> list[int]:
    """The token ids of one prompt: text as the tokenizer reads it, messages through its chat template.

    Raises:
        ConfigurationError: For a prompt that is neither text, messages nor ids, an empty one, or messages where the
            tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif isinstance(prompt, torch.Tensor) or hasattr(prompt, "tolist"):
        ids = prompt.tolist()
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(message, Mapping) for message in prompt):
        if getattr(tokenizer, "chat_template", None) is None:
            raise ConfigurationError("the prompts are chat messages, but the tokenizer has no chat_template")
        # Text first: what apply_chat_template returns for ids differs between versions of transformers. An answer that has
        # been begun is gone on with, as in GRPO.
        begun = prompt[-1].get("role") == "assistant"
        text = tokenizer.apply_chat_template(
            list(prompt), tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, Sequence) and all(isinstance(token, int) for token in prompt):
        ids = list(prompt)
    else:
        raise ConfigurationError(f"a prompt is text, a list of chat messages or a list of token ids, not {prompt!r:.80}")
    if not ids:
        raise ConfigurationError(f"a prompt without a token: {prompt!r:.80}")
    return list(ids)


def check_first_prompt(dataset: Any, tokenizer: Any, argument: str) -> None:
    """Finds out before a run begins whether its prompts can be read, from the first of them.

    Raises:
        ConfigurationError: As `ids_of` and `prompt_column`; it names the argument.
    """
    if isinstance(dataset, Mapping):
        raise ConfigurationError(f"{argument} is a {type(dataset).__name__} of {', '.join(map(str, dataset))}: give a dataset of rows")
    row = dataset[0]
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"a row of {argument} is a mapping with a prompt, not {row!r:.80}")
    column = prompt_column(row, argument)
    try:
        ids_of(row[column], tokenizer)
    except ConfigurationError as error:
        raise ConfigurationError(f"{argument}: {error}") from None


def encode(rows: Sequence[Mapping[str, Any]], tokenizer: Any, pad: int, device: Any) -> Prompts:
    """Tokenises the prompts of some rows and pads them on the left.

    Args:
        rows: Rows of the dataset. A mask in `attention_mask` beside `input_ids` tells which ids are padding.
        tokenizer: The policy's.
        pad: Id that stands for padding; no meaning is read out of it.
        device: Where the tensors go.

    Raises:
        ConfigurationError: As `ids_of` and `prompt_column`.
    """
    column = prompt_column(rows[0])
    ids = []
    for row in rows:
        tokens, kept = ids_of(row[column], tokenizer), row.get("attention_mask")
        if column == "input_ids" and kept is not None:
            tokens = [token for token, real in zip(tokens, kept, strict=True) if real]
        ids.append(tokens)
    width = max(map(len, ids))
    input_ids = torch.full((len(ids), width), pad, dtype=torch.long)
    mask = torch.zeros((len(ids), width), dtype=torch.long)
    for row_ids, row_mask, tokens in zip(input_ids, mask, ids, strict=True):
        row_ids[width - len(tokens) :] = torch.tensor(tokens)
        row_mask[width - len(tokens) :] = 1
    written = next((name for name in PROMPT_COLUMNS if name in rows[0] and name != "input_ids"), None)
    if written is None:
        raw: list[Any] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    else:
        raw = [row[written] for row in rows]
    return Prompts(input_ids.to(device), mask.to(device), raw)
