"""RLDKCallback: translates a trainer's hooks for a `Recorder`.

Observes; never changes logs, losses, random state or control flow, unless `stop_on` asks it to stop the run. No hook
relies on the order of the others: PPO logs before `on_step_end` and fires few hooks, the others log after.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..._guard import Guard, guarded
from ...detectors import detector_classes, make_detectors
from ...emit import check_tags
from ...event import Alert, Severity
from ...exceptions import ConfigurationError, TrainingStopped
from ...hub import check_dataset_id
from ...lifecycle import sweep
from ...metrics import nearest
from ...report import render_text
from ...runfiles import RunFiles, check_path, check_run_id
from ...trackio._install import guard_reporter
from ._active import ActiveRun
from ._resume import check_new, plan_run
from ._setup import trainer_of
from ._stop import StopRule, ignores_stop, several_processes, stop

__all__ = ["RLDKCallback"]

logger = logging.getLogger("rldk")


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
        hub_dataset_id: A dataset on the Hugging Face Hub, `user/name` or `name`, that the run's files go to: now, every five
            minutes, and at the end, which may wait for it, 30 seconds at most. Made if it does not exist, private if
            `hub_private_repo` of the trainer's arguments says so, with their `hub_token`. Nothing is sent unless asked for
            here. A Hub that cannot be reached is one warning.

    Raises:
        ConfigurationError: At construction, for a bad `run_id`, path or `hub_dataset_id`, an unknown threshold or detector
            code, or a bad interval; the message shows the value.
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
        hub_dataset_id: str | None = None,
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
        self.hub_dataset_id = None if hub_dataset_id is None else check_dataset_id(hub_dataset_id)
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
        self._active: ActiveRun | None = None
        guard_reporter()

    # What a person asks for

    @property
    def files(self) -> dict[str, Path]:
        """The run's files by name: events, alerts, metrics, report, manifest, page.

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
    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mends what would end the training before it is under way."""
        self._mend_trackio(args, state)

    def _mend_trackio(self, args: Any, state: Any) -> None:
        from ._trackio import guard_trainer  # here, since it imports transformers' trackers, as a trainer does

        guard_trainer(args, trainer_of(state))

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the run, or goes on with it after a resume."""
        self._wish, self._leaving = 0, False  # of an earlier training, which may have died before it heeded them
        self._mend_trackio(args, state)  # again: a trainer that this was added to later has not called on_init_end
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
        self._active = ActiveRun(self, args, state, plan, hook.get("model"), training)
        self._given_up = False
        if before is not None:
            # A second train() on one trainer: its token count goes on where it was.
            self._active.reader.tokens = before.reader.tokens

    def _report_again(self, active: ActiveRun) -> None:
        report = active.recorder.report or {}
        active.write(report.get("status", "completed"), report.get("reason"))

    def _act(self, args: Any, control: Any, active: ActiveRun, changed: list[Alert]) -> None:
        """Does what the user asked for on alerts."""
        self._heed(active, changed)
        if self._wish and not several_processes(args):
            self._stop(args, control)

    def _heed(self, active: ActiveRun, changed: list[Alert]) -> None:
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
