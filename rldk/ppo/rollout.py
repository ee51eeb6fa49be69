"""A rollout: responses sampled for a batch of prompts, with all that PPO's passes over them need."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import Schedule
from .losses import advantages_and_returns, kl_per_token, token_rewards, value_mask_of, whitened

__all__ = ["Experience", "MicroBatch", "Rollout", "finished"]


@dataclass(frozen=True)
class Rollout:
    """What was sampled, and what the models say of it. B prompts of at most P tokens, responses of at most T.

    Attributes:
        input_ids: (B, P + T), prompts padded on the left, responses on the right.
        attention_mask: (B, P + T).
        mask: (B, T), True where the response has a token.
        logprobs: (B, T), nats, of the policy that sampled.
        ref_logprobs: (B, T), nats, of the reference policy.
        values: (B, T), of the critic at that time.
        scores: (B,), penalties for missing EOS included; NaN or infinity leaves the response out of the training.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass with gradient, and the counts that its sums are divided by.

    Attributes:
        input_ids: (b, P + T).
        attention_mask: (b, P + T).
        mask: (b, T), True where a token is trained.
        value_mask: (b, T), True where a value is.
        logprobs: (b, T), of the policy that sampled.
        values: (b, T), of the critic at that time.
        advantages: (b, T).
        returns: (b, T).
        tokens: Tokens trained in the mini-batch that this is a part of.
        states: Values trained in it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    value_mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    tokens: Tensor
    states: Tensor


@dataclass(frozen=True)
class Experience:
    """A rollout with advantages and returns, and the order in which the passes go over it.

    Attributes:
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        mask: (B, T), without the responses that got no score.
        value_mask: (B, T), one place further than the mask.
        logprobs: (B, T).
        kl: (B, T), nats, policy against reference.
        values: (B, T).
        advantages: (B, T), whitened.
        returns: (B, T).
        order: (epochs, B), a permutation of the rows for each pass.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    value_mask: Tensor
    logprobs: Tensor
    kl: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    order: Tensor

    @classmethod
    def of(
        cls, rollout: Rollout, *, epochs: int, kl_coef: float, kl_estimator: str, gamma: float, lam: float,
        whiten_rewards: bool = False,
    ) -> Experience:
        """Turns scores into advantages (see `losses`); draws the order from torch's random state."""
        scored = rollout.scores.isfinite()
        mask = rollout.mask & scored[:, None]
        value_mask = value_mask_of(rollout.mask) & scored[:, None]
        kl = kl_per_token(rollout.logprobs, rollout.ref_logprobs, mask, kl_estimator)
        rewards = token_rewards(torch.where(scored, rollout.scores, 0.0), kl, rollout.mask, kl_coef)
        if whiten_rewards:
            rewards = whitened(rewards, value_mask, shift_mean=False)
        values = torch.where(value_mask, rollout.values, 0.0)
        advantages, returns = advantages_and_returns(rewards, values, gamma, lam)
        order = torch.stack([torch.randperm(len(mask)) for _ in range(epochs)])
        return cls(
            rollout.input_ids, rollout.attention_mask, mask, value_mask, rollout.logprobs, kl, values,
            whitened(advantages, mask), returns, order,
        )

    def micro_batch(self, index: int, schedule: Schedule) -> MicroBatch:
        """The rows of the index-th forward pass of the update."""
        epoch, within = divmod(index, schedule.rollout // schedule.micro_batch)
        start = within * schedule.micro_batch
        mini = start // schedule.mini_batch * schedule.mini_batch
        device = self.mask.device
        whole = self.order[epoch, mini : mini + schedule.mini_batch].to(device)
        rows = self.order[epoch, start : start + schedule.micro_batch].to(device)
        return MicroBatch(
            self.input_ids[rows], self.attention_mask[rows], self.mask[rows], self.value_mask[rows], self.logprobs[rows],
            self.values[rows], self.advantages[rows], self.returns[rows],
            tokens=self.mask[whole].sum().clamp(min=1),
            states=self.value_mask[whole].sum().clamp(min=1),
        )

    def save(self, path: Path) -> None:
        """Writes the experience, so that a run can go on in the middle of an update."""
        save_file({name: tensor.contiguous().cpu() for name, tensor in self._tensors().items()}, str(path))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Experience:
        """Reads it back."""
        tensors = load_file(str(path))  # safetensors does not know a device such as cpu:0
        return cls(**{name: tensor if name == "order" else tensor.to(device) for name, tensor in tensors.items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def finished(responses: Tensor, stop: int | None) -> tuple[Tensor, Tensor]:
    """Where responses end.

    Args:
        responses: (B, T) token ids.
        stop: The token that ends a response, and is its last token; None if all run to their full length.

    Returns:
        (B, T), True where the response has a token; and (B,), True where it has the stop token.
    """
    if stop is None:
        return torch.ones_like(responses, dtype=torch.bool), torch.zeros_like(responses[:, 0], dtype=torch.bool)
    is_stop = responses == stop
    before = is_stop.cumsum(dim=1) - is_stop.long()
    return before == 0, is_stop.any(dim=1)
