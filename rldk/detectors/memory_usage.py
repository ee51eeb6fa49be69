"""Memory use above the user's threshold."""

from __future__ import annotations

from collections.abc import Iterator

from ..exceptions import ConfigurationError
from ._base import Example
from ._threshold import ThresholdDetector


class MemoryUsage(ThresholdDetector):
    """Memory is fuller than you allow.

    What it sees: the share in use of the fullest GPU of this process or, with no GPU, of the host's memory; the peak
    since the event before. It needs `enable_resource_monitoring`.
    Why it matters: the next longer batch ends the run.
    When it fires: the share is above `threshold`, from 0 to 1.
    What to do: lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`), `max_length` or
    `max_completion_length`; `gradient_checkpointing=True`.
    False alarms: other processes on the same device; frameworks that reserve memory ahead (vLLM).
    Sources: none; the number is yours.
    """

    code = "memory_usage"
    title = "Memory use above your threshold"
    watches = ("gpu_memory_peak_frac", "host_memory_peak_frac")
    advice = (
        "Lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length, "
        "or set gradient_checkpointing=True."
    )
    highest = 1.0

    def __init__(self, *, threshold: float) -> None:
        if isinstance(threshold, (int, float)) and 1.0 < threshold <= 100.0:
            raise ConfigurationError(
                f"memory_usage: threshold is a share from 0 to 1, not a percentage; got {threshold!r}. "
                f"Did you mean {threshold / 100:g}?"
            )
        super().__init__(threshold=threshold)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """At a threshold of 1, which no share is above."""
        yield Example("a share is never above one", [{"host_memory_peak_frac": 0.99}] * 20, [])
