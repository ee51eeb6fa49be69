"""Runs the trainers' tests on other versions of TRL, in environments that share one torch.

    python3 scripts/matrix.py                     every environment of environments/matrix.json but the newest
    python3 scripts/matrix.py all                 the newest too (`make test` runs it there)
    python3 scripts/matrix.py 0.27.2 [4.57.6]     one other TRL, and optionally which transformers

Exit status 1 if any test failed in any of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from env import ROOT, SPECS, environment, python_of, say


def main(arguments: list[str]) -> int:
    """Runs the tests marked `matrix` in each environment; returns the exit status."""
    names = list(json.loads((SPECS / "matrix.json").read_text()))
    if not arguments:
        chosen = [(name,) for name in names if name != "newest"]
    elif arguments == ["all"]:
        chosen = [(name,) for name in names]
    else:
        chosen = [("trl", *arguments)]
    settings = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    failed = []
    for names_and_versions in chosen:
        label = " ".join(names_and_versions)
        python = python_of(environment(*names_and_versions))
        say(f"testing on {label}")
        command = [python, "-m", "pytest", "-m", "matrix", "-q", "-p", "no:cacheprovider"]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}).returncode:
            failed.append(label)
    say(f"failed: {', '.join(failed)}" if failed else "all green")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
