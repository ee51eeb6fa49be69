"""rldk.ppo beside TRL's own PPO: wall time of an update, peak memory, and reward curves.

Needs a TRL that ships PPO (up to 1.12):

    OMP_NUM_THREADS=1 python -m benchmarks.ppo             # about ten minutes
    OMP_NUM_THREADS=1 python -m benchmarks.ppo --quick     # about three minutes

Time and memory are of the same models, prompts and arguments; each trainer has a process of its own, and they take
turns, one update each, so that a busy machine slows both sides of a ratio alike. Memory is the process's peak less what
it had before there was a model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .._measure import ROOT
from .._rows import Row, table
from .contest import KINDS, SIZES
from .learning import agreement, curve

__all__ = ["main"]

_MEGABYTE = 2**20
_NAMES = {"separate": "same value model", "shared": "shared backbone"}


class _Process:
    """A contestant's process, seen from here."""

    def __init__(self, kind: str, size: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.ppo.contestant", kind, size], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._before = self._answer("before")
        self._answer("seconds")  # the first update warms up

    def _answer(self, key: str) -> float:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"the process ended: {' '.join(map(str, self._process.args))}")  # type: ignore[arg-type]
        return float(json.loads(line)[key])

    def _tell(self, line: str) -> None:
        self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def update(self) -> float:
        """Seconds of one more update."""
        self._tell("go")
        return self._answer("seconds")

    def end(self) -> float:
        """Ends it; bytes of its peak above what it had before."""
        self._tell("")
        peak = self._answer("peak")
        self._process.wait()
        return peak - self._before


def _time_and_memory(size: str, rounds: int) -> Iterator[Row]:
    processes = {kind: _Process(kind, size) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for place in range(len(KINDS)):  # each comes first as often as last
            kind = KINDS[(number + place) % len(KINDS)]
            seconds[kind].append(processes[kind].update())
    peaks = {kind: process.end() for kind, process in processes.items()}
    theirs = statistics.median(seconds["trl"])
    for kind, name in _NAMES.items():
        ratios = [one / other for one, other in zip(seconds[kind], seconds["trl"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        own = statistics.median(seconds[kind])
        measured = f"{own * 1e3:.0f} ms; TRL {theirs * 1e3:.0f} ms; quartiles of the ratio {low:.2f} to {high:.2f}"
        yield Row(f"{size}, {name}: wall time of an update", measured, middle, "x TRL", 1.0)
    if size == "tiny":
        return  # too small for resident memory to tell of
    for kind, name in _NAMES.items():
        measured = f"{peaks[kind] / _MEGABYTE:.0f} MB; TRL {peaks['trl'] / _MEGABYTE:.0f} MB"
        yield Row(f"{size}, {name}: peak memory", measured, peaks[kind] / peaks["trl"], "x TRL", 1.0)


def _learning(seeds: int, updates: int) -> Iterator[Row]:
    curves = {kind: [curve(kind, seed, updates) for seed in range(seeds)] for kind in KINDS}
    for kind, name in _NAMES.items():
        found = agreement(curves[kind], curves["trl"])
        measured = (
            f"{found.first:.3f} to {found.ours:.3f}, TRL {found.theirs:.3f}; over all updates "
            f"{found.whole.mean:+.3f} +- {found.whole.half_width:.3f}; {found.inside:.0%} of the updates in the bands"
        )
        label = f"{seeds} seeds, {name}: reward at the end, less TRL's ({found.end.mean:+.3f} +- {found.end.half_width:.3f})"
        # A value head on the policy's backbone is another model: what it learns is measured, and is not to be TRL's.
        same = kind == "separate"
        yield Row(
            label, measured, abs(found.end.mean), "of 1", found.end.half_width if same else None,
            sound=found.whole.holds_0 or not same,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ppo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; for a look, not for a record")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--only", nargs="+", choices=(*SIZES, "learning"), default=(*SIZES, "learning"), metavar="PART")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for part in options.only:
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        rows.extend(_rows(part, options.quick))
    print(table(rows))
    if options.json is not None:
        plain: list[dict[str, Any]] = [row.to_dict() for row in rows]
        options.json.write_text(json.dumps({"quick": options.quick, "rows": plain}, indent=1) + "\n")
    return 0


def _rows(part: str, quick: bool) -> Iterator[Row]:
    if part == "learning":
        return _learning(*((3, 20) if quick else (10, 40)))
    return _time_and_memory(part, {"tiny": (20, 60), "middle": (3, 10)}[part][not quick])


if __name__ == "__main__":
    sys.exit(main())
