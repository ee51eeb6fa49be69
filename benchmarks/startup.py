"""How long it takes until rldk can be used, in fresh interpreters."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from ._measure import ROOT
from ._rows import Row

__all__ = ["rows"]

# Nothing else is imported before, or what rldk needs of the standard library would be there already.
_IMPORT = """
import sys, time
began = time.perf_counter()
import rldk
print(time.perf_counter() - began, *(name for name in ("torch", "transformers", "trl") if name in sys.modules))
"""


def _import_seconds() -> tuple[float, list[str]]:
    """Seconds of `import rldk`, and which of the heavy packages it brought in."""
    done = subprocess.run([sys.executable, "-c", _IMPORT], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    return float(seconds), heavy


def _help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rldk", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def rows(quick: bool) -> Iterator[Row]:
    """The import, and the command line's help where there is one."""
    rounds = 3 if quick else 9
    times, heavies = zip(*(_import_seconds() for _ in range(rounds)))
    seconds, heavy = statistics.median(times), heavies[0]
    yield Row("import rldk", f"brings in {', '.join(heavy) or 'no torch'}", seconds, "s", 0.15, None, sound=not heavy)
    if importlib.util.find_spec("rldk.__main__"):
        seconds = statistics.median(_help_seconds() for _ in range(rounds))
        yield Row("rldk --help", "whole process", seconds, "s", 0.4)
