"""Gradient norm above the user's threshold."""

from __future__ import annotations

from collections.abc import Iterator

from ._base import Example
from ._threshold import ThresholdDetector


class GradientNorm(ThresholdDetector):
    """The gradient is larger than you allow.

    What it sees: `grad_norm`, before clipping; where a trainer logs none, `grad_norm_policy`.
    Why it matters: gradients explode before losses do.
    When it fires: `grad_norm` above `threshold`. There is no default: its scale is the model's and the trainer's.
    What to do: lower `learning_rate`; set `max_grad_norm`; longer `warmup_steps`; look at the batch.
    False alarms: the first steps of training; small batches.
    Sources: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311) on spikes and rewinding.
    """

    code = "gradient_norm"
    title = "Gradient norm above your threshold"
    watches = ("grad_norm", "grad_norm_policy")
    advice = "Lower learning_rate, set max_grad_norm, lengthen warmup_steps, and look at this step's batch."

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """At a threshold of 1."""
        yield Example("stays below", [{"grad_norm": 0.9}] * 20, [])
        yield Example("one episode, not one alert a step", [{"grad_norm": 3.0}] * 20, [1])
