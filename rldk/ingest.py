"""From what is on disk to a DataFrame: find the files, choose the format, pivot.

Reads rldk's events, the older rldk stream, flat TRL logs, transformers' `trainer_state.json`, and the stores of trackio,
wandb, TensorBoard and MLflow; anything else with a step and numbers goes through a flexible reader. Needs no torch,
transformers or trl.
"""

from __future__ import annotations

import difflib
import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapters import Adapter, formats, sniff
from .event import Event, sanitised
from .exceptions import ConfigurationError, EmptyLogError, NoLogsError, UnknownSchemaError
from .metrics import METRICS, canonical_name, nearest
from .remote import fetch, is_url, shown
from .text import clean

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "claimed", "events_of", "find_all", "find_logs", "ingest_all", "ingest_runs", "looked_for", "open_log", "oriented", "run_name",
    "run_names", "unreadable",
]

_STREAMS = "*_events.jsonl"
_STATE = "trainer_state.json"
_HEAD = 128


def ingest_runs(
    source: str | os.PathLike[str], adapter_hint: str | None = None, field_map: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Reads the logs of one or many runs into one DataFrame.

    Args:
        source: A file, a folder or a glob, here or, as a URL, elsewhere: `hf://datasets/user/name`, `s3://...`. In a
            folder, event streams are read if there are any, else other JSON lines, else the `trainer_state.json` of the
            highest checkpoint, else what a tracker left there: databases of trackio, files of wandb, event files of
            TensorBoard, or a store of MLflow.
        adapter_hint: The format, if it is not to be recognised: `rldk`, `named_values`, `trl`, `trainer_state`, `trackio`,
            `wandb`, `tensorboard`, `mlflow` or `flexible`.
        field_map: Names in the logs to canonical names (or to `step`), or the other way round.

    Returns:
        Columns `step` (int), `wall_time` (seconds, NaN if not recorded), `run_id` and `phase` (categories), then one
        float column a metric, by its canonical name; evaluation metrics have the prefix `eval_`. Rows are in step
        order within a run. `df.attrs["skipped_lines"]` counts malformed lines.

    Raises:
        NoLogsError: If there is nothing to read; it says what was looked for and where.
        EmptyLogError: If there is no readable record.
        UnknownSchemaError: If records have no step or no metric that can be recognised; it suggests a `field_map`. Also
            for a database that is nobody's.
        MissingLibraryError: If wandb or tensorboard, whose files these are, is not installed.
        ConfigurationError: If `adapter_hint` is no format.

    Example:
        ```python
        df = rldk.ingest_runs("rldk_logs")
        train = df[df.phase == "train"]
        train.plot(x="step", y=["reward_mean", "kl_mean"], subplots=True)
        ```
    """
    return ingest_all([source], adapter_hint, field_map)


def ingest_all(
    sources: Iterable[str | os.PathLike[str]], adapter_hint: str | None = None, field_map: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Reads the logs of several sources into one DataFrame, each file once; everything else as `ingest_runs`."""
    from .frame import FrameBuilder  # here, since it brings pandas, which reading events alone does not need

    builder = FrameBuilder()
    logs, empty = _open_all(sources, adapter_hint, oriented(field_map))
    for log, name in zip(logs, run_names([log.path for log in logs])):
        try:
            builder.extend(log.rows(name))
        except OSError as error:
            raise NoLogsError(f"cannot read {shown(log.path)}: {error}") from error
    damaged = [log.damage for log in logs if log.damage.count]
    if not len(builder):
        raise unreadable(logs)
    frame = builder.build()
    frame.attrs["skipped_lines"] = sum(damage.count for damage in damaged)
    if damaged:
        warnings.warn("rldk: skipped lines: " + "; ".join(map(str, damaged[:10])), UserWarning, stacklevel=3)
    if empty:
        warnings.warn("rldk: skipped files: " + "; ".join(map(str, empty[:10])), UserWarning, stacklevel=3)
    return frame


def events_of(source: str | os.PathLike[str], adapter_hint: str | None = None) -> Iterator[Event]:
    """Yields the events of all logs of a source, in the order of files and lines.

    Raises:
        IngestError: As `ingest_runs`.
    """
    for log in _open_all([source], adapter_hint, None)[0]:
        try:
            yield from log.events()
        except OSError as error:
            raise NoLogsError(f"cannot read {shown(log.path)}: {error}") from error


def _open_all(
    sources: Iterable[str | os.PathLike[str]], adapter_hint: str | None, field_map: Mapping[str, str] | None
) -> tuple[list[Adapter], list[EmptyLogError]]:
    """The adapters of the sources' files, and the complaints about those that are empty.

    A run that has just begun, or died at once, must not hide the others of its folder.
    """
    logs: list[Adapter] = []
    empty: list[EmptyLogError] = []
    for path in find_all(sources):
        try:
            logs.append(open_log(path, adapter_hint, field_map))
        except EmptyLogError as error:
            empty.append(error)
    if not logs:
        raise empty[0]
    _tell_apart(logs)
    return logs, empty


def _tell_apart(logs: list[Adapter]) -> None:
    """Lets logs know which names of theirs others have too: two projects may each have a run `baseline`."""
    if len(logs) < 2:
        return
    counts: Counter[str] = Counter()
    for log in logs:
        try:
            counts.update(log.names())
        except OSError:
            continue  # said when it is read
    shared = frozenset(name for name, count in counts.items() if count > 1)
    for log, place in zip(logs, run_names([log.path for log in logs])):
        log.shared, log.place = shared, place


def find_all(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The log files of several sources, each once, in their order.

    Raises:
        NoLogsError: If one of the sources has none.
    """
    return list({path.resolve(): path for source in sources for path in find_logs(source)}.values())


def find_logs(source: str | os.PathLike[str]) -> list[Path]:
    """The log files that a path, folder or glob stands for.

    Raises:
        NoLogsError: If there is none.
    """
    text = os.fspath(source)
    if is_url(text):
        return _elsewhere(text)
    path = Path(text)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return _in_folder(path)
        if glob.has_magic(text):
            found = sorted(Path(name) for name in glob.glob(text, recursive=True))
            files = [item for item in found if item.is_file()]
            for folder in (item for item in found if item.is_dir()):
                try:
                    files.extend(_in_folder(folder))
                except NoLogsError:
                    continue  # a folder among many that a pattern matched
            if files:
                return files
            raise NoLogsError(f"no file matches {text!r} (looked in {Path.cwd()})")
    except (OSError, ValueError) as error:
        if isinstance(error, NoLogsError):
            raise
        raise NoLogsError(f"cannot look at {text!r}: {error}") from error
    raise NoLogsError(f"no such file or folder: {text!r} (looked in {Path.cwd()})")


def _elsewhere(url: str) -> list[Path]:
    """The logs that a URL stands for, copied here."""
    files: list[Path] = []
    for place in fetch(url):
        files.extend([place] if place.is_file() else _in_folder(place))
    return files


def _in_folder(folder: Path) -> list[Path]:
    for pattern in (_STREAMS, "*.jsonl"):
        for place in (pattern, f"*/{pattern}"):
            files = sorted(path for path in folder.glob(place) if path.is_file())
            if files:
                return files
    states = [*folder.glob(_STATE), *folder.glob(f"checkpoint-*/{_STATE}")]
    if states:
        return [max(states, key=lambda path: (path.parent == folder, _checkpoint_number(path)))]
    for adapter in formats().values():
        found = adapter.find(folder)
        if found:
            return found
    raise NoLogsError(f"no logs in folder {shown(folder)!r}: looked for {looked_for()}")


def looked_for() -> str:
    """What a folder is searched for, in words."""
    others = [adapter.looked_for for adapter in formats().values() if adapter.looked_for]
    return f"{_STREAMS}, *.jsonl (there and one level below), {_STATE}, checkpoint-*/{_STATE}, {', '.join(others)}"


def _checkpoint_number(path: Path) -> int:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def claimed(path: Path) -> type[Adapter] | None:
    """The format of a log that is no text; None if it seems to be.

    Raises:
        OSError: If it cannot be read.
    """
    head = _head(path)
    return next((adapter for adapter in formats().values() if adapter.claims(path, head)), None)


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with open(path, "rb") as file:
        return file.read(_HEAD)


def open_log(path: Path, adapter_hint: str | None = None, field_map: Mapping[str, str] | None = None) -> Adapter:
    """The adapter for a file or folder: the one asked for, or the first that claims it or recognises its beginning.

    Raises:
        ConfigurationError: If the hint is no format.
        NoLogsError: If the file cannot be read.
        EmptyLogError: If it is empty.
        UnknownSchemaError: If it looks like a tracker's, and is not.
    """
    known = formats()
    if adapter_hint is not None:
        if adapter_hint not in known:
            hint = nearest(adapter_hint, list(known))
            raise ConfigurationError(f"unknown adapter_hint {adapter_hint!r}.{hint} Known: {', '.join(known)}")
        return known[adapter_hint](path, field_map)
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise EmptyLogError(f"{shown(path)} is empty")
        binary = claimed(path)
        if binary is not None:
            return binary(path, field_map)
        head = _head(path)
        why = next((why for adapter in known.values() if (why := adapter.refusal(path, head))), "")
        if why:
            raise UnknownSchemaError(why)
        records = sniff(path)
        for adapter in known.values():
            if adapter.recognises(path, records):
                return adapter(path, field_map)
    except OSError as error:
        raise NoLogsError(f"cannot read {shown(path)}: {error}") from error
    raise EmptyLogError(f"{shown(path)} holds no line that is a JSON object, and no log_history")


def oriented(field_map: Mapping[str, str] | None) -> dict[str, str]:
    """A field map as source name to canonical name, whichever way round it was written."""
    oriented = {}
    for left, right in (field_map or {}).items():
        if _is_ours(left) and not _is_ours(right):
            left, right = right, left
        oriented[str(left)] = canonical_name(str(right)) if right != "step" else "step"
    return oriented


def _is_ours(name: str) -> bool:
    return name == "step" or canonical_name(str(name)).removeprefix("eval_") in METRICS


def run_name(path: Path) -> str:
    """What a run is called whose events do not say: by its file or, where all are called alike, its folder."""
    place = _named_after(path)
    return str(sanitised(path.stem.removesuffix("_events") if place is None else place.name))  # a file's name may be any bytes


def _named_after(path: Path) -> Path | None:
    return next((place for adapter in formats().values() if (place := adapter.named_after(path)) is not None), None)


def run_names(paths: Iterable[Path]) -> list[str]:
    """`run_name` of each file; where several would have the same, with as much of the path as tells them apart.

    Else the runs of `a/out/trainer_state.json` and `b/out/trainer_state.json` would be read as one that was resumed.
    """
    paths = list(paths)
    names = [run_name(path) for path in paths]
    for depth in range(_DEPTH):
        counts = Counter(names)
        if len(counts) == len(names):
            break
        names = [
            f"{above}/{name}" if counts[name] > 1 and (above := _above(path, depth)) else name
            for path, name in zip(paths, names)
        ]
    return names


_DEPTH = 16


def _above(path: Path, depth: int) -> str:
    """The folder that stands `depth` levels above the one that the run's name is of."""
    folder = (_named_after(path) or path.resolve()).parent
    parents = (folder, *folder.parents)
    return str(sanitised(parents[depth].name)) if depth < len(parents) else ""


def unreadable(logs: list[Adapter]) -> Exception:
    """The error for files of which nothing could be used: empty, or of a schema that nobody knows."""
    records = [record for log in logs for record in _sample(log)]
    places = ", ".join(shown(log.path) for log in logs[:3])
    if not records:
        return EmptyLogError(f"no readable record in {places}")
    keys: dict[str, Any] = {key: value for record in records for key, value in record.items()}
    numeric = [key for key, value in keys.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    pairs = {"step": next((key for key in numeric if "step" in key.lower() or "iter" in key.lower()), None)}
    for key in numeric[:100]:  # each takes milliseconds
        if key == pairs["step"]:
            continue
        match = difflib.get_close_matches(key.rpartition("/")[2], list(METRICS), n=1)
        if match:
            pairs.setdefault(match[0], key)
    suggestion = {source: name for name, source in pairs.items() if source} or {"your_step_key": "step"}
    error = UnknownSchemaError(
        f"no step with a metric was recognised in {places}. Keys seen: {clean(', '.join(list(keys)[:12]))}. "
        f"Say which is which, for example field_map={suggestion!r}"
    )
    error.field_map = suggestion
    return error


def _sample(log: Adapter) -> list[dict[str, Any]]:
    try:
        return log.sample()
    except OSError:
        return []
