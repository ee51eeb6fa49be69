"""Asks the rivals: each judges all stored runs in an environment of its own versions, and its verdicts are kept."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from .catalogue import catalogue
from .judges import rivals
from .replay import keep, replay

__all__ = ["judge_again", "main"]

_ROOT = Path(__file__).resolve().parents[2]


def judge_again(names: Sequence[str]) -> int:
    """Runs this module in the rivals' environment, which is made if need be."""
    catalogue()  # written down here: the rivals' environment has no TRL to import the scenarios with
    command = [sys.executable, str(_ROOT / "scripts" / "env.py"), "rivals"]
    python = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    return subprocess.run([python, "-m", __name__, *names], cwd=_ROOT, env=environment).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Judges and keeps."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.rivals", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*rivals(), []], help="; ".join(rivals()))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    known = catalogue()
    for name in options.names or rivals():
        path = keep(name, replay(known, lambda key: True, name)[0])
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB in {path.relative_to(_ROOT)}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
