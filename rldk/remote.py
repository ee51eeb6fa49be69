"""Logs that are elsewhere: hf://, s3:// and whatever else fsspec reaches, copied here so that the ordinary readers can read.

Only what a reader takes is fetched, into a folder that lasts as long as the process. Nothing is written there, and nothing
waits without limit for a server that does not answer. The libraries of a protocol are imported when a URL of it is read.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .environment import redact
from .exceptions import NoLogsError
from .text import clean

__all__ = ["SILENCE_SECONDS", "fetch", "is_fetched", "is_url", "shown"]

# Without a byte for so long, a server is not waited for any more.
SILENCE_SECONDS = 60.0

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z][A-Za-z0-9+.-]+)*://.")
_STREAM = "_events.jsonl"
# What a replay and a report take of a run's other files: thresholds, how it ended, its alerts.
_BESIDE = ("_run.json", "_final_report.json", "_alerts.json")
_OTHERS = ("_metrics.csv", "_report.html")  # each stands for the run
_STATE = "trainer_state.json"
# As a folder here is looked at (`rldk.ingest`): the first of them that there is, and how deep it may lie. Trackers' files last.
_WANTED: tuple[tuple[tuple[str, ...], int], ...] = (
    ((f"*{_STREAM}",), 2), (("*.jsonl",), 2), ((_STATE,), 2), (("*.db", "*.wandb", "*tfevents*"), 3),
)
_DEEPEST = max(depth for _, depth in _WANTED)
_BLOCK = 1 << 20  # fsspec asks for two at a time, and what takes longer than SILENCE_SECONDS is no answer

_folders: list[tempfile.TemporaryDirectory[str]] = []
_places: dict[Path, str] = {}  # the folders here, and the protocols of what they hold copies of
_one_at_a_time = threading.Lock()


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a URL rather than a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def fetch(url: str) -> list[Path]:
    """Copies the logs that a URL stands for.

    Args:
        url: Of a file, a folder, or a glob, as fsspec takes them.

    Returns:
        Files and folders here, to be looked at in place of what was asked for.

    Raises:
        NoLogsError: If there is nothing, the library for the protocol is missing, or the server does not answer.
    """
    said: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    stop = threading.Event()

    def alive() -> None:
        if stop.is_set():
            raise TimeoutError("given up")
        said.put((False, None))

    def work() -> None:
        try:
            said.put((True, _fetch(url, alive)))
        except BaseException as error:  # noqa: BLE001  # whatever a file system raises is told where it was asked for
            said.put((True, error))

    # In a thread that may be left behind: not every library bounds its waits.
    threading.Thread(target=work, name="rldk-fetch", daemon=True).start()
    try:
        done, result = False, None  # type: bool, Any
        while not done:
            done, result = said.get(timeout=SILENCE_SECONDS)
    except queue.Empty:
        raise NoLogsError(f"cannot read {clean(url)}: no answer within {SILENCE_SECONDS:g} s") from None
    finally:
        stop.set()
    if isinstance(result, NoLogsError):
        raise result
    if isinstance(result, BaseException):
        raise NoLogsError(f"cannot read {clean(url)}: {_reason(result)}") from result
    found: list[Path] = result
    return found


def is_fetched(path: Path) -> bool:
    """Whether a file here is the copy of one elsewhere, which will be gone when the process ends."""
    return shown(path) != str(path)


def shown(path: str | os.PathLike[str]) -> str:
    """The URL of what a file here is a copy of, fit to be shown; any other path as it is."""
    text = os.fspath(path)
    for place, url in _places.items():
        if text.startswith(f"{place}{os.sep}"):
            return clean(url + text[len(str(place)) + 1 :].replace(os.sep, "/"))
    return text


def _reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    text = clean(redact(" ".join(str(error).split())))[:500]
    if isinstance(error, FileNotFoundError):
        return "no such file or folder" + (f": {text}" if " " in text else "")  # mostly the path alone
    if isinstance(error, (ImportError, ValueError)) and text:
        return text  # "Install s3fs to access S3", "Protocol not known: x"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _fetch(url: str, alive: Callable[[], None]) -> list[Path]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # here, since most sources are paths

    # A file system of its own: one that is kept may hold a listing of an hour ago. One listing at a time, since the Hub's
    # would else be made in a pool, for which the interpreter waits at its exit.
    options = {"max_workers": 1} if url.partition("://")[0].rpartition("::")[2] == "hf" else {}
    files, path = url_to_fs(url, skip_instance_cache=True, **options)
    alive()
    with _one_at_a_time:
        folder = tempfile.TemporaryDirectory(prefix="rldk-", ignore_cleanup_errors=True)
        _folders.append(folder)
        base = Path(folder.name).resolve()
        _places[base] = f"{url.partition('://')[0]}://"
    copier = _Copier(files, base, alive)
    found: Mapping[str, Any] = files.glob(path, detail=True) if glob.has_magic(path) else {}
    alive()
    if not found and (not glob.has_magic(path) or files.exists(path)):  # a run may be called `a[1]`
        found = {path: files.info(path)}
        alive()
    places = [copier.file(name) if info["type"] == "file" else copier.folder(name, info) for name, info in sorted(found.items())]
    if not any(places):
        raise NoLogsError(
            f"no logs in {clean(url)}: looked for {', '.join(pattern for patterns, _ in _WANTED for pattern in patterns)}"
            if found else f"nothing matches {clean(url)}"
        )
    return [place for place in places if place is not None]


class _Copier:
    """Brings files here.

    Args:
        files: The file system.
        base: The folder here; below it files have the path that they have there, since runs may be named after folders.
        alive: Called whenever something has come.
    """

    def __init__(self, files: Any, base: Path, alive: Callable[[], None]) -> None:
        self._files = files
        self._base = base
        self._alive = alive

    def file(self, name: str) -> Path:
        """One file; of a run's files, also those beside it. Any of them stands for the run's stream."""
        end = next((end for end in (_STREAM, *_BESIDE, *_OTHERS) if name.endswith(end)), None)
        if end is None:
            return self._copy(name)
        run = name.removesuffix(end)
        there = {str(item).rstrip("/") for item in self._files.ls(self._files._parent(name), detail=False)}
        self._alive()
        stream = run + _STREAM
        if end != _STREAM and stream not in there:
            return self._copy(name)
        self._beside(run, there)
        return self._copy(stream)

    def folder(self, name: str, info: Mapping[str, Any]) -> Path | None:
        """What is wanted of a folder; None if there is nothing."""
        root = str(info.get("name") or name).rstrip("/")
        there = [str(item) for item in self._files.find(root, maxdepth=_DEEPEST)]
        self._alive()
        chosen: list[str] = []
        for patterns, depth in _WANTED:
            chosen = [
                item for item in there
                if item[len(root):].strip("/").count("/") < depth
                and any(fnmatch.fnmatch(item.rpartition("/")[2], pattern) for pattern in patterns)
            ]
            if patterns == (_STATE,) and chosen:
                chosen = [max(chosen, key=lambda item: _latest(item, root))]
            if chosen:
                break
        for item in chosen:
            self._copy(item)
            if item.endswith(_STREAM):
                self._beside(item.removesuffix(_STREAM), set(there))
        return self._here(root) if chosen else None

    def _beside(self, run: str, there: set[str]) -> None:
        for end in _BESIDE:
            if run + end in there:
                self._copy(run + end)

    def _here(self, name: str) -> Path:
        parts = [part for part in name.rpartition("://")[2].split("/") if part not in ("", ".", "..")]
        return self._base.joinpath(*(part.replace(":", "_") if os.name == "nt" else part for part in parts))

    def _copy(self, name: str) -> Path:
        target = self._here(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._files.open(name, "rb", block_size=_BLOCK) as source, open(target, "wb") as copy:
            while block := source.read(_BLOCK):
                copy.write(block)
                self._alive()
        return target


def _latest(name: str, root: str) -> tuple[bool, int]:
    """Which state of a trainer is the last: the one beside the checkpoints, else that of the highest."""
    parent = name.rpartition("/")[0]
    number = parent.rpartition("-")[2]
    return parent == root, int(number) if number.isdecimal() else -1
