"""Which name a run that is logged by hand gets, and whether it goes on with one that is there.

Two processes may begin a run of one name in the same moment: who makes the manifest first has it. Never writes into a
run that somebody records.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ._files import read_object
from .rebuild import status_of
from .runfiles import RunFiles, new_run_id

__all__ = ["choose"]

logger = logging.getLogger("rldk")

_LONGEST_NAME = 100  # bytes: file systems take 255, and the longest ending of a run's files is 20


def choose(run_id: str | None, name: str, folder: Path, resume: bool) -> tuple[str, bool]:
    """The run's name, and whether it goes on with one that is there. A new run's name is taken at once.

    Two processes may begin a run of one name in the same moment: who makes the manifest first has it.
    """
    if run_id is None:
        return new_run_id(name), False
    chosen = wanted = _file_name(run_id)
    number = 1
    while True:
        files = RunFiles.of(folder, chosen)
        there = files.existing()
        if there and resume and status_of(read_object(files.report), read_object(files.manifest), files.events)[0] != "running":
            return chosen, files.events.exists()
        if not there and _take(files.manifest):
            break
        number += 1
        chosen = f"{wanted}-{number}"
    if chosen != wanted:
        logger.warning("rldk: a run %r exists already in %s: this one is recorded as %r", wanted, folder, chosen)
    return chosen, False


def _take(path: Path) -> bool:
    """Makes the file, if nobody has. Where none can be made, there is nothing to fight for either."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _file_name(name: str) -> str:
    """A name as it may stand in a file's name."""
    slug = re.sub(r"[^\w .+=@-]+", "-", name).strip(" .-")
    short = re.sub(r"\.{2,}", ".", slug).encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return short.strip(" .-") or "run"
