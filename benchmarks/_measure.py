"""How things are measured here: in turns, so that a busy machine slows both sides of a ratio alike."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["in_child", "in_turns", "peak_memory", "percentile", "resident_memory"]

ROOT = Path(__file__).resolve().parents[1]

_CHILD = """
import importlib, json, logging, sys
logging.getLogger("rldk").addHandler(logging.NullHandler())
module, name, args = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*args)))
"""


def in_turns(subjects: Mapping[str, Callable[[], object]], batches: int, calls: int) -> dict[str, float]:
    """Times each subject in short batches, one after the other and over again.

    Returns:
        The median over the batches of the seconds a call took, by subject.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(batches + 1):
        for name, call in subjects.items():
            began = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - began) / calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first batch warms up


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of a module of this package in a fresh interpreter; arguments and result are plain values."""
    request = json.dumps([function.__module__, function.__name__, args])
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, request]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _status(field: str) -> int | None:
    """Bytes in a field of Linux's /proc/self/status; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_memory() -> int:
    """Largest resident memory so far, in bytes."""
    # On Linux `ru_maxrss` is inherited from the parent, whose peak may be the higher one.
    peak = _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if peak is None else peak


def resident_memory() -> int:
    """Resident memory in bytes, after returning to the system what Python and the C library hold in reserve."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    now = _status("VmRSS")
    return peak_memory() if now is None else now
