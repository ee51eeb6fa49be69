"""Samples what the run uses, in a thread of its own: memory, CPU, and this process's GPUs.

`take` gives means and peaks since it was last called, as canonical metrics; what is not there (no GPU, no NVML, no
sample yet) is absent. Never touches the training's thread, its random state, or a GPU's context.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import psutil

from ._guard import Guard

__all__ = ["ResourceSampler"]

# Metrics whose largest sample matters, and the name that it goes under.
_PEAKS = {
    "memory_bytes": "memory_peak_bytes",
    "host_memory_frac": "host_memory_peak_frac",
    "gpu_memory_bytes": "gpu_memory_peak_bytes",
    "gpu_memory_frac": "gpu_memory_peak_frac",
}


class ResourceSampler:
    """A sampling thread.

    Args:
        guard: Counts what goes wrong in a sample; sampling goes on.
        interval: Seconds between samples.
    """

    def __init__(self, guard: Guard, interval: float = 1.0) -> None:
        self._guard = guard
        self._interval = interval
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._samples = 0
        self._stop = threading.Event()
        self._process = psutil.Process()
        self._gpus: list[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="rldk-resources", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; returns when it has ended, or after two seconds."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def take(self) -> dict[str, float]:
        """Means and peaks of the samples since the last call; empty if there was none."""
        if not self._samples:
            return {}
        with self._lock:
            samples, self._samples = self._samples, 0
            sums, self._sums = self._sums, {}
            peaks, self._peaks = self._peaks, {}
        taken = {name: total / samples for name, total in sums.items()}
        taken.update(peaks)
        return taken

    def _run(self) -> None:
        psutil.cpu_percent(None)  # the first call only sets the reference point
        self._process.cpu_percent(None)
        while not self._stop.wait(self._interval):
            self._guard.call("resource sample", self._sample)

    def _sample(self) -> None:
        memory = psutil.virtual_memory()
        sample = {
            "cpu_percent": self._process.cpu_percent(None),
            "host_cpu_percent": psutil.cpu_percent(None),
            "memory_bytes": float(self._process.memory_info().rss),
            "host_memory_frac": 1.0 - memory.available / memory.total,
        }
        sample.update(self._gpu_sample())
        with self._lock:
            self._samples += 1
            for name, value in sample.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
                peak = _PEAKS.get(name)
                if peak is not None:
                    self._peaks[peak] = max(self._peaks.get(peak, value), value)

    def _gpu_sample(self) -> dict[str, float]:
        if self._gpus is None:
            torch = sys.modules.get("torch")
            if torch is None or not torch.cuda.is_available():
                self._gpus = []
            elif torch.cuda.is_initialized():  # before that, the process has no GPU of its own yet
                self._gpus = _own_gpus(torch)
        if not self._gpus:
            return {}
        import pynvml  # loads the driver's library: only on a machine that has one, see _own_gpus

        memories = [pynvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in self._gpus]
        uses = [pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in self._gpus]
        return {
            "gpu_percent": sum(uses) / len(uses),
            "gpu_memory_bytes": float(max(memory.used for memory in memories)),
            "gpu_memory_frac": max(memory.used / memory.total for memory in memories),
        }


def _own_gpus(torch: Any) -> list[Any]:
    """NVML handles of the GPUs that this process trains on; empty without NVML.

    In a distributed run each process has the device of its local rank; a single process has all that it sees.
    """
    import pynvml  # loads the driver's library, which this machine has

    try:
        pynvml.nvmlInit()
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        # Not torch.cuda.current_device(): that is the thread's, and this thread has none of its own.
        indices = range(torch.cuda.device_count()) if alone else [int(os.environ.get("LOCAL_RANK", "0"))]
        identities = [str(torch.cuda.get_device_properties(index).uuid) for index in indices]
        return [
            pynvml.nvmlDeviceGetHandleByUUID(identity if identity.startswith("GPU-") else f"GPU-{identity}")
            for identity in identities
        ]
    except (pynvml.NVMLError, AttributeError, RuntimeError, ValueError):
        return []  # no NVML, or a partitioned device that it does not know by this name: absent, not zero
