"""Loading: `ingest_runs` on a stream that has been through something, against parsing its lines and no more."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import orjson

from ._fixtures import logs_of_grpo
from ._measure import in_child, peak_memory
from ._rows import Row

__all__ = ["rows"]

_BUFFER = 1 << 18
_GARBAGE = (b"", b"not json", b'{"step": 1, "metrics"', b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"{}", b"null")


def write_stream(path: str, events: int) -> None:
    """Writes events of 25 metrics, two of which come late; garbage here and there; and a torn last line."""
    from rldk.event import Event, encode
    from rldk.vocabulary import Vocabulary, families

    vocabulary = Vocabulary(families()["grpo"])
    samples = [dict(vocabulary.translate(logs).metrics) for logs in logs_of_grpo(1000)]
    late = {"eval_loss": 0.25, "rewards/format/mean": 0.5}
    info = {"run_id": "a_run-20261121-070000-abcd", "git_sha": "0" * 40, "trainer": "grpo"}
    with open(path, "wb") as file:
        for step in range(1, events + 1):
            metrics = samples[step % len(samples)]
            if step > events // 2:
                metrics = {**metrics, **late}
            rng = {"seed": 42, "state": f"{step * 2654435761 % 2**32:08x}"}
            file.write(encode(Event(
                step, round(step * 1.001, 6), metrics, "train", rng, {"tokens_in": 1000}, info, (), "2026-11-21T07:00:00.123Z"
            )))
            if step % (events // 10) == 0:
                file.write(b"\n".join(_GARBAGE) + b"\n")
        file.write(b'{"step":1,"wall_time":0.5,"metr')


def parse_only(path: str) -> None:
    """The reference: `orjson.loads` of each line, its result thrown away."""
    loads = orjson.loads
    with open(path, "rb", buffering=_BUFFER) as file:
        for line in file:
            try:
                loads(line)
            except orjson.JSONDecodeError:
                continue


def seconds_in_turns(path: str, rounds: int) -> dict[str, float]:
    """Seconds that each takes, medians of runs in turns."""
    import rldk

    warnings.simplefilter("ignore")
    rldk.ingest_runs  # noqa: B018  # imports are not loading
    times: dict[str, list[float]] = {"reference": [], "ingest": []}
    for _ in range(rounds):
        for name, call in (("reference", parse_only), ("ingest", rldk.ingest_runs)):
            began = time.perf_counter()
            call(path)
            times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def memory_of_load(path: str) -> dict[str, int]:
    """Peak memory over that before, and the size of the frame."""
    import pandas  # noqa: F401  # its own memory is not the load's

    import rldk

    warnings.simplefilter("ignore")
    warm_up = Path(path).with_name("warm_events.jsonl")
    with open(path, "rb") as file:
        warm_up.write_bytes(b"".join(file.readline() for _ in range(100)))
    rldk.ingest_runs(warm_up)
    before = peak_memory()
    frame = rldk.ingest_runs(path)
    return {
        "extra": peak_memory() - before,
        "frame": int(frame.memory_usage(deep=True).sum()),
        "rows": len(frame),
        "skipped": frame.attrs["skipped_lines"],
        "late": int(frame["rewards/format/mean"].notna().sum()),
    }


def rows(quick: bool) -> Iterator[Row]:
    """Time and memory of loading, on one file."""
    events = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "big_events.jsonl")
        write_stream(path, events)
        memory = in_child(memory_of_load, path)
        times = in_child(seconds_in_turns, path, 3)
    # Of the garbage, the blank line is no damage, nor is the torn last line.
    sound = (memory["rows"], memory["skipped"], memory["late"]) == (events, 10 * (len(_GARBAGE) - 1), events // 2)
    measured = f"{times['ingest']:.2f} s, reference {times['reference']:.2f} s"
    ratio = times["ingest"] / times["reference"]
    yield Row(f"ingest_runs, {events} events", measured, ratio, "x orjson.loads", 2.0, 1.0, sound)
    measured = f"{memory['extra'] / 1e6:.0f} MB, frame {memory['frame'] / 1e6:.0f} MB"
    yield Row(f"ingest_runs, {events} events, peak memory", measured, memory["extra"] / memory["frame"], "x frame", 1.5, 1.25)
