"""Judging all stored runs: rldk by replaying it over them, the rivals from the verdicts that are kept beside the streams.

A rival's verdicts on given streams never change, and judging takes the rival's own environment, so they are made once
(`--rivals`) and kept in `verdicts/<rival>.json.xz`, with the digest of each stream that they are about.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .catalogue import Facts
from .judges import Verdict, is_logged, judge_of
from .score import Judged
from .store import STREAMS, Key, path_of, read

__all__ = ["VERDICTS", "Kept", "judge_scenario", "keep", "kept_verdicts", "replay", "stream_digest"]

VERDICTS = Path(__file__).parent / "verdicts"
_JOBS = 2
_MESSAGE = 160  # characters of a message that are kept: they are for looking, not for counting

Only = Callable[[Key], bool]


class Kept(NamedTuple):
    """A rival's verdicts.

    Attributes:
        name: The rival.
        version: Its version.
        how: How it was fed.
        stale: Scenarios whose stream is not the one that was judged.
        verdicts: By run.
    """

    name: str
    version: str
    how: str
    stale: tuple[str, ...]
    verdicts: dict[Key, tuple[Verdict, ...]]


def replay(known: Mapping[str, Facts], only: Only, module: str = "rldk", streams: Path = STREAMS) -> tuple[list[Judged], dict[Key, str]]:
    """Shows every stored run of known scenarios to a judge, two scenarios at once.

    Args:
        known: The scenarios.
        only: Which runs to judge.
        module: The judge's module.
        streams: Where the runs are.

    Returns:
        The runs with the judge's alarms, and the exceptions that ended some of them.
    """
    present = [facts for facts in known.values() if path_of(facts.name, streams).exists()]
    present.sort(key=lambda facts: -path_of(facts.name, streams).stat().st_size)  # the long ones first: no waiting at the end
    began = time.monotonic()
    judged: list[Judged] = []
    died: dict[Key, str] = {}
    with ProcessPoolExecutor(_JOBS) as pool:
        work = partial(judge_scenario, module, streams)
        keys = [frozenset(_keys_wanted(facts.name, only)) for facts in present]
        results = pool.map(work, present, keys)
        for number, result in enumerate(results, 1):
            judged += result[0]
            died |= result[1]
            left = (time.monotonic() - began) / number * (len(present) - number)
            _progress(f"{module}: {number} of {len(present)} scenarios, {left:.0f} s left")
    _progress("")
    return judged, died


def _keys_wanted(name: str, only: Only) -> Iterable[tuple[int, int]]:
    """Seeds and intervals that are wanted: what a process can be told without being sent a function."""
    return ((seed, interval) for seed in range(100) for interval in (1, 5) if only(Key(name, seed, interval, "")))


def judge_scenario(
    module: str, streams: Path, facts: Facts, wanted: frozenset[tuple[int, int]]
) -> tuple[list[Judged], dict[Key, str]]:
    """Judges the stored runs of one scenario."""
    judge, judged, died = judge_of(module), [], {}
    for recording in read(path_of(facts.name, streams)):
        header = recording.header
        if (header.seed, header.logging_steps) not in wanted:
            continue
        logs = tuple(row.step for row in recording.rows if is_logged(row))
        judged.append(Judged(header.key, header.trainer, logs, tuple(judge.judge(recording, facts.thresholds))))
        if header.died:
            died[header.key] = header.died
    return judged, died


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def stream_digest(path: Path) -> str:
    """Tells one recording of a scenario from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def keep(module: str, judged: Sequence[Judged], streams: Path = STREAMS, folder: Path = VERDICTS) -> Path:
    """Writes a rival's verdicts."""
    judge = judge_of(module)
    by_scenario: dict[str, list[Any]] = {}
    for run in sorted(judged):
        verdicts = [[step, logged, code, message[:_MESSAGE]] for step, logged, code, message, _ in run.verdicts]
        by_scenario.setdefault(run.key.scenario, []).append([*run.key[1:], verdicts])
    record = {
        "name": judge.name,
        "version": judge.version,
        "how": judge.how,
        "streams": {name: stream_digest(path_of(name, streams)) for name in by_scenario},
        "verdicts": by_scenario,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}.json.xz"
    path.write_bytes(lzma.compress(json.dumps(record, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME))
    return path


def kept_verdicts(module: str, streams: Path = STREAMS, folder: Path = VERDICTS) -> Kept | None:
    """Reads a rival's verdicts; None if it was never asked."""
    path = folder / f"{module}.json.xz"
    if not path.exists():
        return None
    record = json.loads(lzma.decompress(path.read_bytes()))
    verdicts = {
        Key(name, *run): tuple(Verdict(*verdict) for verdict in found)
        for name, runs in record["verdicts"].items()
        for *run, found in runs
    }
    stale = tuple(name for name, digest in record["streams"].items() if digest != stream_digest(path_of(name, streams)))
    return Kept(record["name"], record["version"], record["how"], stale, verdicts)
