"""RLDKCallback: translates a trainer's hooks for a `Recorder`.

Observes; never changes logs, losses, random state or control flow, unless `stop_on` asks it to stop the run. No hook
relies on the order of the others: PPO logs before `on_step_end` and fires few hooks, the others log after.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..._guard import Guard, guarded
from ...checkpoints import CheckpointAnalyser
from ...detectors import detector_classes, make_detectors
from ...emit import check_tags
from ...event import Alert, Event, Severity, timestamp
from ...exceptions import ConfigurationError, TrainingStopped
from ...lifecycle import Ending, sweep
from ...metrics import nearest
from ...recorder import Recorder
from ...report import render_text
from ...resources import ResourceSampler
from ...runfiles import RunFiles, check_path, check_run_id
from ...silence import Silence
from ...sinks.trackers import TrackerSink
from ._manifest import build_manifest
from ._reader import LogReader
from ._resume import RunPlan, check_new, plan_run
from ._setup import LabelPeek, facts_of, judged_arguments, trainer_of
from ._stop import StopRule, ignores_stop, several_processes, stop
from ._weights import WeightWatch, count_nonfinite

__all__ = ["RLDKCallback"]

logger = logging.getLogger("rldk")

_CHECKPOINT_WAIT_S = 60.0


class RLDKCallback(TrainerCallback):
    """Records a run, judges it live, and leaves files that a person, pandas and a CI job can read.

    Works on every trainer that is built on transformers' Trainer. Only the main process writes.

    Args:
        output_dir: Folder of the run's files; made if it does not exist.
        log_interval: Steps between console lines (logger `rldk`, level INFO, so they show once logging is set up); 0
            for none. Alerts are always logged, as warnings or errors.
        jsonl_log_interval: Steps between event lines: the first log at or after the interval is written; evaluations,
            logs with an alert and the last log always. Detectors see every log whatever the intervals.
        enable_jsonl_logging: Whether to write the event stream.
        alert_thresholds: By detector code, a number or a mapping of the detector's parameters. All detectors are armed
            without it. A number for `kl_divergence`, `clip_fraction`, `gradient_norm` or `memory_usage` is absolute, in
            the trainer's own unit, and replaces the calibrated rule; `memory_usage` is a share from 0 to 1.
        run_id: Name of the run and its files. By default the run name or output folder, the UTC time and four random
            digits.
        enable_resource_monitoring: Sample memory, CPU and this process's GPUs once a second, in a thread.
        enable_checkpoint_analysis: Read each checkpoint's safetensors for non-finite weights, norms and change, in a
            thread, at a bounded memory.
        event_log_path: The event stream's file, if it is not to be in `output_dir`.
        tags: Free labels, into every event's `model_info.tags`.
        on_alert: Called with each `rldk.event.Alert` as it is raised, when it gets worse (`severity` is higher), and
            whenever it has resolved: more than once if the state came back within a few events, which is the same
            alert. An alert about a stall comes from another thread, since the training's own hangs.
        stop_on: Detector codes and severities (that one and worse) on which training is stopped, after asking for a
            checkpoint where the weights are still worth one. With several processes, all stop after the next step.
            TRL's PPOTrainer cannot be asked: its `train()` ends with `rldk.exceptions.TrainingStopped`, after the
            checkpoint.
        resume: Whether `run_id` names a run that is being resumed. By default this is told by the trainer's state;
            True allows existing files without looking for checkpoints, False never does.

    Raises:
        ConfigurationError: At construction, for a bad `run_id` or path, an unknown threshold or detector code, or a bad
            interval; the message shows the value.
        RunExistsError: At construction, if files of the given `run_id` exist and no checkpoint could be resumed from.

    Example:
        ```python
        trainer = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=dataset,
                              callbacks=[RLDKCallback(output_dir="rldk_logs")])
        trainer.train()
        ```
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = "./rldk_logs",
        log_interval: int = 10,
        jsonl_log_interval: int = 1,
        enable_jsonl_logging: bool = True,
        alert_thresholds: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        enable_resource_monitoring: bool = True,
        enable_checkpoint_analysis: bool = True,
        *,
        event_log_path: str | os.PathLike[str] | None = None,
        tags: Mapping[str, Any] | Sequence[str] | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        stop_on: str | Iterable[str] | None = None,
        resume: bool | None = None,
    ) -> None:
        self.output_dir = check_path("output_dir", output_dir, folder=True)
        self.log_interval = _steps("log_interval", log_interval, 0)
        self.jsonl_log_interval = _steps("jsonl_log_interval", jsonl_log_interval, 1)
        self.enable_jsonl_logging = enable_jsonl_logging
        make_detectors(alert_thresholds)  # to refuse bad thresholds now, in the caller's own line
        self.alert_thresholds = dict(alert_thresholds or {})
        self.enable_resource_monitoring = enable_resource_monitoring
        self.enable_checkpoint_analysis = enable_checkpoint_analysis
        self.event_log_path = None if event_log_path is None else check_path("event_log_path", event_log_path)
        self.tags = check_tags(tags)
        self.resume = resume
        if on_alert is not None and not callable(on_alert):
            raise ConfigurationError(f"on_alert must be callable; got {on_alert!r}")
        self.on_alert = on_alert
        self.stop_on = _stop_codes(stop_on)
        self.run_id = None if run_id is None else check_run_id(run_id)
        if self.run_id is not None and resume is not True:
            check_new(self._files_of(self.run_id), self.run_id, never=resume is False)
        self._given_run_id = self.run_id
        self.guard = Guard()
        self._wish = 0  # to stop, as of StopRule.wish
        self._leaving = False
        self._given_up = False
        self._active: _Active | None = None

    # What a person asks for

    @property
    def files(self) -> dict[str, Path]:
        """The run's files by name: events, alerts, metrics, report, manifest.

        Empty before training begins, and on processes that do not write.
        """
        if self._active is None:
            return {}
        files = self._active.recorder.files._asdict()
        return files if self.enable_jsonl_logging else {k: path for k, path in files.items() if k != "events"}

    def settings(self) -> dict[str, Any]:
        """The parameters that shape the record, for the manifest."""
        return {
            "alert_thresholds": dict(self.alert_thresholds),
            "log_interval": self.log_interval,
            "jsonl_log_interval": self.jsonl_log_interval if self.enable_jsonl_logging else None,
            "resource_monitoring": self.enable_resource_monitoring,
            "checkpoint_analysis": self.enable_checkpoint_analysis,
            "stop_on": sorted(self.stop_on.names) if self.stop_on else None,
        }

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far."""
        return list(self._active.recorder.monitor.alerts) if self._active else []

    @property
    def report(self) -> dict[str, Any] | None:
        """The content of final_report.json as last written; None before training begins."""
        return self._active.recorder.report if self._active else None

    def summary_text(self) -> str:
        """The report as a few lines for a terminal; empty before training begins."""
        return render_text(self.report) if self.report else ""

    # Hooks

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the run, or goes on with it after a resume."""
        self._wish, self._leaving = 0, False  # of an earlier training, which may have died before it heeded them
        if state.is_world_process_zero:
            self._begin(args, state, kwargs, training=True)
            active = self._active
            if active is not None:
                self._act(args, control, active, active.judge_setup(args, state, kwargs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes when a step ended, to tell training time from evaluating and saving."""
        # Not guarded as a whole, since this runs at every step: the first part cannot fail, the second is guarded.
        if self._active is not None:
            self._active.step_ended = self._active.silence.beat = time.perf_counter()
        if self.stop_on is not None:
            self._stop_together(args, control)
            self._leave(args, control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A sign of life."""
        if self._active is not None:
            self._active.silence.beat = time.perf_counter()

    on_prediction_step = on_substep_end

    @guarded
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the evaluation out of the time that steps took; alone, it is all that there is to the run."""
        active = self._active
        if active is None:
            return
        active.pause()
        if not active.training:
            self._finish("completed")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Records one log call. A subclass may add keys to `logs` and call this."""
        if not logs or self._given_up or not state.is_world_process_zero:
            return
        try:  # and not @guarded: this is the hot path, and handing the keywords on costs as much as a detector
            if self._active is None:
                self._begin(args, state, kwargs, training=False)
            active = self._active
            assert active is not None
            changed = active.log(state.global_step, logs)
            if changed or self._wish:
                self._act(args, control, active, changed)
            if active.closed:
                # Evaluated after training: the report takes it in.
                self._report_again(active)
        except Exception as error:  # noqa: BLE001  # nothing of rldk's may reach the training loop
            self.guard.caught("on_log", error)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hands the checkpoint over to be analysed."""
        self._saved(args, state)
        if self.stop_on is not None:
            self._leave(args, control)

    @guarded
    def _saved(self, args: Any, state: Any) -> None:
        active = self._active
        if active is None or active.closed:
            return
        active.pause()
        if active.checkpoints is not None:
            step = state.global_step
            active.checkpoints.submit(step, Path(args.output_dir) / f"checkpoint-{step}")

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the run."""
        active = self._active
        if active is None or active.closed:
            return
        whole = state.max_steps <= 0 or state.global_step >= state.max_steps
        reason = None if whole else active.ending.signal or active.stop_reason or "training was asked to stop"
        self._finish("completed" if whole else "stopped", reason)

    # How

    def _files_of(self, run_id: str) -> RunFiles:
        return RunFiles.of(self.output_dir, run_id, self.event_log_path)

    def _begin(self, args: Any, state: Any, hook: Mapping[str, Any], *, training: bool) -> None:
        before = self._active
        if before is not None and not before.training and training and state.global_step == 0:
            before.open(self, state, training=True)  # evaluated first, trained now: one run
            return
        self._finish("failed", "training began again before the run had ended: by train(), or auto_find_batch_size")
        sweep(state)
        self._given_up = True  # unless what follows works: a run that cannot begin is not tried again at each log
        plan = plan_run(args, state, self.output_dir, self._given_run_id, self._files_of, self.resume)
        self.run_id = plan.run_id
        self._active = _Active(self, args, state, plan, hook.get("model"), training)
        self._given_up = False
        if before is not None:
            # A second train() on one trainer: its token count goes on where it was.
            self._active.reader.tokens = before.reader.tokens

    def _report_again(self, active: _Active) -> None:
        report = active.recorder.report or {}
        active.recorder.close(report.get("status", "completed"), report.get("reason"))

    def _act(self, args: Any, control: Any, active: _Active, changed: list[Alert]) -> None:
        """Does what the user asked for on alerts."""
        self._heed(active, changed)
        if self._wish and not several_processes(args):
            self._stop(args, control)

    def _heed(self, active: _Active, changed: list[Alert]) -> None:
        """Tells the user, and notes a wish to stop: what is seen from another thread is acted on at the next log."""
        self._tell(changed)
        if self.stop_on is not None:
            wish, codes = self.stop_on.wish(alert for alert in changed if alert.resolved_step is None)
            if wish:
                self._wish, active.stop_reason = max(self._wish, wish), f"stop_on: {codes}"
                active.recorder.extra["stop_requested"] = active.stop_reason
                logger.warning("rldk: asking the trainer to stop (%s)", active.stop_reason)

    def _tell(self, changed: Iterable[Alert]) -> None:
        if self.on_alert is not None:
            for alert in changed:
                # The user's own code, and still no reason to end a run.
                self.guard.call("on_alert", self.on_alert, alert)

    @guarded
    def _stop_together(self, args: Any, control: Any) -> None:
        # At the end of a step and not in on_log, which a program may call on one process alone.
        if several_processes(args):
            self._stop(args, control)

    def _stop(self, args: Any, control: Any) -> None:
        if stop(self._wish, args, control):
            self._wish = 0
            self._leaving = ignores_stop(args)

    def _leave(self, args: Any, control: Any) -> None:
        """Ends a trainer that cannot be asked: raised out of its loop, once the checkpoint that was asked for is there.

        The one exception of rldk's that reaches a training loop, since the user asked for the stop.
        """
        if self._leaving and not control.should_save:
            self._leaving = False
            reason = (self._active.stop_reason if self._active else None) or "stop_on, on another process"
            self._finish("stopped", reason)
            raise TrainingStopped(
                f"rldk ended training ({reason}). TRL's PPOTrainer ignores a request to stop, so train() ends with this"
            )

    @guarded
    def _finish(self, status: str, reason: str | None = None) -> None:
        active = self._active
        if active is not None and not active.closed:
            self._tell(active.close(status, reason))
            if status == "failed":
                logger.warning("rldk: run %s failed: %s. Its record is in %s", self.run_id, reason, self.output_dir)

    def __getstate__(self) -> dict[str, Any]:
        """Without files, threads and locks: a copy records nothing until its own training begins."""
        return {**self.__dict__, "_active": None, "guard": Guard()}


class _Active:
    """What a run needs while it is recorded; gone from copies of the callback."""

    ending: Ending
    silence: Silence
    sampler: ResourceSampler | None
    checkpoints: CheckpointAnalyser | None

    def __init__(
        self, callback: RLDKCallback, args: Any, state: Any, plan: RunPlan, model: Any, training: bool
    ) -> None:
        self._plan = plan
        self._callback = callback
        self._model = weakref.ref(model) if model is not None else lambda: None
        self.weights: WeightWatch | None = None
        self.labels: LabelPeek | None = None
        self.closed = True
        self.step_ended = time.perf_counter()
        self.stop_reason: str | None = None
        guard = callback.guard
        detectors = make_detectors(callback.alert_thresholds)
        self._patience = next((item.parameters()["floor"] for item in detectors if item.code == "stall"), 300.0)
        self.reader = LogReader(args, plan.model_info(callback.tags), plan.wall_time)
        self.reader.tokens = float(plan.tokens)
        self.recorder = Recorder(
            plan.run_id,
            plan.files,
            detectors,
            guard=guard,
            trainer=self.reader.trainer,
            jsonl_interval=callback.jsonl_log_interval if callback.enable_jsonl_logging else 0,
            console_interval=callback.log_interval,
            resume_at=plan.resume_at,
            trackers=TrackerSink(args.report_to or (), _writers_of(trainer_of(state)), kept_in=str(plan.files.alerts)),
        )
        self.recorder.skipped = self.reader.skipped
        if plan.resume_at is not None:
            guard.call("reading the run back", self.recorder.replay, plan.earlier_events())
        manifest = build_manifest(args, plan, self.reader, model, callback.tags, callback.settings())
        self.recorder.extra.update(began=manifest["created"], environment=manifest["environment"])
        self.recorder.write_manifest(manifest)
        if plan.note:
            self.recorder.record(self.reader.make(plan.resume_at or 0, {}, "train", (plan.note,)))
        # Rows of a training batch, over all processes and accumulation steps.
        self._rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * (args.world_size or 1)
        self._last_step = self._counted_step = plan.resume_at or 0
        self._last_log = time.perf_counter()
        self._paused = 0.0
        self.open(callback, state, training)

    def open(self, callback: RLDKCallback, state: Any, training: bool) -> None:
        """Starts what runs beside the trainer; a second time, if one that was only evaluated begins to train."""
        if not self.closed:
            self.ending.release()
            self.silence.stop()
            if self.sampler is not None:
                self.sampler.stop()
        self.training, self.closed = training, False
        self._state = weakref.ref(state)
        self._last_log = time.perf_counter()
        self.recorder.write_report("running")
        self.ending = Ending(callback._finish, state)
        self.silence = Silence(self._patience, self._silent, callback.guard)
        self.sampler = None
        if callback.enable_resource_monitoring:
            self.sampler = ResourceSampler(callback.guard)
            self.sampler.start()
        self.checkpoints = CheckpointAnalyser(callback.guard) if callback.enable_checkpoint_analysis else None

    def judge_setup(self, args: Any, state: Any, hook: Mapping[str, Any]) -> list[Alert]:
        """Judges what is known before the first step, and takes a sample of the weights."""
        guard, model = self._callback.guard, hook.get("model")
        facts = guard.call("set-up", facts_of, args, state, self.reader.trainer, hook, trainer_of(state), guard) or {}
        self.weights = guard.call("sample of the weights", WeightWatch, model, state.global_step) if model is not None else None
        unseen = self.reader.trainer == "sft" and "empty_label_frac" not in facts
        # Compiled, a hook would be traced; where sequences are split over processes, each sees a part of the rows.
        if unseen and model is not None and not (args.torch_compile or getattr(args, "parallelism_config", None)):
            self.labels = guard.call("look at the labels", LabelPeek, args, hook, guard)
        setup = {
            "step": state.global_step,
            "wall_time": round(self.reader.now(), 6),
            "trainer": self.reader.trainer,
            "arguments": judged_arguments(self.reader.arguments, state),
            "facts": facts,
        }
        self.silence.beat = time.perf_counter()
        return self.recorder.begin(setup)

    def _silent(self, seconds: float, where: str) -> None:
        """Records that nothing has been heard for so long; called from the watching thread."""
        reader = self.reader
        event = Event(
            self._last_step, round(reader.now(), 6), {"silence_s": round(seconds, 3)}, "train", {}, {}, reader.model_info,
            (f"no sign of life for {seconds:.0f} s; the training thread is in {where}",), timestamp(time.time()),
        )
        with self.recorder.alone():
            # A run that has ended meanwhile is not silent, nor one of which only an evaluation, or a log, was seen.
            changed = [] if self.closed or not self.training else self.recorder.record(event)
        self._callback._heed(self, changed)

    def log(self, step: int, logs: Mapping[str, Any]) -> list[Alert]:
        """Records one log call, and the checkpoints that have been analysed since the last."""
        self.silence.beat = time.perf_counter()
        changed = self.analysed() if self.checkpoints is not None and self.checkpoints.ready else []
        sampled = self.sampler.take() if self.sampler is not None else None
        event = self.reader.event(step, logs, sampled)
        self._last_step = step
        if event.phase == "train":
            metrics: dict[str, Any] = event.metrics  # type: ignore[assignment]  # ours, and not yet seen by anyone
            if self.labels is not None:
                metrics.update(self._callback.guard.call("look at the labels", self.labels.end) or {})
                self.labels = None
            if self.weights is not None and self.weights.due is not None and step >= self.weights.due:
                metrics.update(self._callback.guard.call("look at the weights", self.weights.look, step) or {})
            if self.sampler is not None:
                self._add_rates(step, event, metrics)
        return changed + self.recorder.record(event)

    def _add_rates(self, step: int, event: Event, metrics: dict[str, Any]) -> None:
        """Rows and tokens a second of training; evaluating and saving do not count."""
        now = time.perf_counter()
        seconds = now - self._last_log - self._paused
        steps = step - self._counted_step
        if seconds > 0 and steps > 0:
            metrics["samples_per_second"] = steps * self._rows_a_step / seconds
            tokens = event.data_slice.get("tokens_in")
            if tokens:
                metrics["tokens_per_second"] = tokens / seconds
        self._counted_step, self._last_log, self._paused = step, now, 0.0

    def pause(self) -> None:
        """Something other than training ends now; it began after the last step, or the last pause."""
        now = self.silence.beat = time.perf_counter()
        self._paused += now - max(self.step_ended, self._last_log)
        self.step_ended = now

    def analysed(self) -> list[Alert]:
        """Records the checkpoints that have been analysed by now."""
        changed: list[Alert] = []
        if self.checkpoints is not None:
            for step, metrics, notes in self.checkpoints.take():
                changed += self.recorder.record(self.reader.make(step, metrics, "checkpoint", notes))
        return changed

    def _autopsy(self) -> list[Alert]:
        """Looks at the weights of a run that died: generation from NaN weights raises before anything is logged."""
        model = self._model()
        bad = self._callback.guard.call("autopsy", count_nonfinite, model) if model is not None else None
        if not bad:
            return []
        note = "looked at when the run died"
        # The step that the weights are of, and not the last log's: a checkpoint between both, from which the run may go
        # on, was sound.
        state = self._state()
        step = self._last_step if state is None else max(self._last_step, state.global_step)
        return self.recorder.record(self.reader.make(step, {"param_nonfinite": bad}, "checkpoint", (note,)))

    def close(self, status: str, reason: str | None) -> list[Alert]:
        """Ends threads, records what is left, and writes the report."""
        self.closed = True
        self.ending.release()
        self.silence.stop()
        self.weights = None
        if self.labels is not None:
            self._callback.guard.call("look at the labels", self.labels.end)
        if self.sampler is not None:
            self.sampler.stop()
            self.sampler = None
        changed: list[Alert] = []
        if status == "failed" and reason != "SIGTERM":  # the time that is left after a signal is not ours
            self.recorder.write_report(status, reason)  # whatever becomes of the look
            changed = self._autopsy()
        if self.checkpoints is not None:
            done = self.checkpoints.finish(_CHECKPOINT_WAIT_S if status == "completed" else 1.0)
            changed += self.analysed()
            if self.checkpoints.missed or not done:
                self.recorder.extra["checkpoints_not_analysed"] = self.checkpoints.missed + (not done)
            self.checkpoints = None
        self.recorder.close(status, reason)
        self._plan.release()
        return changed


def _writers_of(trainer: Any) -> Callable[[], list[Any]]:
    """Gives the writers of a trainer, without keeping it: who keeps the callback must not keep the model."""
    found = weakref.ref(trainer) if trainer is not None else lambda: None
    return lambda: _writers(found())


def _writers(trainer: Any) -> list[Any]:
    """The TensorBoard writers of a trainer's callbacks, while they are open."""
    callbacks = trainer.callback_handler.callbacks if trainer is not None else ()
    return [callback.tb_writer for callback in callbacks if getattr(callback, "tb_writer", None)]


def _steps(name: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ConfigurationError(f"{name} must be a whole number of steps, {lowest} or more; got {value!r}")
    return value


def _stop_codes(stop_on: str | Iterable[str] | None) -> StopRule | None:
    if stop_on is None:
        return None
    if not isinstance(stop_on, Iterable):
        raise ConfigurationError(f"stop_on must be a detector code or severity, or several; got {stop_on!r}")
    given = [stop_on] if isinstance(stop_on, str) else list(stop_on)
    severities = [severity.value for severity in Severity]
    known = [*severities, *detector_classes()]
    for item in given:
        if item not in known:
            raise ConfigurationError(
                f"stop_on: unknown code or severity {item!r}.{nearest(str(item), known)} Known: {', '.join(known)}"
            )
    return StopRule(frozenset(given))
