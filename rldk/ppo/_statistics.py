"""What PPO logs: averages over what was really computed, over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import PolicyLoss, ValueLoss
from .rollout import Experience, Rollout
from .scoring import Scores

__all__ = ["Averages", "mean_of", "response_table", "rollout_metrics"]

_COLUMNS = 7  # of the table of responses, before the parts of the score


class Averages:
    """Sums over the forward passes since the last log, on the device: nothing waits for a GPU before it is logged.

    TRL averages over a table of which slots stay empty, and over padding; these are means over tokens.
    """

    _NAMES = (
        "loss/policy_avg", "policy/clipfrac_avg", "val/ratio", "policy/approxkl_avg", "policy/entropy_avg",
        "loss/value_avg", "val/clipfrac_avg",
    )
    _OF_TOKENS = 5  # of these names, divided by tokens; the others by states

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def __bool__(self) -> bool:
        return self._sums is not None

    def add(self, policy: PolicyLoss, value: ValueLoss, entropy: Tensor, tokens: Tensor, states: Tensor) -> None:
        """Adds the sums of one forward pass, and its counts of tokens and values."""
        ratio = policy.ratio / tokens.clamp(min=1)  # this pass's mean, whose variance over the passes TRL logs
        one = torch.ones_like(ratio)
        row = torch.stack([
            part.detach().to(_precise(part.device))
            for part in (
                policy.loss, policy.clipped, policy.ratio, policy.approx_kl, entropy, value.loss, value.clipped,
                tokens, states, one, ratio, ratio * ratio,
            )
        ])
        self._sums = row if self._sums is None else self._sums + row

    def metrics(self, accelerator: Any) -> dict[str, float]:
        """The means over all processes."""
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        tokens, states, passes, ratio, squares = sums[-5:]
        metrics = {
            name: total / count if (count := tokens if index < self._OF_TOKENS else states) else float("nan")
            for index, (name, total) in enumerate(zip(self._NAMES, sums, strict=False))
        }
        if passes > 1:
            metrics["val/ratio_var"] = max(0.0, (squares - ratio * ratio / passes) / (passes - 1))
        return metrics

    def state(self) -> list[float] | None:
        """The sums of this process, for a checkpoint."""
        return None if self._sums is None else self._sums.tolist()

    @classmethod
    def of(cls, state: list[float] | None, device: torch.device) -> Averages:
        """From a checkpoint."""
        averages = cls()
        if state is not None:
            averages._sums = torch.tensor(state, dtype=_precise(device), device=device)
        return averages


def response_table(experience: Experience, rollout: Rollout, scores: Scores, ended: Tensor, eos: Tensor) -> Tensor:
    """One row a response with what `rollout_metrics` reads; tables of several processes or batches may be joined.

    Args:
        experience: With its KL.
        rollout: With its scores after penalties.
        scores: Before penalties, with the parts.
        ended: (B,), True where a response has its stop token.
        eos: (B, T), True where a token is EOS.

    Returns:
        (B, columns), float64 where the device has it.
    """
    columns = [
        rollout.scores, experience.kl.sum(dim=1), (-experience.logprobs * experience.mask).sum(dim=1),
        rollout.mask.sum(dim=1), ended, eos.sum(dim=1), rollout.attention_mask.sum(dim=1), *scores.parts.values(),
    ]
    return torch.stack([column.to(_precise(column.device)) for column in columns], dim=1)


def rollout_metrics(table: Tensor, parts: Iterable[str], kl_coef: float) -> dict[str, float]:
    """What is logged of a rollout.

    Args:
        table: Of `response_table`, on the CPU.
        parts: Names of the parts of the score.
        kl_coef: Weight of the KL penalty in force.

    Returns:
        Means over responses, but for `completions/min_length` and `max_length`, `val/num_eos_tokens` and `tokens`
        (prompts and responses), which are counts. What nothing can be said of (a part without opinion) is absent.
    """
    score, kl, entropy, length, stopped, ends, tokens = table[:, :_COLUMNS].unbind(dim=1)
    means: dict[str, Tensor] = {
        "objective/kl": kl.mean(),
        "objective/entropy": entropy.mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/rlhf_reward": -kl_coef * kl.mean() + score.nanmean(),
        "objective/scores": score.nanmean(),
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/clipped_ratio": 1 - stopped.mean(),
    }
    metrics = {name: value.item() for name, value in means.items()}
    metrics["val/num_eos_tokens"] = int(ends.sum())
    metrics["tokens"] = int(tokens.sum())
    for index, name in enumerate(parts):
        part = table[:, _COLUMNS + index]
        known = part[~part.isnan()]
        if len(known) > 0:
            metrics[f"rewards/{name}/mean"] = known.mean().item()
        if len(known) > 1:
            metrics[f"rewards/{name}/std"] = known.std().item()
    return metrics


def mean_of(rollouts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of several rollouts' metrics, by name; counts stay whole where there is one rollout."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout):
        values = [rollout[name] for rollout in rollouts if name in rollout]
        metrics[name] = values[0] if len(values) == 1 else sum(values) / len(values)
    return metrics


def _precise(device: torch.device) -> torch.dtype:
    """float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64
