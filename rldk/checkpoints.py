"""What a checkpoint's weights say: non-finite values, norms, and the change since the last one.

Files are streamed tensor by tensor, a bounded slice at a time, in a thread beside the training. Only safetensors are
read; nothing is ever unpickled, so a checkpoint without them is said to be unread. Between checkpoints a small sample
of each tensor is kept, not the weights: the change is measured on it (exactly, for tensors no larger than the sample).
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ._guard import Guard

__all__ = ["CheckpointAnalyser", "CheckpointResult"]

# Elements read at once, and elements of a tensor that are kept to measure change: 64 MB and 16 KB in float32.
_SLICE = 1 << 24
_SAMPLE = 4096
_WAITING = 4
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.safetensors")


class CheckpointResult(NamedTuple):
    """The analysis of one checkpoint: canonical metrics, and a note where something could not be read."""

    step: int
    metrics: dict[str, float | int]
    notes: tuple[str, ...]


class CheckpointAnalyser:
    """Analyses checkpoints in the order in which they are handed over, in one thread.

    Args:
        guard: Counts what goes wrong; a checkpoint that cannot be analysed is only not analysed.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        # A simple queue, whose lock a signal handler may take again: the end of a run can come in the middle of a put.
        self._jobs: queue.SimpleQueue[tuple[int, Path] | None] = queue.SimpleQueue()
        self._results: deque[CheckpointResult] = deque()  # its append and popleft need no lock
        self._samples: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self.missed = 0  # checkpoints saved faster than they could be read

    def submit(self, step: int, folder: Path) -> None:
        """Hands over a checkpoint folder. If four are waiting already, this one is left out and counted."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rldk-checkpoints", daemon=True)
            self._thread.start()
        if self._jobs.qsize() < _WAITING:
            self._jobs.put((step, folder))
        else:
            self.missed += 1

    @property
    def ready(self) -> bool:
        """Whether there are results to take."""
        return bool(self._results)

    def take(self) -> Iterator[CheckpointResult]:
        """Yields the results that are there now, without waiting."""
        while self._results:
            yield self._results.popleft()

    def finish(self, limit: float) -> bool:
        """Waits for the checkpoints that were handed over, at most `limit` seconds. Returns whether all are done."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(timeout=limit)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result = self._guard.call("checkpoint analysis", self._analyse, *job)
            if result is not None:
                self._results.append(result)

    def _analyse(self, step: int, folder: Path) -> CheckpointResult:
        files = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
        if not files:
            return CheckpointResult(step, {}, (f"checkpoint at step {step} has no safetensors files: not analysed",))
        total = changed = reference = 0.0
        tensors = nonfinite = compared = unchanged = 0
        samples: dict[str, Any] = {}
        try:
            for name, pieces in _tensors(files):
                tensors += 1
                sample = []
                for piece in pieces:
                    piece = piece.flatten()
                    bad = int((~piece.isfinite()).sum())
                    nonfinite += bad
                    total += float(piece.nan_to_num(0.0, 0.0, 0.0).double().square().sum())
                    sample.append(piece[:: max(1, piece.numel() // _SAMPLE)][:_SAMPLE].clone())
                samples[name] = _joined(sample)
                before = self._samples.get(name)
                if before is not None and before.shape == samples[name].shape:
                    compared += 1
                    difference = float((samples[name] - before).nan_to_num(0.0, 0.0, 0.0).square().sum())
                    changed += difference
                    reference += float(before.nan_to_num(0.0, 0.0, 0.0).square().sum())
                    unchanged += bool((samples[name] == before).all())  # and not the difference: NaN is a change
        except FileNotFoundError:
            return CheckpointResult(step, {}, (f"checkpoint at step {step} was deleted before it could be read",))
        self._samples = samples
        metrics: dict[str, float | int] = {
            "param_norm": math.sqrt(total),
            "param_nonfinite": nonfinite,
            "param_tensors": tensors,
            "checkpoint_bytes": sum(path.stat().st_size for path in files if path.exists()),
        }
        if compared:
            metrics["param_unchanged_frac"] = unchanged / compared
            if reference > 0:
                metrics["param_update_ratio"] = math.sqrt(changed / reference)
        return CheckpointResult(step, metrics, ())


def _tensors(files: list[Path]) -> Iterator[tuple[str, Iterator[Any]]]:
    """Floating-point tensors by name, each as pieces of bounded size, in float32."""
    from safetensors import safe_open  # with torch: numpy has no bfloat16. Both are loaded in any training process.

    for path in files:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                tensor = file.get_slice(name)
                if tensor.get_dtype() in ("F64", "F32", "F16", "BF16"):
                    yield name, _pieces(tensor)


def _pieces(tensor: Any) -> Iterator[Any]:
    shape = tensor.get_shape()
    if not shape:
        yield tensor[...].float()
        return
    rows = max(1, _SLICE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield tensor[start : start + rows].float()


def _joined(pieces: list[Any]) -> Any:
    import torch  # the pieces are its tensors already

    joined = torch.cat(pieces) if pieces else torch.zeros(0)
    return joined[:: max(1, joined.numel() // _SAMPLE)][:_SAMPLE].clone()
