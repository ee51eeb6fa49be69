"""Records scenarios as real runs, in the environment that this Python belongs to.

    python -m benchmarks.detection.record --scenarios sft_healthy --seeds 0 1 --logging-steps 1 5 --out DIR
    python -m benchmarks.detection.record --planned --out DIR

Each run is a process forked from one that has imported everything, so a run starts at once, begins from the same random
state and memory as all others, and can take nobody along when it dies. A finished run is appended at once to
`DIR/<scenario>.<trl>.jsonl`: an interrupted recording goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers  # after the settings that it reads
import trl

from rldk import RLDKCallback
from rldk.adapters.rldk_stream import RldkStream
from rldk.event import Event
from rldk.vocabulary import Vocabulary, plain_number

from . import plan, store
from .scenarios import Run, Scenario, scenarios
from .scenarios._writer import writer
from .store import ARGUMENTS, Header, Key, Recording, Row, encode_line, vocabulary_of

__all__ = ["main", "record"]

_LIMIT_S = 900.0  # of one run and its waiting for a slot; the slowest takes a minute
_COMMON_INFO = ("run_id", "git_sha", "trainer", "tags", "phase")


class _Recorder(RLDKCallback):
    """rldk's callback, which keeps a copy of each of the trainer's dictionaries too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.raw: list[tuple[int, dict[str, Any]]] = []
        self.arguments: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the arguments."""
        super().on_train_begin(args, state, control, **kwargs)
        given = {**args.to_dict(), "world_size": args.world_size}
        self.arguments = {name: _plain(given[name]) for name in ARGUMENTS if name in given}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keeps the dictionary as it came."""
        if logs:
            self.raw.append((state.global_step, dict(logs)))
        super().on_log(args, state, control, logs=logs, **kwargs)

    def end(self, reason: str) -> None:
        """Closes a run that died."""
        self._finish("failed", reason)


def record(scenario: Scenario, key: Key) -> Recording:
    """Trains one run and reads back what rldk recorded of it."""
    with tempfile.TemporaryDirectory(prefix="rldk-detection-") as folder:
        here = Path(folder)
        recorder = _Recorder(output_dir=here / "rldk", log_interval=0, alert_thresholds=scenario.thresholds)
        (here / "trainer").mkdir()
        steps = scenario.steps[key.logging_steps]
        died = None
        try:
            scenario.train(Run(here / "trainer", key.seed, key.logging_steps, steps, (recorder,)))
        except Exception as error:  # noqa: BLE001  # a fault may kill its run: that is part of the recording
            died = f"{type(error).__name__}: {str(error)[:300]}"
            recorder.end(died)
        # A detector that broke cost no event: what is recorded does not depend on detectors.
        failures = {place: why for place, why in recorder.guard.failures.items() if not place.startswith("detector ")}
        if failures:
            raise RuntimeError(f"rldk failed while it recorded: {failures}")
        header = Header(
            scenario.name, scenario.trainer, key.trl, transformers.__version__, key.seed, key.logging_steps,
            scenario.onset, recorder.arguments, died,
        )  # fmt: skip
        if not recorder.files:
            raise RuntimeError(f"nothing was recorded: {died or 'the callback was never called'}")
        events = RldkStream(recorder.files["events"]).events()
        return Recording(header, list(_rows(events, recorder.raw, vocabulary_of(header))))


def _rows(events: Iterable[Event], raws: Sequence[tuple[int, dict[str, Any]]], vocabulary: Vocabulary) -> Iterator[Row]:
    """Events joined with the dictionaries that they were made from; both are in order."""
    pending = deque(raws)
    for event in events:
        info = {name: value for name, value in event.model_info.items() if name not in _COMMON_INFO}
        raw, own = None, dict(event.metrics)
        if pending and event.phase != "checkpoint":
            step, logs = pending[0]
            translation = vocabulary.translate(logs)
            if step == event.step and translation.phase == event.phase and translation.metrics.keys() <= own.keys():
                pending.popleft()
                raw = {str(name): plain_number(logs[name]) for name in logs if name not in translation.skipped}
                own = {
                    name: value
                    for name, value in own.items()
                    if name not in translation.metrics or not _same(value, translation.metrics[name])
                }
        if raw is not None or own or info:
            yield Row(event.step, event.wall_time, event.phase, raw, own, info)
    if pending:
        raise RuntimeError(f"{len(pending)} log calls are not in rldk's stream, the first at step {pending[0][0]}")


def _same(one: float | int | None, other: float | int | None) -> bool:
    return one == other or (one != one and other != other)


def _plain(value: Any) -> Any:
    """An argument as JSON can hold it; enumerations by their value."""
    value = getattr(value, "value", value)
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value


# Many runs


@contextlib.contextmanager
def _slot(out: Path, slots: int) -> Iterator[None]:
    """Waits for one of the slots that all recordings into a folder share: environments take turns on the processors."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((out / f"slot{number}.lock").open("w")) for number in range(slots)]
        while files:
            for file in files:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    files = []
                    break
            else:
                time.sleep(0.05)
        yield


def _child(scenario: Scenario, key: Key, out: Path, slots: int, sender: Connection) -> None:
    logging.disable(logging.ERROR)  # transformers and rldk both say a lot about the faults
    warnings.simplefilter("ignore")
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with _slot(out, slots), quiet[0], quiet[1]:
            sender.send(("line", encode_line(record(scenario, key))))
    except BaseException as error:  # noqa: BLE001  # sent to the parent, which reports it
        sender.send(("error", f"{type(error).__name__}: {error}"))
    sender.close()
    os._exit(0)  # without the exits of libraries that were imported before the fork


class _Crew:
    """Runs that are being recorded, and what they send."""

    def __init__(self, out: Path, slots: int) -> None:
        self._out, self._slots = out, slots
        self._context = multiprocessing.get_context("fork")
        self._running: dict[Connection, tuple[Key, Any, float]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._running)

    def start(self, scenario: Scenario, key: Key) -> None:
        """Starts a run. What all runs of a seed begin from is made here, once, and inherited."""
        if scenario.trainer in ("grpo", "rloo", "ppo"):
            writer(key.seed)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(scenario, key, self._out, self._slots, sender), daemon=True)
        process.start()
        sender.close()
        self._running[receiver] = (key, process, time.monotonic())

    def finished(self) -> Iterator[tuple[Key, str, str]]:
        """Waits a little, and yields (key, kind, text) of the runs that have ended."""
        for receiver in wait(list(self._running), timeout=1.0):
            assert isinstance(receiver, Connection)
            key, process, _ = self._running.pop(receiver)
            try:
                kind, text = receiver.recv()
            except EOFError:
                kind, text = "error", "the process died"
            process.join()
            yield key, kind, text
        for receiver, (key, process, began) in list(self._running.items()):
            if time.monotonic() - began > _LIMIT_S:
                del self._running[receiver]
                process.kill()
                yield key, "error", f"no end after {_LIMIT_S:.0f} s"


def _done(out: Path) -> set[Key]:
    """What is recorded; a line that was cut off in the middle is taken out of its file."""
    keys = set()
    for path in out.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]))
            del lines[-1]
        for line in lines:
            found = json.loads(line)
            keys.add(Key(found["scenario"], found["seed"], found["logging_steps"], found["trl"]))
    return keys


def _record_all(known: Mapping[str, Scenario], keys: Sequence[Key], out: Path, jobs: int, slots: int) -> int:
    """Records what is not there yet; returns how many failed."""
    out.mkdir(parents=True, exist_ok=True)
    done = _done(out)
    waiting = deque(key for key in keys if key not in done)
    total, began, failed, ended = len(waiting), time.monotonic(), 0, 0
    _say(f"TRL {trl.__version__}: {total} runs to record, {len(keys) - total} are there")
    crew = _Crew(out, slots)
    while waiting or crew:
        while waiting and len(crew) < jobs:
            key = waiting.popleft()
            crew.start(known[key.scenario], key)
        for key, kind, text in crew.finished():
            ended += 1
            if kind == "error":
                failed += 1
                _say(f"FAILED {key}: {text}")
                continue
            with (out / f"{key.scenario}.{key.trl}.jsonl").open("a") as file:
                file.write(f"{text}\n")
            left = (time.monotonic() - began) / ended * (total - ended)
            died = json.loads(text)["died"]
            _say(f"{ended}/{total} {key}{f' died: {died[:80]}' if died else ''}; {left / 60:.1f} min left")
    return failed


def _say(text: str) -> None:
    print(f"[record {trl.__version__}] {text}", file=sys.stderr, flush=True)


def _chosen(options: argparse.Namespace, known: Mapping[str, Scenario]) -> list[Key]:
    names = options.scenarios or list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown scenarios: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.planned:
        keys = [key for key in plan.plan(known) if key.scenario in names and key.trl == trl.__version__]
        stored = {key for name in names for key in store.keys(store.path_of(name))} if options.missing else set()
        return [key for key in keys if key not in stored and (options.seeds is None or key.seed in options.seeds)]
    here = [name for name in names if trl.__version__ in plan.versions(known[name].trainer)]
    return [
        Key(name, seed, interval, trl.__version__)
        for seed in options.seeds or (0,)
        for name in here
        for interval in options.logging_steps
        if interval in known[name].steps
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Records; exit status 1 if a run could not be recorded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection.record", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="all, if not given")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="with --planned, only these of the plan")
    parser.add_argument("--logging-steps", nargs="+", type=int, default=list(plan.INTERVALS), metavar="N")
    parser.add_argument("--planned", action="store_true", help="what the plan has for this version of TRL")
    parser.add_argument("--missing", action="store_true", help="with --planned, only what the store does not have")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once; 1")
    parser.add_argument("--slots", type=int, default=0, metavar="N", help="runs at once over all recordings into DIR")
    options = parser.parse_args(argv)
    known = scenarios()
    _warm_up({known[name].trainer for name in options.scenarios or known})
    return bool(_record_all(known, _chosen(options, known), options.out, options.jobs, options.slots))


def _warm_up(families: Iterable[str]) -> None:
    """Imports what the runs will, once for all of them."""
    from tests import zoo

    for family in families:
        if zoo.has(family):
            zoo.classes(family)


if __name__ == "__main__":
    sys.exit(main())
