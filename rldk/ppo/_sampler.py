"""Which prompts an update gets: transformers' Trainer draws them once for each forward pass with gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

__all__ = ["UpdateSampler", "unchanged"]


def unchanged(rows: list[Any]) -> list[Any]:
    """A collator that leaves rows as they are; at module level, so that workers can be sent it."""
    return rows


class UpdateSampler(Sampler[int]):
    """Prompts in batches, each batch repeated, in a new order each pass.

    Args:
        size: Number of prompts.
        batch: Prompts of an update over all processes; if there are fewer, they are taken several times.
        repeats: How often each batch comes.
        seed: With the number of the pass it gives the order, so that a resumed run sees the prompts that it would have.
        epoch: Tells the pass that begins.
    """

    def __init__(self, size: int, batch: int, repeats: int, seed: int, epoch: Callable[[], int]) -> None:
        self._size, self._batch, self._repeats, self._seed, self._epoch = size, batch, repeats, seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + 1_000_003 * self._epoch())
        order: list[int] = []
        while len(order) < max(self._batch, self._size):
            order += torch.randperm(self._size, generator=generator).tolist()
        for start in range(0, len(self) // self._repeats, self._batch):
            for _ in range(self._repeats):
                yield from order[start : start + self._batch]

    def __len__(self) -> int:
        return max(1, self._size // self._batch) * self._batch * self._repeats
