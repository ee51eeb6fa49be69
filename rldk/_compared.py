"""One of the runs that are compared: its rows in the order of their steps, and what stands beside its log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ._files import read_object
from .adapters.rldk_stream import RldkStream
from .detectors import make_detectors
from .event import Alert, Event, Severity
from .exceptions import ConfigurationError, EmptyLogError, NoLogsError
from .ingest import open_log, run_name
from .live import sound_alerts
from .monitor import Monitor
from .rebuild import recorded_thresholds, status_of
from .remote import shown
from .runfiles import RunFiles
from .timeline import Resumes
from .vocabulary import Vocabulary, families

__all__ = ["Compared", "Row"]

_DATE = 1e8  # seconds; a larger wall_time is a date and no duration
# What is in the manifest beside the arguments and changes what a run does.
_MODEL = ("class", "parameters", "trainable_parameters")


class Row(NamedTuple):
    """What a run logged at one step, of training and evaluation.

    Attributes:
        step: The step.
        wall_time: Of the first of the events.
        metrics: All metrics of the step.
        states: Checksums of the random state, by phase.
        since: The step of the training log before, since which most metrics of a training log are means; None in a row
            without a training log, and -1 before the first.
    """

    step: int
    wall_time: float
    metrics: dict[str, Any]
    states: dict[str, str]
    since: int | None


class _Stat:
    """Where a metric ends, and its extremes."""

    __slots__ = ("count", "high", "high_step", "last", "last_step", "low", "low_step", "nonfinite")

    def __init__(self) -> None:
        self.count = self.nonfinite = 0
        self.last = math.nan
        self.last_step = self.low_step = self.high_step = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, step: int, value: float) -> None:
        if value - value != 0:
            self.nonfinite += 1
            return
        self.count += 1
        self.last, self.last_step = value, step
        if value < self.low:
            self.low, self.low_step = value, step
        if value > self.high:
            self.high, self.high_step = value, step

    def best(self, better: str) -> float:
        return self.high if better == "high" else self.low

    def best_step(self, better: str) -> int:
        return self.high_step if better == "high" else self.low_step


class Compared:
    """A run.

    Args:
        label: What it is called in the comparison.
        path: Its log.
        run_id: Which of the log's runs; by default the last one in it.

    Attributes:
        arguments: The trainer's arguments and the model's size, flat, by name; empty where they are not recorded.
        versions: Versions of packages, Python, the platform and GPUs; empty where they are not recorded.
        alerts: Its own, or those that the same engine raises over its events.
        stats: What was seen of each metric.

    Raises:
        IngestError: If the log cannot be read, or holds no event.
    """

    def __init__(self, label: str, path: Path, run_id: str | None = None) -> None:
        self.label = label
        self._log = open_log(path)
        try:
            survey = self._log.survey()
        except OSError as error:
            raise NoLogsError(f"cannot read {shown(path)}: {error}") from error
        if not survey.runs:
            raise EmptyLogError(f"no event in {shown(path)}")
        if run_id is not None and run_id not in survey.runs:
            raise EmptyLogError(f"no event of run {run_id!r} in {shown(path)}")
        self.run_id = survey.runs[-1] if run_id is None else run_id
        self._others = [run for run in survey.runs[:-1] if run] if run_id is None else []
        self._resumes = [mark for mark in survey.resumes if mark[1] == self.run_id]
        self.name = self.run_id or run_name(path)
        # A stream that stands elsewhere has its other files in the folder that was named; then its own does not say them.
        files = RunFiles.of(path.parent, self.name, path)
        self.manifest = read_object(files.manifest)
        self.report = read_object(files.report)
        self.stats: dict[str, _Stat] = {}
        self.last_step = 0
        trainer = self.manifest.get("trainer")
        self._trainer = _text(trainer.get("family")) if _is_table(trainer) else ""
        self._setup: Mapping[str, Any] = {}
        self._seed: Any = None
        self._began = self._wall_time = math.nan
        self._disordered = 0
        self._units: dict[str, str] | None = None
        own = files.alerts.is_file() and isinstance(self._log, RldkStream)
        self.alerts: list[Alert] = sound_alerts(files.alerts) if own else []
        self._monitor = None if own else Monitor(_detectors(self.manifest))
        if isinstance(self._log, RldkStream):
            self._first_look()

    def _first_look(self) -> None:
        """The set-up and the trainer stand in the first event."""
        for event in self._standing():
            self._know(event)
            return

    def _know(self, event: Event) -> None:
        info = event.model_info
        self._trainer = self._trainer or _text(info.get("trainer"))
        setup = info.get("setup")
        if _is_table(setup) and not self._setup:
            self._setup = setup
        if self._seed is None:
            self._seed = event.rng.get("seed")

    def _standing(self) -> Iterator[Event]:
        resumes = Resumes(self._resumes)
        for position, event in self._log.numbered(self.run_id or None):
            if event.run_id in (self.run_id, "") and resumes.keep(position, self.run_id, event.step):
                yield event

    def rows(self, judge: bool = True) -> Iterator[Row]:
        """Yields the run's rows, a step each, in the order of the steps.

        Args:
            judge: Whether the events are judged on the way, where the run has no alerts of its own.

        Raises:
            NoLogsError: If the log cannot be read.
        """
        row: Row | None = None
        last = -1
        self._disordered = 0
        try:
            for event in self._standing():
                self._know(event)
                if judge and self._monitor is not None:
                    self._monitor.observe(event._replace(notes=()) if event.notes else event)
                # What is read of a checkpoint comes late; a silence and the mark of a resume are no logs.
                if event.phase == "checkpoint" or not event.metrics or "silence_s" in event.metrics:
                    continue
                if row is None or event.step > row.step:
                    if row is not None:
                        yield row
                    row = Row(event.step, event.wall_time, {}, {}, None)
                elif event.step < row.step:
                    self._disordered += 1
                    continue
                if event.phase == "train" and row.since is None:
                    row, last = row._replace(since=last), event.step
                row.metrics.update(event.metrics)
                state = event.rng.get("state")
                if isinstance(state, str):
                    row.states[event.phase] = state
        except OSError as error:
            raise NoLogsError(f"cannot read {self._log.path}: {error}") from error
        if row is not None:
            yield row
        if judge and self._monitor is not None:
            self.alerts = list(self._monitor.alerts)

    def count(self, row: Row) -> None:
        """Takes a row into the statistics."""
        self.last_step = row.step
        if row.wall_time == row.wall_time:
            if self._began != self._began:
                self._began = row.wall_time
            self._wall_time = row.wall_time
        stats = self.stats
        for name, value in row.metrics.items():
            stat = stats.get(name)
            if stat is None:
                stat = stats[name] = _Stat()
            if value is not None:
                stat.add(row.step, value)

    def seconds(self, wall_time: float) -> float | None:
        """Seconds since the run began; None where that is not recorded."""
        if wall_time != wall_time:
            return None
        return wall_time - self._began if self._began > _DATE else wall_time

    # What stands beside the log

    @property
    def arguments(self) -> dict[str, Any]:
        """See the class."""
        arguments = self.manifest.get("arguments")
        if not _is_table(arguments):
            arguments = self._setup.get("arguments")
            arguments = {**arguments, "seed": self._seed} if _is_table(arguments) else {}
        flat = {str(name): value for name, value in arguments.items()}
        model, settings = self.manifest.get("model"), self.manifest.get("rldk")
        if _is_table(model):
            flat.update({f"model.{name}": model[name] for name in _MODEL if name in model})
        if _is_table(settings):
            flat.update({f"rldk.{name}": value for name, value in settings.items()})
        trainer = self.manifest.get("trainer")
        if _is_table(trainer) and "arguments_class" in trainer:
            flat["trainer.arguments_class"] = trainer["arguments_class"]
        return flat

    @property
    def versions(self) -> dict[str, Any]:
        """See the class."""
        environment, git = self.manifest.get("environment"), self.manifest.get("git")
        if not _is_table(environment):
            return {}
        versions = environment.get("versions")
        table = {str(name): value for name, value in versions.items()} if _is_table(versions) else {}
        table.update({name: environment[name] for name in ("python", "platform", "gpus") if name in environment})
        if _is_table(git) and git:
            table["git commit"] = f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"
        return table

    @property
    def corrections(self) -> list[str]:
        """What rldk corrected in the values."""
        corrections = self.manifest.get("corrections")
        return list(map(str, corrections)) if isinstance(corrections, list) else []

    @property
    def metrics_of_ppo(self) -> bool:
        """Whether it has averages that rldk corrects where it can."""
        return self._trainer == "ppo"

    def unit(self, name: str) -> str | None:
        """The unit in force: by the manifest, else by the trainer's family; None for a metric of the user's."""
        if self._units is None:
            vocabulary = self.manifest.get("vocabulary")
            rows = vocabulary.values() if _is_table(vocabulary) else ()
            self._units = {
                row["name"]: row["unit"]
                for row in rows
                if _is_table(row) and isinstance(row.get("name"), str) and isinstance(row.get("unit"), str)
            }
        plain = name.removeprefix("eval_")
        if plain not in self._units:
            family = families().get(self._trainer, families()["generic"])
            found = Vocabulary(family).units([plain])
            if plain not in found:
                return None
            self._units[plain] = found[plain]
        return self._units[plain]

    def alerts_of(self, code: str) -> dict[str, Any] | None:
        """The alerts of one code in short; None if there are none."""
        ours = [alert for alert in self.alerts if alert.code == code]
        if not ours:
            return None
        return {
            "count": len(ours),
            "open": sum(alert.resolved_step is None for alert in ours),
            "first_step": min(alert.step for alert in ours),
            "severity": max((alert.severity for alert in ours), key=lambda item: Severity(item).rank),
        }

    def about(self) -> dict[str, Any]:
        """The run in short."""
        if isinstance(self._log, RldkStream):
            status, reason = status_of(self.report, self.manifest)
        else:
            status, reason = "unknown", None
        return {
            "label": self.label, "name": self.name, "path": shown(self._log.path), "format": self._log.name,
            "trainer": self._trainer or None, "status": status, "reason": reason, "steps": self.last_step,
            "seconds": self.seconds(self._wall_time), "seed": self.arguments.get("seed", self._seed),
            "alerts": len(self.alerts), "judged": "replay" if self._monitor is not None else "run",
            "resumed_at": [step for _, _, step in self._resumes], "malformed_lines": self._log.damage.count,
        }

    def notes(self) -> list[str]:
        """What one should know of it beside the numbers."""
        notes = []
        if self._others:
            notes.append(f"{self.label}: its log holds {len(self._others) + 1} runs; the last one, {self.name}, is compared")
        if self._resumes:
            steps = ", ".join(str(step) for _, _, step in self._resumes[:5])
            notes.append(f"{self.label}: resumed at step {steps}; what that made void is left out")
        if self._disordered:
            notes.append(f"{self.label}: {self._disordered} logs stand behind later steps, and are left out")
        if self._log.damage.count:
            notes.append(f"{self.label}: {self._log.damage.count} malformed lines were skipped")
        return notes


def _detectors(manifest: Mapping[str, Any]) -> list[Any]:
    try:
        return make_detectors(recorded_thresholds(manifest))
    except ConfigurationError:
        return make_detectors(None)  # thresholds of another version of rldk


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
