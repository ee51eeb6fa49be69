"""Re-recording: the planned runs in the three environments at once, then into the store.

Runs that were recorded before an interruption are kept in `.recording` and not made again; once all are there they
replace those of the store, and the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .catalogue import Facts
from .plan import VERSIONS, plan
from .store import STREAMS, Key, encode_line, path_of, read, write

__all__ = ["merge", "record_everywhere"]

_ROOT = Path(__file__).resolve().parents[2]
_WORK = Path(__file__).parent / ".recording"
_PROCESSORS = "3"


def record_everywhere(
    known: Mapping[str, Facts], names: Sequence[str] = (), seeds: Sequence[int] = (), missing: bool = False
) -> int:
    """Records what is planned in every environment, and stores it.

    Args:
        known: All scenarios.
        names: Only these of them; all if empty.
        seeds: Only these seeds of the plan; all if empty.
        missing: Only what the store does not have.

    Returns:
        0, or 1 if a run could not be recorded; what could be is stored.
    """
    planned = plan(known)
    chosen = [key for key in planned if (not names or key.scenario in names) and (not seeds or key.seed in seeds)]
    print(f"{len(chosen)} runs planned", file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    # All at once, sharing the processors run by run: the tuning seeds of all versions are there first.
    for name, version in VERSIONS.items():
        if any(key.trl == version for key in chosen):
            command = [_python(name), "-m", f"{__package__}.record", "--planned", "--out", str(_WORK)]
            command += ["--jobs", _PROCESSORS, "--slots", _PROCESSORS]
            command += ["--scenarios", *names] if names else []
            command += ["--seeds", *map(str, seeds)] if seeds else []
            command += ["--missing"] if missing else []
            processes.append(subprocess.Popen(command, cwd=_ROOT, env=environment))
    statuses = [process.wait() for process in processes]
    merge(planned)
    if not any(statuses):
        shutil.rmtree(_WORK, ignore_errors=True)
    return int(any(statuses))


def merge(planned: Iterable[Key], work: Path = _WORK, streams: Path = STREAMS) -> int:
    """Takes recorded runs into the store; of what is there, the runs stay that are planned and not recorded anew.

    May be called while a recording is under way, to look at what there is.

    Returns:
        How many runs were taken.
    """
    wanted = set(planned)
    new: dict[str, dict[Key, str]] = {}
    for path in sorted(work.glob("*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # or it is still being written
                found = json.loads(line)
                key = Key(found["scenario"], found["seed"], found["logging_steps"], found["trl"])
                new.setdefault(key.scenario, {})[key] = line.rstrip("\n")
    for scenario, lines in sorted(new.items()):
        path = path_of(scenario, streams)
        for recording in read(path) if path.exists() else ():
            if recording.header.key in wanted:
                lines.setdefault(recording.header.key, encode_line(recording))
        # Runs of one version beside each other: what is alike compresses best.
        write(path, [lines[key] for key in sorted(lines, key=lambda key: (key.trl, key.logging_steps, key.seed))])
    return sum(map(len, new.values()))


def _python(environment: str) -> str:
    """The Python of an environment, made if need be."""
    command = [sys.executable, str(_ROOT / "scripts" / "env.py"), environment]
    return subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
