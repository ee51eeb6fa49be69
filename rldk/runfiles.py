"""The names of a run's files, and what may be a run's name."""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from .exceptions import ConfigurationError

__all__ = ["RunFiles", "check_path", "check_run_id", "new_run_id"]

MAX_RUN_ID = 128


class RunFiles(NamedTuple):
    """Where the files of one run are.

    Attributes:
        events: The stream, written live.
        alerts: A JSON array, current at every moment.
        metrics: One row a logged step, as CSV.
        report: Status, totals, statistics, alerts, coverage.
        manifest: Arguments, versions, hardware, units.
        page: The report to look at, one file for a browser.
    """

    events: Path
    alerts: Path
    metrics: Path
    report: Path
    manifest: Path
    page: Path

    @classmethod
    def of(cls, folder: str | os.PathLike[str], run_id: str, events: str | os.PathLike[str] | None = None) -> RunFiles:
        """The files of a run in a folder; `events` if the stream is elsewhere."""
        base = Path(folder)
        return cls(
            Path(events) if events is not None else base / f"{run_id}_events.jsonl",
            base / f"{run_id}_alerts.json",
            base / f"{run_id}_metrics.csv",
            base / f"{run_id}_final_report.json",
            base / f"{run_id}_run.json",
            base / f"{run_id}_report.html",
        )

    def existing(self) -> list[Path]:
        """Those that exist."""
        return [path for path in self if path.exists()]


def check_run_id(run_id: object) -> str:
    """Refuses what cannot be part of a file's name.

    Raises:
        ConfigurationError: For an empty id, one over 128 characters, path separators, `..`, or control characters.
    """
    if not isinstance(run_id, str) or not run_id.strip():
        raise ConfigurationError(f"run_id must be a non-empty string; got {run_id!r}")
    if len(run_id) > MAX_RUN_ID or len(run_id.encode("utf-8", "replace")) > 200:
        raise ConfigurationError(f"run_id must have at most {MAX_RUN_ID} characters; got {len(run_id)}: {run_id[:40]!r}...")
    if "/" in run_id or "\\" in run_id or ".." in run_id:
        raise ConfigurationError(f"run_id becomes a file name and must hold no path separator and no '..'; got {run_id!r}")
    if not run_id.isprintable():
        raise ConfigurationError(f"run_id must hold no control characters; got {run_id!r}")
    return run_id


def check_path(name: str, value: object, *, folder: bool = False) -> Path:
    """Refuses what can never be the place of a file, or of a folder; whether it can be written shows later.

    Args:
        name: The parameter's name, for the message.
        value: What the user gave.
        folder: Whether it is to be a folder.

    Raises:
        ConfigurationError: If it is no path, empty, or a folder where a file is meant.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ConfigurationError(f"{name} must be a non-empty path; got {value!r}")
    path = Path(value)
    if not folder and path.is_dir():
        raise ConfigurationError(f"{name} must be a file, and is a folder; got {str(path)!r}")
    return path


def new_run_id(name: str) -> str:
    """A unique, readable id: the name, the UTC time, and four random hex digits from the system.

    The system's randomness, since Python's and torch's belong to the training.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip("-.")[:64] or "run"
    slug = re.sub(r"\.{2,}", ".", slug)
    return f"{slug}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
