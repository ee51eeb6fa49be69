"""PPO's formulas, as functions of tensors. No models, no state.

Shapes: B responses of at most T tokens. `mask` is True where a response has a token; `value_mask` also at the place
after a response that ended early: the state there, after the last token, is worth something and gets the score.

Sources: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (PPO); Schulman et al. 2016,
"High-Dimensional Continuous Control Using Generalized Advantage Estimation" (GAE); Ziegler et al. 2019, "Fine-Tuning
Language Models from Human Preferences" (Ziegler); Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO"
(N+); Schulman 2020, "Approximating KL Divergence" (KL).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PolicyLoss",
    "ValueLoss",
    "adapted_kl_coef",
    "advantages_and_returns",
    "explained_variance",
    "kl_per_token",
    "masked_mean",
    "policy_loss",
    "token_rewards",
    "value_loss",
    "value_mask_of",
    "whitened",
]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True; NaN where it is True nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def whitened(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scales values to variance 1 over the mask (N+, details 8 and 9), and to mean 0 unless told otherwise.

    Args:
        values: (B, T).
        mask: (B, T); elsewhere the result is 0. At one place alone it is 0 too, or the value itself with its mean.
        shift_mean: Whether the mean is taken off too; for rewards it is kept, since their sign matters.
    """
    count = mask.sum()
    values = torch.where(mask, values, 0.0)
    mean = values.sum() / count
    variance = ((values - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


def value_mask_of(mask: Tensor) -> Tensor:
    """(B, T) to (B, T): the mask, and one place further."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1) | mask


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """Estimates the KL divergence of the policy from the reference at each token, in nats; 0 off the mask.

    With r = pi_ref / pi of a token that pi sampled: k1 = -log r; k3 = (r - 1) - log r. Both are unbiased; k3 is never
    negative and varies less (KL).
    """
    log_ratio = torch.where(mask, ref_logprobs - logprobs, 0.0)
    return -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards of the tokens: minus the KL penalty each, and the score of the whole response at its end (Ziegler, eq. 2).

    The score stands at the place after the last token if there is one, else at the last token.

    Args:
        scores: (B,).
        kl: (B, T), nats.
        mask: (B, T).
        kl_coef: Weight of the penalty.

    Returns:
        (B, T).
    """
    rewards = -kl_coef * kl
    ends = mask.sum(dim=1).clamp(max=mask.shape[1] - 1)
    rewards[torch.arange(len(rewards), device=rewards.device), ends] += scores
    return rewards


def advantages_and_returns(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (GAE, eq. 16): A_t = delta_t + gamma lam A_{t+1}, return = A + V.

    delta_t = r_t + gamma V_{t+1} - V_t; after the last place all is 0. Values off the value mask must be 0.

    Args:
        rewards: (B, T).
        values: (B, T), of the state before each token.
        gamma: Discount.
        lam: Decay.

    Returns:
        Advantages and returns, (B, T) each, not whitened.
    """
    advantages = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * running
        advantages[:, t] = running
        following = values[:, t]
    return advantages, advantages + values


class PolicyLoss(NamedTuple):
    """Sums over a mini-batch's tokens; each divided by the number of tokens is a mean.

    Attributes:
        loss: Clipped surrogate loss.
        clipped: Tokens at which the clip is in force.
        ratio: Probability ratios.
        approx_kl: Half the squared log ratios: an estimate of the KL divergence from the policy that sampled, in nats
            (KL, k2).
    """

    loss: Tensor
    clipped: Tensor
    ratio: Tensor
    approx_kl: Tensor


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> PolicyLoss:
    """The clipped surrogate objective (PPO, eq. 7), negated: max(-A r, -A clip(r, 1 - eps, 1 + eps)), summed over tokens.

    Args:
        logprobs: (B, T), of the policy being trained, with gradient.
        old_logprobs: (B, T), of the policy that sampled.
        advantages: (B, T).
        mask: (B, T).
        cliprange: eps.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        share, ratios = ((clipped > plain) & mask).sum(), (ratio * mask).sum()
        squares = 0.5 * log_ratio.square().sum()
    return PolicyLoss((torch.maximum(plain, clipped) * mask).sum(), share, ratios, squares)


class ValueLoss(NamedTuple):
    """Sums over the value mask of a mini-batch.

    Attributes:
        loss: Clipped squared error, halved.
        clipped: Places at which the clip is in force.
    """

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float) -> ValueLoss:
    """The clipped value loss (N+, detail 10): half of max((V - R)^2, (clip(V, V_old -+ eps) - R)^2), summed.

    Args:
        values: (B, T), with gradient.
        old_values: (B, T), of the rollout.
        returns: (B, T).
        mask: (B, T), the value mask.
        cliprange: eps, in units of the reward.
    """
    values, old_values, returns = (torch.where(mask, tensor, 0.0) for tensor in (values, old_values, returns))
    held = torch.minimum(torch.maximum(values, old_values - cliprange), old_values + cliprange)
    plain, clipped = (values - returns).square(), (held - returns).square()
    return ValueLoss(0.5 * (torch.maximum(plain, clipped) * mask).sum(), ((clipped > plain) & mask).sum().detach())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is a perfect critic, 0 one that knows only the mean.

    NaN where the returns do not vary.
    """
    def variance(of: Tensor) -> Tensor:
        mean = masked_mean(of, mask)
        return masked_mean((of - mean).square(), mask)

    spread = variance(returns)
    return torch.where(spread > 0, 1 - variance(returns - values) / spread, torch.nan)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """The next KL coefficient: beta (1 + K_beta clip((KL - target) / target, -0.2, 0.2)) (Ziegler, section 2.2).

    Args:
        kl_coef: beta, that of the rollout.
        kl: The KL divergence measured on it, nats a sequence.
        target: The KL divergence wanted, nats a sequence.
        gain: K_beta; 0.1 in the paper.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + gain * error) if error == error else kl_coef
