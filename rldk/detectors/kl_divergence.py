"""KL divergence above the user's threshold."""

from __future__ import annotations

from collections.abc import Iterator

from ._base import Example
from ._threshold import ThresholdDetector


class KLDivergence(ThresholdDetector):
    """The policy is further from the reference than you allow.

    What it sees: `kl_mean`, in the trainer's own unit: nats a token in GRPO and RLOO, nats a sequence in PPO,
    OnlineDPO and KTO.
    Why it matters: far from the reference, the reward no longer measures what it was made for.
    When it fires: `kl_mean` above `threshold`. There is no default: a healthy PPO run has 10, a healthy GRPO run 0.01.
    What to do: raise `beta` (GRPO, RLOO) or `kl_coef` (PPO); lower `learning_rate`; go back to a checkpoint before it.
    False alarms: a threshold taken from a trainer with another unit.
    Sources: Gao et al. 2022 (arXiv 2210.10760) for reward against divergence.
    """

    code = "kl_divergence"
    title = "KL divergence above your threshold"
    watches = ("kl_mean",)
    advice = "Raise beta (GRPO, RLOO, OnlineDPO) or kl_coef (PPO), or lower learning_rate."

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """At a threshold of 1."""
        yield Example("stays below", [{"kl_mean": 0.5}] * 20, [])
        yield Example("crosses once", [{"kl_mean": 0.5}] * 5 + [{"kl_mean": 1.5}] * 5, [6])
