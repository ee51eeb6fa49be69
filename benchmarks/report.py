"""The report of a long run: `rebuild_run` on a stream of a million events, files, page and all."""

from __future__ import annotations

import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ._measure import in_child, peak_memory
from ._rows import Row
from .load import write_stream

__all__ = ["rows"]


def cost_of_report(path: str) -> dict[str, float]:
    """Seconds, processor seconds of both processes, and the peak memory of each; imports are not in it."""
    import rldk

    warnings.simplefilter("ignore")
    rldk.rebuild_run  # noqa: B018  # see above
    before, began = os.times(), time.perf_counter()
    report = rldk.rebuild_run(path, output_dir=Path(path).with_name("report"))
    seconds, after = time.perf_counter() - began, os.times()
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {
        "seconds": seconds,
        "first": after.user + after.system - before.user - before.system,
        "second": after.children_user + after.children_system - before.children_user - before.children_system,
        "memory": peak_memory(),
        "memory_of_second": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit,
        "events": report["totals"]["events"]["train"],
    }


def rows(quick: bool) -> Iterator[Row]:
    """Time and memory, on one file. The seconds are of a machine with two processors and nothing else to do."""
    events = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "big_events.jsonl")
        write_stream(path, events)
        cost = in_child(cost_of_report, path)
    measured = f"{cost['first']:.1f} s and {cost['second']:.1f} s of two processors"
    per_million = cost["seconds"] * 1e6 / events
    yield Row(f"report, {events} events", measured, per_million, "s a million", 20.0, None, cost["events"] == events)
    memory = cost["memory"] + cost["memory_of_second"]
    measured = f"{cost['memory'] / 1e6:.0f} MB and {cost['memory_of_second'] / 1e6:.0f} MB"
    yield Row(f"report, {events} events, peak memory", measured, memory / 1e6, "MB", 200.0, 150.0)
