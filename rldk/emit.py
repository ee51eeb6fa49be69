"""EventWriter: one record, one line, on disk when the call returns.

The file is opened for append and each event is one `write`, so that nothing is buffered in the process, a kill loses
at most the line being written, and several processes may share a file. Never buffers, never rewrites what stands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import orjson

from .event import PHASES, Event, encode, timestamp
from .exceptions import ConfigurationError
from .metrics import canonical_names
from .vocabulary import plain_number

__all__ = ["EventWriter", "check_tags"]


class EventWriter:
    """Appends canonical events to a JSONL file.

    Args:
        path: The file; it and its folders are made if they do not exist. A torn last line, left by a crash, is healed.
        run_id: Goes into every event's `model_info`.
        seed: Goes into every event's `rng`.
        tags: Free labels, into every event's `model_info.tags`.
        fsync: Force every line to the device. A kill of the process loses nothing without it; a crash of the machine
            may. Costs about 50 times the write.

    Raises:
        OSError: If the file cannot be opened or written. `rldk.integrations.trl` catches it; here it is the caller's.

    Example:
        >>> import tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "run_events.jsonl")
        >>> with EventWriter(path, run_id="my_run") as writer:
        ...     writer.log(step=1, metrics={"reward": 0.8, "kl": 0.05})
        ...     writer.log(step=2, name="loss", value=0.5)
        >>> len(open(path).readlines())
        2
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        run_id: str | None = None,
        seed: int | None = None,
        tags: Mapping[str, Any] | Sequence[str] | None = None,
        fsync: bool = False,
    ) -> None:
        self.path = Path(path)
        self._model_info: dict[str, Any] = {}
        if run_id is not None:
            self._model_info["run_id"] = run_id
        if tags:
            self._model_info["tags"] = check_tags(tags)
        self._rng = {} if seed is None else {"seed": seed}
        self._fsync = fsync
        self._zero = time.perf_counter()  # the clock on the wall may be set back
        self._torn = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        heal(self.path)
        self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CLOEXEC, 0o644)

    def log(
        self,
        step: int,
        metrics: Mapping[str, float | int | None] | None = None,
        *,
        name: str | None = None,
        value: float | int | None = None,
        phase: str = "train",
        notes: Sequence[str] = (),
    ) -> None:
        """Writes one event: a dictionary of metrics, or one by `name` and `value`.

        Args:
            step: The step, a whole number.
            metrics: Names to numbers, None, or what holds one number (numpy scalars, tensors of one element). Synonyms
                (`kl`, `learning_rate`) become canonical names.
            name: With `value`, one metric instead of `metrics`.
            value: See `name`.
            phase: `train`, `eval`, `checkpoint` or `summary`.
            notes: Free text.

        Raises:
            ConfigurationError: If neither or both of `metrics` and `name` are given, the phase is unknown, the step is
                no whole number of 64 bits, or a value is no number; nothing is written then.
            OSError: If the line cannot be written; the next call tries again.
        """
        if (metrics is None) == (name is None) or (metrics is not None and value is not None):
            raise ConfigurationError("log() takes either metrics={...} or name= and value=, and exactly one of them")
        if phase not in PHASES:
            raise ConfigurationError(f"phase must be one of {', '.join(PHASES)}; got {phase!r}")
        if isinstance(step, bool) or not isinstance(step, int) or not -(2**63) <= step < 2**63:
            raise ConfigurationError(f"step must be an int of at most 64 bits; got {step!r}")
        given = _numbers(metrics if metrics is not None else {str(name): value})
        self.write(
            Event(
                step,
                round(time.perf_counter() - self._zero, 6),
                canonical_names(given),
                phase,
                self._rng,
                {},
                self._model_info,
                (notes,) if isinstance(notes, str) else tuple(notes),
                timestamp(time.time()),
            )
        )

    def write(self, event: Event) -> None:
        """Writes one event as it is.

        Raises:
            OSError: If the line cannot be written, in whole or in part; what was written of it is cut off by a newline
                before the next line, and readers skip it.
            ValueError: If the writer is closed.
        """
        if self._file is None:
            raise ValueError(f"write to a closed EventWriter ({self.path})")
        line = encode(event)
        if self._torn:
            line = b"\n" + line
        written = os.write(self._file, line)
        if written != len(line):
            self._torn = True
            raise OSError(28, f"only {written} of {len(line)} bytes written", str(self.path))
        self._torn = False
        if self._fsync:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file. May be called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_tags(tags: object) -> dict[str, Any] | list[Any] | None:
    """Tags as they stand in an event: a mapping or a list.

    Raises:
        ConfigurationError: If they are neither of both, nor a single label.
    """
    if tags is None:
        return None
    if isinstance(tags, str):
        return [tags]  # one label, and not its letters
    if isinstance(tags, Mapping):
        return dict(tags)
    if isinstance(tags, (Sequence, Set)):
        return list(tags)
    raise ConfigurationError(f"tags must be a mapping or a list of labels; got {tags!r}")


def _numbers(metrics: Mapping[Any, Any]) -> dict[str, float | int | None]:
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = plain_number(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"the value of metric {name!r} must be a number or None: {error}") from error
    return numbers


_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
# A torn line is a few kilobytes; what is longer than this was never a line of ours and is left to the readers.
_LONGEST_TAIL = 1 << 20
_IN_FLIGHT_S = 0.02


def heal(path: Path) -> None:
    """Makes the file end with a whole line, as a crash may have left a part of one.

    A last line that is complete but for its newline gets the newline. Anything else is overwritten with blanks, which
    every reader of JSON lines skips; nothing is cut off, since another process may be appending.
    """
    fragment, size = _tail(path)
    if not fragment:
        return
    try:
        whole = isinstance(orjson.loads(fragment), dict)
    except orjson.JSONDecodeError:
        whole = False
    if not whole:
        time.sleep(_IN_FLIGHT_S)
        if path.stat().st_size != size:
            return  # not torn: another process was in the middle of its write
    # Not opened for append: on Linux that would send every write to the end, whatever the offset.
    with open(path, "r+b") as file:
        if whole or len(fragment) == _LONGEST_TAIL:
            file.seek(size)
            file.write(b"\n")
        else:
            file.seek(size - len(fragment))
            file.write(b" " * (len(fragment) - 1) + b"\n")


def _tail(path: Path) -> tuple[bytes, int]:
    """What follows the last newline, and the file's size."""
    if not path.is_file():  # none yet; or a device or pipe, which may be read without end
        return b"", 0
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST_TAIL))
            tail = file.read()
    except FileNotFoundError:
        return b"", 0
    return tail[tail.rfind(b"\n") + 1 :], size
