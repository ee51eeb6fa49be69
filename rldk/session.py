"""A run that is logged by hand: dictionaries in; events, alerts, files and a report out.

What a callback is to a trainer, a session is to a loop of one's own, to a logger, to accelerate. It takes names as people
log them, and steps as they come. No method raises, once it is constructed; what went wrong is counted in the report. It
sends nothing anywhere, and never changes what it is given.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ._files import read_object
from ._guard import Guard, guarded
from ._session_names import evaluation_name, plain_name, renamed, whole
from ._session_plan import choose
from .checkpoints import CheckpointAnalyser
from .detectors import make_detectors
from .emit import check_tags
from .environment import describe, git_commit, redact
from .event import Alert, Event, timestamp
from .hub import CLOSE_SECONDS, HURRY_SECONDS, HubDataset, check_dataset_id
from .lifecycle import Ending, told_by
from .metrics import OF_ANYTHING, typed_names
from .recorder import Recorder
from .resources import ResourceSampler
from .runfiles import RunFiles, check_path
from .runs import earlier_events
from .sinks.trackers import TrackerSink
from .timeline import resume_note
from .vocabulary import Vocabulary, families, recognise

__all__ = ["Logged", "Session"]

# Where loggers of transformers and TRL leave the trainer's step.
_STEP_NAMES = ("train/global_step", "global_step")
_CHECKPOINT_WAIT_S = 10.0
_STRANGE = 64  # sets of names that are remembered, and names in one
# A thread waits no longer than this for another: that one may hang on a disk.
_PATIENCE_S = 10.0


class Logged(NamedTuple):
    """What became of one log call.

    Attributes:
        step: The step that it was recorded at.
        own: What rldk measured itself, by canonical name: memory, GPUs, rates.
    """

    step: int
    own: Mapping[str, float | int | None] = {}


class Session:
    """One run, logged by hand. May be called from any thread; a process that is forked from its own has no part in it.

    Args:
        run_id: Name of the run and its files; what cannot stand in a file's name becomes a hyphen. If a run of that name
            exists, this one gets a number behind it, unless it is resumed. By default `name`, the UTC time and four
            random digits.
        output_dir: Folder of the run's files.
        name: See `run_id`.
        resume: Whether to go on with the run of that name, if there is one that nobody records.
        config: Arguments of the training, for the manifest.
        tags: Free labels, into every event.
        alert_thresholds: As of `RLDKCallback`.
        log_interval: Steps between console lines; 0 for none.
        enable_resource_monitoring: Sample memory, CPU and GPUs once a second, in a thread.
        trackers: Where alerts and the summary go beside rldk's own files.
        hub_dataset_id: A dataset on the Hub that the run's files go to, every five minutes and at the end.
        hub_private: As `private` of `rldk.hub.HubDataset`.
        hub_token: As `token` of `rldk.hub.HubDataset`.
        after: Called with the status once the run has ended and its files are there.

    Raises:
        ConfigurationError: For a bad threshold, folder, dataset or tags.

    Example:
        ```python
        session = Session("my_run", config={"learning_rate": 1e-5})
        for step in range(100):
            session.log({"loss": train_step(), "reward": reward}, step=step)
        session.finish()
        ```
    """

    def __init__(
        self,
        run_id: str | None = None,
        output_dir: str | os.PathLike[str] = "./rldk_logs",
        *,
        name: str = "run",
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | Sequence[str] | None = None,
        alert_thresholds: Mapping[str, Any] | None = None,
        log_interval: int = 0,
        enable_resource_monitoring: bool = True,
        trackers: TrackerSink | None = None,
        hub_dataset_id: str | None = None,
        hub_private: bool | None = None,
        hub_token: str | None = None,
        after: Callable[[str], object] | None = None,
    ) -> None:
        self.guard = Guard()
        self._process = os.getpid()
        self._error_before = id(sys.exc_info()[1])  # the whole training may stand in an `except`
        self._one_at_a_time = threading.RLock()  # a signal may end the run in the middle of a log call
        self.output_dir = check_path("output_dir", output_dir, folder=True)
        self._detectors = make_detectors(alert_thresholds)
        self._thresholds = dict(alert_thresholds or {})
        self._tags = check_tags(tags)
        if hub_dataset_id is not None:
            check_dataset_id(hub_dataset_id)  # before any file is made
        self._log_interval = log_interval
        self._trackers = trackers
        self._after = after
        self._vocabulary = Vocabulary(families()["generic"])
        self._strange: set[tuple[Any, ...]] = set()  # names that no trainer's logs have; most log calls are alike
        self._config: dict[str, Any] = dict(config or {})
        self._git = git_commit()
        self._skipped: dict[str, str] = {}
        self.step = -1  # the last one
        self.closed = False
        self.recorder: Recorder | None = None
        self.run_id, goes_on = choose(run_id, name, self.output_dir, resume)
        self.files = RunFiles.of(self.output_dir, self.run_id)
        self._began = 0.0
        self._zero = time.perf_counter()
        self._counted: tuple[int, float, float] | None = None  # step, tokens and time of the last log: rates are since then
        self._info: dict[str, Any] = {}
        self._last = -1
        if goes_on:
            # Opened at the first log, whose step says from where the run goes on.
            self._last, self._began = self._earlier()
            self.step = self._last
        else:
            self._open(None)
        self._checkpoints = CheckpointAnalyser(self.guard)
        self._sampler: ResourceSampler | None = None
        if enable_resource_monitoring:
            self._sampler = ResourceSampler(self.guard)
            self.guard.call("resource sample", self._sampler.start)
        self._hub: HubDataset | None = None
        if hub_dataset_id is not None:
            # Guarded, since the run's files are there by now: what was asked for was checked before.
            self._hub = self.guard.call("hub dataset", self._begin_hub, hub_dataset_id, hub_private, hub_token, goes_on)
        self._ending = Ending(self._ended, self, in_train=False)

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far."""
        return list(self.recorder.monitor.alerts) if self.recorder is not None else []

    @property
    def report(self) -> dict[str, Any] | None:
        """The content of final_report.json as last written."""
        return self.recorder.report if self.recorder is not None else None

    @property
    def trainer(self) -> str:
        """The trainer's family, as far as the names that were logged tell."""
        return self._vocabulary.family.name

    @property
    def recording(self) -> bool:
        """Whether log calls are recorded: not after `finish`, nor in a process that was forked from the run's."""
        return not self.closed and os.getpid() == self._process

    @guarded
    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> Logged | None:
        """Records one log call.

        Args:
            metrics: Names to numbers, as TRL, transformers (`train/loss`, `eval/loss`) or a person calls them. What is no
                number is left out, and named in the report.
            step: The step. By default `train/global_step` of the metrics, or else the one after the last.

        Returns:
            The step, and what rldk measured itself. None if the run is over.
        """
        logs = renamed(metrics, plain_name)
        with self._alone():
            at = self._step_of(step, metrics)
            if "global_step" in logs and whole(logs["global_step"]) == at:
                del logs["global_step"]  # it is the event's own step
            return self._record(logs, at, None)

    @guarded
    def log_evaluation(self, results: Mapping[str, Any], step: int | None = None) -> Logged | None:
        """Records the results of an evaluation, whatever their names; by default at the last step."""
        logs = renamed(results, evaluation_name)
        with self._alone():
            return self._record(logs, self._step_of(self._now_at() if step is None else step, {}), "eval")

    @guarded
    def log_checkpoint(
        self, path: str | os.PathLike[str] | None = None, step: int | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Logged | None:
        """Records that a checkpoint was saved, and hands its folder over to be looked through for broken weights.

        Args:
            path: The folder.
            step: By default the last step.
            metrics: Numbers that belong to it.
        """
        note = "checkpoint" if path is None else f"checkpoint {Path(path).name}"
        with self._alone():
            at = self._step_of(self._now_at() if step is None else step, {})
            logged = self._record(dict(metrics or {}), at, "checkpoint", (note,))
        if path is not None and logged is not None and Path(path).is_dir():
            self._checkpoints.submit(at, Path(path))
        return logged

    @guarded
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Adds to the arguments of the manifest."""
        with self._alone():
            self._config.update(config)
            if self.recorder is not None and self.recording:
                self.recorder.write_manifest(self._manifest())

    @guarded
    def finish(self, status: str | None = None, reason: str | None = None) -> dict[str, Any] | None:
        """Ends the run and writes its report. A second call does nothing.

        Args:
            status: `completed`, `stopped` or `failed`. By default `completed`; while an exception is on its way, as in a
                `finally`, `failed`, or `stopped` for Ctrl-C.
            reason: Why, if not completed. By default the exception.

        Returns:
            The content of final_report.json.
        """
        if status is None:
            status, reason = _outcome(self._error_before, reason)
        with self._alone():
            if not self.recording:
                return self.report
            if self.recorder is None:
                self._open(self._last)
            assert self.recorder is not None
            self.closed = True
        self._ending.release()
        done = False
        try:
            if self._sampler is not None:
                self._sampler.stop()
            done = self._checkpoints.finish(_CHECKPOINT_WAIT_S if status == "completed" else 1.0)
        finally:  # whoever is tired of waiting and presses Ctrl-C shall have the report too
            report = self._close(self.recorder, status, reason, done)
        if self._after is not None:
            self.guard.call("after the run", self._after, status)
        return report

    # How

    def _ended(self, status: str, reason: str) -> None:
        """The program ends, and nobody has called `finish`."""
        self.finish(status, reason)

    def _close(self, recorder: Recorder, status: str, reason: str | None, all_analysed: bool) -> dict[str, Any]:
        self._take_checkpoints()
        if self._checkpoints.missed or not all_analysed:
            recorder.extra["checkpoints_not_analysed"] = self._checkpoints.missed + (not all_analysed)
        if self._hub is None:
            return recorder.close(status, reason)
        recorder.extra["hub"] = self._hub.status()
        recorder.close(status, reason)
        self._hub.close(HURRY_SECONDS if status == "failed" else CLOSE_SECONDS)
        recorder.extra["hub"] = self._hub.status()
        return recorder.write_report(status, reason)

    def _begin_hub(self, dataset_id: str, private: bool | None, token: str | None, resumed: bool) -> HubDataset:
        hub = HubDataset(dataset_id, self.files, self.run_id, private=private, token=token, resumed=resumed)
        hub.start()
        return hub

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads out, as long as they and this one can wait."""
        if os.getpid() != self._process:  # who held it when this process was forked is not here to let go of it
            yield
            return
        alone = self._one_at_a_time.acquire(timeout=_PATIENCE_S)
        try:
            yield
        finally:
            if alone:
                self._one_at_a_time.release()

    def _now_at(self) -> int:
        return max(self.step, 0)

    def _step_of(self, step: Any, metrics: Mapping[str, Any]) -> int:
        for given in (step, *(metrics.get(name) for name in _STEP_NAMES)):
            at = whole(given)
            if at is not None:
                return at
        if step is not None:
            self._skipped.setdefault("step", f"{step!r} is no step; the one after the last was taken")
        return self.step + 1

    def _record(
        self, logs: Mapping[str, Any], step: int, phase: str | None, notes: tuple[str, ...] = ()
    ) -> Logged | None:
        if not self.recording:
            return None
        if self.recorder is None:
            self._open(max(0, min(self._last, step - 1)))
        assert self.recorder is not None
        if self._checkpoints.ready:
            self._take_checkpoints()
        if phase is None and self._vocabulary.family.name == "generic":
            self._recognise(logs)
        told, metrics, skipped = self._vocabulary.translate(logs)
        if self._vocabulary.family.name == "generic":
            metrics = typed_names(metrics)
        for name, why in skipped.items():
            self._skipped.setdefault(name, why)
        if logs or notes:
            self.step = step
        if not metrics and not notes:
            return Logged(step)  # texts and images: a tracker may take them
        phase = phase or told
        own = self._measure(step, metrics) if phase == "train" else {}
        self.recorder.record(self._event(step, {**metrics, **own}, phase, notes))
        return Logged(step, own)

    def _measure(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
        """What nobody logs by hand: resources, and rates since the last log. What was logged is left as it is."""
        own: dict[str, float | int | None] = dict(self._sampler.take()) if self._sampler is not None else {}
        now = time.perf_counter()
        tokens = metrics.get("num_tokens")
        # None at the first log: a run may begin, or go on, at any step, and what came before was not timed.
        before, tokens_before, then = self._counted or (step, 0.0, now)
        if step > before and now > then:
            own["steps_per_second"] = (step - before) / (now - then)
            if tokens is not None and tokens > tokens_before > 0:
                own["tokens_per_second"] = (tokens - tokens_before) / (now - then)
        if self._counted is None or step != before:
            self._counted = (step, tokens if tokens is not None else 0.0, now)
        return {name: value for name, value in own.items() if name not in metrics}

    def _event(self, step: int, metrics: Mapping[str, Any], phase: str, notes: tuple[str, ...]) -> Event:
        wall_time = round(self._began + time.perf_counter() - self._zero, 6)
        return Event(step, wall_time, metrics, phase, {}, {}, self._info, notes, timestamp(time.time()))

    def _recognise(self, logs: Mapping[str, Any]) -> None:
        """The names tell the trainer, and the trainer what they mean."""
        names = tuple(logs)
        if names in self._strange:
            return
        # Every classifier logs a loss and an accuracy of its evaluation; TRL's reward trainer can be told by other names.
        family = recognise(name for name in logs if isinstance(name, str) and name not in OF_ANYTHING)
        if family.name != "generic":
            self._vocabulary = Vocabulary(family, None, self._config)
            self._about_run()
            assert self.recorder is not None
            self.recorder.trainer = family.name
            self.recorder.write_manifest(self._manifest())
        elif max(len(self._strange), len(names)) < _STRANGE:
            self._strange.add(names)

    def _take_checkpoints(self) -> None:
        assert self.recorder is not None
        for step, metrics, notes in self._checkpoints.take():
            self.recorder.record(self._event(step, metrics, "checkpoint", notes))

    def _open(self, resume_at: int | None) -> None:
        self._about_run()
        recorder = self.recorder = Recorder(
            self.run_id, self.files, self._detectors, guard=self.guard, trainer=self.trainer,
            console_interval=self._log_interval, resume_at=resume_at, trackers=self._trackers,
        )
        recorder.skipped = self._skipped
        if resume_at is not None:
            self.guard.call("reading the run back", recorder.replay, earlier_events(self.files.events, self.run_id, resume_at))
        manifest = self._manifest()
        recorder.extra.update(began=manifest["created"], environment=manifest["environment"])
        recorder.write_manifest(manifest)
        if resume_at is not None:
            recorder.record(self._event(resume_at, {}, "train", (resume_note(resume_at),)))
        recorder.write_report("running")

    def _earlier(self) -> tuple[int, float]:
        """The last step and second of the run that goes on."""
        step, lasted = -1, 0.0
        for event in self.guard.call("reading the run back", self._standing) or ():
            step, lasted = max(step, event.step), max(lasted, event.wall_time)
        return step, lasted

    def _standing(self) -> list[Event]:
        return list(earlier_events(self.files.events, self.run_id, 2**62))

    def _about_run(self) -> None:
        self._info = {"run_id": self.run_id}
        if self._git.get("commit"):
            self._info["git_sha"] = self._git["commit"]
        if self._tags:
            self._info["tags"] = redact(self._tags)
        self._info["trainer"] = self.trainer

    def _manifest(self) -> dict[str, Any]:
        now = timestamp(time.time())
        before = read_object(self.files.manifest)
        here = {"pid": os.getpid(), "host": platform.node(), "git": self._git}
        settings = {"alert_thresholds": self._thresholds, "log_interval": self._log_interval, "jsonl_log_interval": 1}
        fixed = {
            "run_id": self.run_id, "created": before.get("created") or now, **here,
            "trainer": {"family": self.trainer, "arguments_class": None},
            "arguments": redact({**(before.get("arguments") or {}), **self._config}),
            "tags": redact(self._tags) if self._tags else None, "rldk": redact(settings),
            "environment": before.get("environment") or describe(), "vocabulary": self._vocabulary.table(),
        }
        resumed = list(before.get("resumed") or [])
        if before.get("pid") not in (None, os.getpid()):
            resumed.append({"time": now, "step": self._last, **here})
        return {**fixed, "resumed": resumed}


def _outcome(error_before: int, reason: str | None) -> tuple[str, str | None]:
    """How a run ends, and why, by the exception that is being handled where it is called from."""
    error = sys.exc_info()[1]
    if error is None or id(error) == error_before or (isinstance(error, SystemExit) and not error.code):
        return "completed", reason
    return told_by(error) if reason is None else (told_by(error)[0], reason)
