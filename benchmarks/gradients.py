"""What measuring PPO's gradients apart costs, against the step that it stands in: forward, backward and AdamW on a CPU.

Each step is made with the hook or without, in turns; the time of the hook itself is measured inside of it. The rows of a
batch are few (4 of 32 tokens), as with more of them the step grows and the hook does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rldk._guard import Guard
from rldk.integrations.trl._gradients import watch_gradients

from ._rows import Row

__all__ = ["rows"]

_SHAPES = {
    "2 layers": (600, {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}),
    "16 layers": (36, {"vocab_size": 400, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16}),
}


class _Both(nn.Module):
    """A policy and a value model of the same shape."""

    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, num_labels=1)
        self.policy = LlamaForCausalLM(config)
        self.value_model = LlamaForSequenceClassification(config)

    def forward(self, ids: Any) -> Any:
        return self.policy(ids, labels=ids).loss + self.value_model(ids).logits.square().mean()


class PPOConfig:
    """Passes for the arguments of TRL's own PPO, of which the total is measured too."""


PPOConfig.__module__ = "trl.trainer.ppo_config"


def _measure(model: _Both, steps: int) -> tuple[float, float, float]:
    """Seconds of the hook, of a step without it, and of a step with it; medians."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    watch = watch_gradients(PPOConfig(), {"model": model, "optimizer": optimizer}, None, Guard())
    assert watch is not None
    inside: list[float] = []
    measure = watch._add

    def timed(*args: Any) -> bool:
        began = time.perf_counter()
        known = measure(*args)
        inside.append(time.perf_counter() - began)
        return known

    watch._add = timed  # type: ignore[method-assign]
    times: tuple[list[float], list[float]] = ([], [])
    ids = torch.randint(1, model.policy.config.vocab_size, (4, 32))
    for step in range(steps):
        measured = step % 2
        watch._off = not measured
        began = time.perf_counter()
        model(ids).backward()
        optimizer.step()
        optimizer.zero_grad()
        times[measured].append(time.perf_counter() - began)
    assert watch.take()
    watch.end()
    return statistics.median(inside[2:]), statistics.median(times[0][2:]), statistics.median(times[1][2:])


def rows(quick: bool) -> Iterator[Row]:
    """The hook's share of a step, for a tiny model and one of 20 million weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (steps, shape) in _SHAPES.items():
            model = _Both(shape)
            tensors = len(list(model.parameters()))
            weights = sum(item.numel() for item in model.parameters())
            inside, without, with_hook = _measure(model, steps // 3 if quick else steps)
            measured = f"{inside * 1e3:.2f} ms of {without * 1e3:.1f} ms; step with it {with_hook / without:.3f} x"
            label = f"gradient norms of PPO, {name}: {tensors} tensors, {weights:,} weights"
            yield Row(label, measured, 100 * inside / without, "% of a step", None, 5.0)
    finally:
        torch.set_num_threads(threads)
