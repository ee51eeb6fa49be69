"""Clip fraction above the user's threshold."""

from __future__ import annotations

from collections.abc import Iterator

from ._base import Example
from ._threshold import ThresholdDetector


class ClipFraction(ThresholdDetector):
    """More tokens are clipped than you allow.

    What it sees: `clip_frac`, the share of tokens whose probability ratio was clipped; in PPO, after the averages that
    TRL dilutes are corrected.
    Why it matters: a clipped token gives no gradient; many of them mean that updates are too large for the samples.
    When it fires: `clip_frac` above `threshold`, a share from 0 to 1.
    What to do: lower `learning_rate`, `num_ppo_epochs` or `num_iterations`; larger batches.
    False alarms: sequence-level ratios (`importance_sampling_level="sequence"`) clip far more by design.
    Sources: Schulman et al. 2017 (arXiv 1707.06347); the TRL documentation on PPO's logged metrics.
    """

    code = "clip_fraction"
    title = "Clip fraction above your threshold"
    watches = ("clip_frac",)
    advice = "Lower learning_rate, num_ppo_epochs (PPO) or num_iterations (GRPO), or raise the batch size."
    highest = 1.0

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """At a threshold of 1, which no share is above."""
        yield Example("a share is never above one", [{"clip_frac": 1.0}] * 20, [])
