"""What a run needs while it is recorded: its recorder, its threads, its looks at weights and labels.

Made by `RLDKCallback` as training begins, and gone from copies of it. It knows the trainer's state and the run's clock; which
hook calls what is the callback's.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...checkpoints import CheckpointAnalyser
from ...detectors import make_detectors
from ...event import Alert, Event, timestamp
from ...hub import CLOSE_SECONDS, HURRY_SECONDS, HubDataset
from ...lifecycle import Ending
from ...recorder import Recorder
from ...resources import ResourceSampler
from ...silence import Silence
from ...sinks.trackers import TrackerSink
from ._gradients import GradientNorms, watch_gradients
from ._manifest import build_manifest
from ._reader import LogReader
from ._resume import RunPlan
from ._setup import LabelPeek, facts_of, judged_arguments, trainer_of
from ._weights import WeightWatch, count_nonfinite

if TYPE_CHECKING:
    from .callback import RLDKCallback

__all__ = ["ActiveRun"]

_CHECKPOINT_WAIT_S = 60.0


class ActiveRun:
    """What a run needs while it is recorded; gone from copies of the callback."""

    ending: Ending
    silence: Silence
    sampler: ResourceSampler | None
    checkpoints: CheckpointAnalyser | None
    hub: HubDataset | None

    def __init__(
        self, callback: RLDKCallback, args: Any, state: Any, plan: RunPlan, model: Any, training: bool
    ) -> None:
        self._plan = plan
        self._callback = callback
        self._model = weakref.ref(model) if model is not None else lambda: None
        self.weights: WeightWatch | None = None
        self.labels: LabelPeek | None = None
        self.gradients: GradientNorms | None = None
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
        self.hub = guard.call("hub", self._dataset, args, plan) if callback.hub_dataset_id is not None else None
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
        if self.hub is not None:
            self._callback.guard.call("hub", self.hub.start)
        self.ending = Ending(callback._finish, state)
        self.silence = Silence(self._patience, self._silent, callback.guard)
        self.sampler = None
        if callback.enable_resource_monitoring:
            self.sampler = ResourceSampler(callback.guard)
            self.sampler.start()
        self.checkpoints = CheckpointAnalyser(callback.guard) if callback.enable_checkpoint_analysis else None

    def _dataset(self, args: Any, plan: RunPlan) -> HubDataset:
        """The dataset that the run's files go to, with the trainer's own wishes for repositories."""
        assert self._callback.hub_dataset_id is not None
        return HubDataset(
            self._callback.hub_dataset_id, plan.files, plan.run_id, private=getattr(args, "hub_private_repo", None),
            token=getattr(args, "hub_token", None), resumed=plan.resume_at is not None,
        )

    def judge_setup(self, args: Any, state: Any, hook: Mapping[str, Any]) -> list[Alert]:
        """Judges what is known before the first step, samples the weights, and asks the optimizer for PPO's gradients."""
        guard, model, trainer = self._callback.guard, hook.get("model"), trainer_of(state)
        facts = guard.call("set-up", facts_of, args, state, self.reader.trainer, hook, trainer, guard) or {}
        self.gradients = guard.call("gradient norms", watch_gradients, args, hook, trainer, guard)
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
            if self.gradients is not None:
                for name, value in (self._callback.guard.call("gradient norms", self.gradients.take) or {}).items():
                    metrics.setdefault(name, value)  # what the trainer logs itself is left as it is
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
        if self.gradients is not None:
            self._callback.guard.call("gradient norms", self.gradients.end)
            self.gradients = None
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
        self.write(status, reason)
        self._plan.release()
        return changed

    def write(self, status: str, reason: str | None) -> None:
        """Writes all files of a run that has ended, and sends them where they are to go."""
        hub = self.hub
        if hub is None:
            self.recorder.close(status, reason)
            return
        self.recorder.extra["hub"] = hub.status()
        self.recorder.close(status, reason)
        hurry = status == "failed" or reason == "SIGTERM"
        self._callback.guard.call("hub", hub.close, HURRY_SECONDS if hurry else CLOSE_SECONDS)
        # The Hub's copy says what was known before its last upload, the one here what became of that.
        self.recorder.extra["hub"] = hub.status()
        self.recorder.write_report(status, reason)


def _writers_of(trainer: Any) -> Callable[[], list[Any]]:
    """Gives the writers of a trainer, without keeping it: who keeps the callback must not keep the model."""
    found = weakref.ref(trainer) if trainer is not None else lambda: None
    return lambda: _writers(found())


def _writers(trainer: Any) -> list[Any]:
    """The TensorBoard writers of a trainer's callbacks, while they are open."""
    callbacks = trainer.callback_handler.callbacks if trainer is not None else ()
    return [callback.tb_writer for callback in callbacks if getattr(callback, "tb_writer", None)]
