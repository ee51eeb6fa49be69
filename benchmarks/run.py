"""Whole runs: the processor time of 20,000 steps, what a million steps leave in memory, and what a kill takes away."""

from __future__ import annotations

import math
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ._fixtures import Hooks
from ._measure import in_child, resident_memory
from ._rows import Row

__all__ = ["rows"]

_STEPS = 20_000
_BASE = 10_000
_NAN_EVERY = 2_000


def processor_seconds() -> float:
    """Processor time of a run of 20,000 steps with CSV, ten alerts and the report; imports are not in it."""
    from rldk import RLDKCallback

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = Hooks(RLDKCallback(folder / "warm"), folder, whole_step=True)
        warm.step()
        warm.end()
        began = time.process_time()
        hooks = Hooks(RLDKCallback(folder / "logs"), folder, whole_step=True)
        for step in range(1, _STEPS + 1):
            if step % _NAN_EVERY == 0:
                good = hooks.logs[(step - 1) % len(hooks.logs)]
                before, good["grad_norm"] = good["grad_norm"], math.nan
                hooks.step()
                good["grad_norm"] = before
            else:
                hooks.step()
        hooks.end()
        spent = time.process_time() - began
        assert hooks.callback.report["alerts"], "the alerts are part of what is measured"
    return spent


def memory_growth(steps: int) -> dict[str, float]:
    """Resident memory after many steps, over that after 10,000, in bytes."""
    from rldk import RLDKCallback

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hooks = Hooks(RLDKCallback(folder / "logs"), folder, whole_step=True)
        for _ in range(_BASE):
            hooks.step()
        before = resident_memory()
        for _ in range(steps - _BASE):
            hooks.step()
        after = resident_memory()
        hooks.end()
    return {"before": before, "growth": after - before}


def lost_to_kill(rounds: int) -> dict[str, int]:
    """Events that are not on disk although the call that recorded them had returned, over several kills."""
    from rldk import RLDKCallback

    recorded = lost = 0
    rng = random.Random(0)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            child = os.fork()
            if child == 0:
                _record_forever(RLDKCallback(folder / "logs", run_id="killed"), folder)
            while not (folder / "returned").exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0.05, 0.5))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            returned = (folder / "returned").stat().st_size
            kept = (folder / "logs" / "killed_events.jsonl").read_bytes().count(b"\n")
            recorded, lost = recorded + returned, lost + max(0, returned - kept)
    return {"recorded": recorded, "lost": lost}


def _record_forever(callback: object, folder: Path) -> None:
    """Records until it is killed, and writes one byte for each call that has returned."""
    try:
        hooks = Hooks(callback, folder, whole_step=True)
        returned = os.open(folder / "returned", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        while True:
            hooks.step()
            os.write(returned, b".")
    finally:
        os._exit(1)


def rows(quick: bool) -> Iterator[Row]:
    """Each in an interpreter of its own."""
    kill = in_child(lost_to_kill, 2 if quick else 10)
    measured = f"{kill['recorded']} recorded"
    yield Row("events lost to SIGKILL", measured, kill["lost"], "events", 0.0, 0.0, sound=kill["recorded"] > 0)
    seconds = sorted(in_child(processor_seconds) for _ in range(1 if quick else 3))
    yield Row(f"{_STEPS} steps with CSV, alerts, report", "processor time", seconds[len(seconds) // 2], "s", 1.5, 0.6)
    steps = 100_000 if quick else 1_000_000
    memory = in_child(memory_growth, steps)
    measured = f"{memory['before'] / 1e6:.0f} MB after {_BASE}"
    yield Row(f"memory after {steps} steps", measured, memory["growth"] / 1e6, "MB more", 5.0, 1.0)
