"""Memory that runs full, or grows without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from ..event import Event, Severity
from ..exceptions import ConfigurationError
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Example, Finding
from ._threshold import ThresholdDetector

_SKIP = 3  # the first steps fill pools
_FINE = 4  # values in a block of the rolling scale
_COARSE = 1  # and at first in the one that grows with the run
_BLOCKS = 6
_RISES = 4
_SINGLE_RISES = 6  # where the blocks are single values
_FLOOR_RISES = 7
_GROWTH = 0.05
_EARLY = 40  # events; until then pools may still be filling, and only more than this counts as growth without end:
_EARLY_GROWTH = 0.4
_EVEN = 0.4  # the smallest rise over the mean rise: single steps up are less even than this
_UNABATED = 0.85  # the later half of the rises over the earlier half: pools that fill slow down
_BOUND = 1e18
# Bytes and share, by peak or, where no peak was recorded, by mean.
_SOURCES = (
    ("gpu_memory_peak_bytes", "gpu_memory_peak_frac", "gpu_memory_bytes", "gpu_memory_frac"),
    ("memory_peak_bytes", "host_memory_peak_frac", "memory_bytes", "host_memory_frac"),
)


class _Block(NamedTuple):
    """Some values in a row: mean, least, greatest, and the step of the last."""

    mean: float
    low: float
    high: float
    step: int


class _Creep:
    """Whether a series creeps upwards, from the last blocks of its values at one scale.

    It does if each block lies above the one before as a whole, or (over more blocks) if mean and minimum both rise each
    time: chance orders five blocks of two values like that once in a hundred thousand times.

    Args:
        size: Values in a block.
        doubling: Whether blocks grow with the run: when twice as many are there as are looked at, pairs become one.
    """

    __slots__ = ("blocks", "count", "doubling", "high", "low", "size", "total")

    def __init__(self, size: int, doubling: bool) -> None:
        self.size = size
        self.doubling = doubling
        self.blocks: list[_Block] = []
        self.total = 0.0
        self.low = _BOUND
        self.high = 0.0
        self.count = 0

    def add(self, value: float, step: int) -> bool:
        """Takes a value in; returns whether a block has become full."""
        self.total += value
        self.count += 1
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        if self.count < self.size:
            return False
        blocks = self.blocks
        blocks.append(_Block(self.total / self.count, self.low, self.high, step))
        self.total, self.low, self.high, self.count = 0.0, _BOUND, 0.0, 0
        if self.doubling and len(blocks) >= 2 * _BLOCKS:
            blocks[:] = [
                _Block((one.mean + two.mean) / 2, min(one.low, two.low), max(one.high, two.high), two.step)
                for one, two in zip(blocks[::2], blocks[1::2])
            ]
            self.size *= 2
        elif not self.doubling and len(blocks) > _BLOCKS:
            del blocks[0]
        return True

    def growth(self, least: float) -> tuple[float, float] | None:
        """Growth as a share, and bytes a step (0 if steps do not count up), over as many of the last blocks as rise evenly.

        None if they do not, or by no more than `least`.
        """
        blocks = self.blocks
        last = len(blocks) - 1
        apart = 0  # rises, counted backwards, at which the blocks do not overlap
        while apart < last and blocks[last - apart].low > blocks[last - apart - 1].high:
            apart += 1
        floor = 0
        while floor < last and blocks[last - floor].low > blocks[last - floor - 1].low:
            floor += 1
        most = floor if floor >= _FLOOR_RISES else apart
        rises = [after.mean - before.mean for before, after in pairwise(blocks)]
        for count in range(most, (_RISES if self.size > 1 else _SINGLE_RISES) - 1, -1):
            some, first = rises[-count:], blocks[last - count]
            grown = blocks[-1].mean - first.mean
            if grown <= least * first.mean or min(some) < _EVEN * grown / count:
                continue
            if count > apart and count < _FLOOR_RISES:
                continue
            half = count // 2
            if sum(some[-half:]) >= _UNABATED * sum(some[:half]):
                steps = blocks[-1].step - first.step
                return grown / first.mean, grown / steps if steps > 0 else 0.0
        return None


class MemoryUsage(ThresholdDetector):
    """Memory grows steadily, or is fuller than you allow.

    What it sees: the memory of the fullest GPU of this process and its own on the host; the peak since the event
    before. It needs `enable_resource_monitoring`. With a `threshold`, the share of the GPU's or the host's memory.
    Why it matters: a list that keeps tensors, or a cache without a limit, ends the run hours later, out of memory.
    When it fires: without a threshold: the means of five or more consecutive blocks of events rise, evenly and unabated,
    by more than 5 % in all (40 % within the first forty events), and each block lies wholly above the one before (or,
    over eight blocks, its minimum does). The blocks are of four events, and a second series grows with the run. Critical
    if the memory is full before the run's last step at that rate. With a threshold: the share is above it, from 0 to 1.
    What to do: if it creeps, detach what you keep (`loss.item()`, `.detach()`), look at callbacks and reward functions.
    Where it is only full, lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`), `max_length` or
    `max_completion_length`; `gradient_checkpointing=True`.
    False alarms: the first three events are passed over, and pools that fill, single steps up (an evaluation, a
    checkpoint, a longer batch) are not even or slow down. With a threshold: other processes on the same device;
    frameworks that reserve memory ahead (vLLM).
    Sources: Amazon SageMaker Debugger's GPUMemoryIncrease (5 %), unsloth issue 2470 (36 to 39.9 GB, dead after 600
    steps), TRL issue 2927; the test of evenness is chosen here.
    """

    code = "memory_usage"
    title = "Memory grows, or is above your threshold"
    watches = ("gpu_memory_peak_frac", "host_memory_peak_frac")
    needs = "enable_resource_monitoring; for the growth, some fifteen events with memory in them"
    advice = (
        "If it creeps, find what keeps tensors (callbacks, reward functions, metrics: use .item() or .detach()); if it is "
        "full, lower per_device_train_batch_size or max_length, or set gradient_checkpointing=True."
    )
    highest = 1.0
    cooldown = 50

    def __init__(self, *, threshold: float | None = None) -> None:
        if isinstance(threshold, (int, float)) and 1.0 < threshold <= 100.0:
            raise ConfigurationError(
                f"memory_usage: threshold is a share from 0 to 1, not a percentage; got {threshold!r}. "
                f"Did you mean {threshold / 100:g}?"
            )
        super().__init__(threshold=threshold)
        self._max_steps = 0
        self._seen: dict[str, int] = {}
        self._creeps: dict[str, tuple[_Creep, _Creep]] = {}
        self._first: dict[str, tuple[float, float]] = {}  # bytes and share as they were after the first events
        self._findings: dict[str, Finding] = {}

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Takes note of the length of the run."""
        steps = arguments.get("max_steps")
        self._max_steps = int(steps) if isinstance(steps, (int, float)) and 0 < steps < _BOUND else 0

    def calibrated(self, event: Event) -> Answer:
        """Looks for growth, on the GPU and on the host."""
        metrics = event.metrics
        found = judged = False
        for name, share, mean, mean_share in _SOURCES:
            value = metrics.get(name)
            if value is None:
                name, share = mean, mean_share
                value = metrics.get(name)
                if value is None:
                    continue
            found = True
            if 0.0 < value < _BOUND:
                judged = self._take(name, value, metrics.get(share), event.step) or judged
        findings = self._findings
        if findings and found:
            return max(findings.values(), key=lambda item: item.severity.rank)
        return FINE if judged else WARMING if found else ABSENT

    def _take(self, name: str, value: float, share: float | None, step: int) -> bool:
        """Takes one value in, and judges when a block is full. Returns whether enough of them are there."""
        seen = self._seen[name] = self._seen.get(name, 0) + 1
        if seen <= _SKIP:
            return False
        if name not in self._creeps:
            self._creeps[name] = (_Creep(_FINE, False), _Creep(_COARSE, True))
            self._first[name] = (value, share if share is not None else 0.0)
        fine, coarse = self._creeps[name]
        full = fine.add(value, step)
        if coarse.add(value, step) or full:
            least = _GROWTH if seen > _EARLY else _EARLY_GROWTH
            growth = fine.growth(least) or coarse.growth(least)
            if growth is not None:
                self._findings[name] = self._found(name, value, share, step, growth)
            elif full and name in self._findings and fine.blocks[-1].mean <= fine.blocks[-2].mean:
                del self._findings[name]
        return len(coarse.blocks) > _RISES

    def _found(self, name: str, value: float, share: float | None, step: int, growth: tuple[float, float]) -> Finding:
        evidence = {"growth": growth[0], "bytes_a_step": growth[1]}
        message = (
            f"{name} is {number(round(value / 2**20))} MiB and grows steadily: by {number(round(100 * growth[0], 1))} % of "
            f"late, {number(growth[1] / 2**20)} MiB a step"
        )
        severity = Severity.WARNING
        total = self._total(name, value, share)
        if total is not None and share is not None and growth[1] > 0.0:
            until = step + (1.0 - share) * total / growth[1]
            evidence["full_at_step"] = until
            message += f"; at this rate the memory is full at step {until:.0f}"
            if self._max_steps and until < self._max_steps:
                message += f", before the end at step {self._max_steps}"
                severity = Severity.CRITICAL
        return Finding(name, value, None, f"{message}.", severity, evidence)

    def _total(self, name: str, value: float, share: float | None) -> float | None:
        """The size of the memory. On the host the share is of all processes: what both grew by tells."""
        if share is None or not 0.0 < share < 1.0:
            return None
        if name.startswith("gpu"):
            return value / share
        first, first_share = self._first[name]
        # A smaller growth of the share would be the other processes' coming and going.
        if first_share <= 0.0 or share - first_share < 0.03:
            return None
        return (value - first) / (share - first_share)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A leak; pools that fill; steps up; batches of many lengths; a share that is high and stays."""
        mebi = 2.0**20
        yield Example("a list that keeps tensors", [{"memory_peak_bytes": (1000 + 5 * log) * mebi} for log in range(60)], [43])
        yield Example("a large one", [{"memory_peak_bytes": (600 + 60 * log) * mebi} for log in range(20)], [10])
        yield Example("on the GPU, a little each log", [
            {"gpu_memory_peak_bytes": (30000 + 10 * log) * mebi, "gpu_memory_peak_frac": (30000 + 10 * log) / 80000}
            for log in range(400)
        ], [179])
        yield Example("a pool that fills", [{"memory_peak_bytes": (1000 - 500 * 0.9**log) * mebi} for log in range(200)], [])
        yield Example("steps up at an evaluation, a checkpoint and a long batch", [
            {"memory_peak_bytes": (1000 + 60 * min(3, log // 40)) * mebi} for log in range(300)
        ], [])
        lengths = (0, 300, 120, 700, 40, 520, 260, 90, 610, 180, 440)
        yield Example("batches of many lengths", [
            {"gpu_memory_peak_bytes": (20000 + lengths[log * log % 11]) * mebi, "gpu_memory_peak_frac": 0.9} for log in range(300)
        ], [])
        yield Example("a share that stays", [{"host_memory_peak_frac": 0.99}] * 20, [])
