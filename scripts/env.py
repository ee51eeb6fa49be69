"""Makes a virtual environment of this project, or finds it made, and prints the path of its Python.

    python3 scripts/env.py demo                  the newest TRL, and rldk
    python3 scripts/env.py test                  the same, and what the tests need
    python3 scripts/env.py oldest                an environment of environments/matrix.json, with the tests' needs
    python3 scripts/env.py rivals                the tools that the detection benchmark compares rldk with
    python3 scripts/env.py trl 0.27.2 [4.57.6]   any other TRL, and optionally which transformers

torch is installed once, in a layer (.venvs/torch) that all environments see: it is most of the time and of the disk.
An environment is made anew when what it is made from has changed. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".venvs"
SPECS = ROOT / "environments"
TORCH = "torch==2.13.0"
RIVALS = ("rldoctor", "rlwatch", "trainproof", "training-doctor")


def say(text: str) -> None:
    """Progress goes to stderr: stdout is the answer."""
    sys.stderr.write(f"[env] {text}\n")
    sys.stderr.flush()


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(folder: Path) -> Path:
    """Where an environment keeps its packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python_of(folder), "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def pip(folder: Path, *arguments: str) -> None:
    """Runs pip in an environment; its errors are shown, its warnings and chatter are not."""
    command = [python_of(folder), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
        raise SystemExit(f"[env] pip failed: {' '.join(map(str, command))}")


def made(folder: Path, recipe: str) -> bool:
    """Whether the environment stands and was made from this recipe."""
    stamp = folder / "made-from"
    return stamp.is_file() and stamp.read_text() == recipe and python_of(folder).exists()


def make(name: str, install: list[str], constraints: list[str], layer: Path | None = None) -> Path:
    """Makes an environment, unless it is there.

    Args:
        name: Its folder in .venvs.
        install: What pip is asked for.
        constraints: Files of pins.
        layer: An environment whose packages this one sees.
    """
    folder = HOME / name
    parts = [sys.version, str(ROOT), *install, *(Path(file).read_text() for file in constraints)]
    if "-e" in install:
        parts.append((ROOT / "pyproject.toml").read_text())
    recipe = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if made(folder, recipe):
        return folder
    began = time.monotonic()
    say(f"making {folder.relative_to(ROOT)} ({', '.join(item for item in install if item != '-e')}) ...")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    if layer is not None:
        (site_packages(folder) / "_layer.pth").write_text(f"{site_packages(layer)}\n")
    pip(folder, *(item for file in constraints for item in ("-c", str(file))), *install)
    (folder / "made-from").write_text(recipe)
    say(f"made {folder.relative_to(ROOT)} in {time.monotonic() - began:.0f} s")
    return folder


def environment(name: str, *versions: str) -> Path:
    """The environment of this name, made if need be."""
    matrix = json.loads((SPECS / "matrix.json").read_text())
    newest = SPECS / matrix["newest"]["constraints"]
    layer = make("torch", [TORCH, "numpy"], [str(newest)])
    if name == "demo":
        return make(name, [TORCH, *matrix["newest"]["install"], "-e", "."], [str(newest)], layer)
    tests = [TORCH, "-e", ".[test]"]
    if name == "test":
        # The trackers are tested here only: the same code speaks to them whatever the TRL.
        everything = [TORCH, "-e", ".[test,test-trackers]"]
        return make(name, [*matrix["newest"]["install"], *everything], [str(newest)], layer)
    if name == "rivals":
        # No TRL, and rldk from the source tree: the tools are shown what was recorded, nothing is trained.
        return make(name, [*RIVALS, "transformers", "orjson", "packaging"], [str(SPECS / "rivals.txt")], layer)
    if name in matrix:
        row = matrix[name]
        return make(name, [*row["install"], *tests], [str(SPECS / row["constraints"])], layer)
    if name == "trl" and versions:
        trl, transformers = versions[0], versions[1] if len(versions) > 1 else None
        # TRL below 1 does not run on transformers 5; requests is what TRL 1.12 forgot to ask for.
        asked = f"transformers=={transformers}" if transformers else "transformers<5" if trl.startswith("0.") else "transformers"
        return make(f"trl-{trl}", [f"trl=={trl}", asked, "requests", *tests], [], layer)
    raise SystemExit(f"[env] unknown environment {name!r}; known: demo, test, rivals, {', '.join(matrix)}, trl VERSION")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    print(python_of(environment(*sys.argv[1:])))
