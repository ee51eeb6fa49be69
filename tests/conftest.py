"""What every test gets: no network, one thread, an empty working folder, and a clean slate after it."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))  # it reads this once, on its import

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Default output folders must land in the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_script(tmp_path):
    """Runs a script in a process of its own, with the repository and the tests importable; returns what it did."""
    # wandb leaves there the address of its service, which would then serve the script as well.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}

    def run(source: str, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(source)
        return subprocess.run(
            [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=timeout,
            env={**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **environment},
        )

    return run
