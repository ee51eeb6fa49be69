"""Runs the commands that docs/cli.md shows, and puts their real output under them.

    python scripts/cli_docs.py            writes docs/cli.md anew
    python scripts/cli_docs.py --check    exits with 1 if an output is not what the page says

A block of the language `console` is one command after `$ `, run in a folder with two public runs, and what it prints to
stdout. Blocks of the language `text` are of one machine, and stay as they are.
"""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
STATES = ROOT / "tests" / "data" / "real_states"
RUNS = {"out/checkpoint-1130": "grpo_mbpp_kl_spikes_1134", "kto/checkpoint-1000": "kto_hh_1000"}
COLUMNS = "96"


def folder_of_the_page(folder: Path) -> None:
    """Makes what the page's commands are about."""
    for place, name in RUNS.items():
        (folder / place).mkdir(parents=True)
        (folder / place / "trainer_state.json").write_bytes(lzma.decompress((STATES / f"{name}.json.xz").read_bytes()))


def output_of(command: str, folder: Path) -> str:
    """What a command line prints to stdout, with `rldk` as it is in this tree."""
    program = folder / "bin" / "rldk"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rldk "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "COLUMNS": COLUMNS, "PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def current(page: str) -> str:
    """The page with the outputs of today, in the order of its blocks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder_of_the_page(folder)
        return re.sub(
            r"^```console\n\$ (.+)\n(?:(?!```).*\n)*```$",
            lambda match: f"```console\n$ {match[1]}\n{output_of(match[1], folder)}```",
            page, flags=re.MULTILINE,
        )


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it."""
    page = PAGE.read_text(encoding="utf-8")
    now = current(page)
    if now == page:
        return 0
    if "--check" in arguments:
        sys.stderr.write("docs/cli.md shows other outputs than the commands have: python scripts/cli_docs.py\n")
        return 1
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
