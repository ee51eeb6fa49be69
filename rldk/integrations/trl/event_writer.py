"""EventWriterCallback: the light one. Canonical events on disk, nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from ..._guard import Guard, guarded
from ...adapters.rldk_stream import RldkStream
from ...emit import check_tags
from ...environment import git_commit, redact
from ...event import Event
from ...runfiles import check_path, check_run_id, new_run_id
from ...sinks.jsonl import JsonlSink
from ...timeline import resume_note
from ._reader import LogReader

__all__ = ["EventWriterCallback"]

logger = logging.getLogger("rldk")


class EventWriterCallback(TrainerCallback):
    """Writes a trainer's logs as canonical events, and nothing else.

    Works on every trainer that calls `on_log`; only the main process writes. The file is only ever appended to.

    Args:
        event_log_path: The stream's file.
        run_id: Name of the run in its events. By default a new one, or after a resume that of the file's last event.
        tags: Free labels, into every event's `model_info.tags`.

    Raises:
        ConfigurationError: At construction, for a bad `run_id` or path.

    Example:
        ```python
        trainer = SFTTrainer(model, args=args, train_dataset=dataset,
                             callbacks=[EventWriterCallback("logs/sft_events.jsonl")])
        ```
    """

    def __init__(
        self,
        event_log_path: str | os.PathLike[str],
        *,
        run_id: str | None = None,
        tags: Mapping[str, Any] | Sequence[str] | None = None,
    ) -> None:
        self.event_log_path = check_path("event_log_path", event_log_path)
        self.run_id = None if run_id is None else check_run_id(run_id)
        self.tags = check_tags(tags)
        self.guard = Guard()
        self._given_run_id = self.run_id
        self._reader: LogReader | None = None
        self._sink = JsonlSink(self.event_log_path)
        self._warned = False

    @property
    def lost(self) -> int:
        """Events that could not be written."""
        return self._sink.lost

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins a run, or marks that an earlier one goes on."""
        if state.is_world_process_zero:
            self._begin(args, state)

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes one log call. A subclass may add keys to `logs` and call this."""
        if not logs or not state.is_world_process_zero:
            return
        if self._reader is None:
            self._begin(args, state)
        assert self._reader is not None
        try:
            self._sink.write(self._reader.event(state.global_step, logs))
        except OSError as error:
            self._trouble(error)

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets go of the file; an evaluation after training opens it again."""
        self._sink.close()
        if self.lost:
            logger.warning("rldk: %d events could not be written to %s", self.lost, self.event_log_path)

    def _begin(self, args: Any, state: Any) -> None:
        step, last_run = int(state.global_step), ""
        lasted: dict[str, float] = {}
        if step:
            for event in self._earlier():
                last_run = event.run_id or last_run
                if event.step <= step:
                    lasted[event.run_id] = max(lasted.get(event.run_id, 0.0), event.wall_time)
        self.run_id = self._given_run_id or last_run or new_run_id(getattr(args, "run_name", None) or args.output_dir)
        began = lasted.get(self.run_id, 0.0)
        info: dict[str, Any] = {"run_id": self.run_id}
        if commit := git_commit().get("commit"):
            info["git_sha"] = commit
        if self.tags:
            info["tags"] = redact(self.tags)
        tokens = self._reader.tokens if self._reader else float(getattr(state, "num_input_tokens_seen", 0) or 0)
        self._reader = LogReader(args, info, began)
        self._reader.tokens = tokens
        if step:
            try:
                self._sink.write(self._reader.make(step, {}, "train", (resume_note(step),)))
            except OSError as error:
                self._trouble(error)

    def _earlier(self) -> Iterator[Event]:
        return RldkStream(self.event_log_path).events() if self.event_log_path.exists() else iter(())

    def _trouble(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "rldk: cannot write events to %s (%s). Training goes on, and writing resumes when it can.",
                self.event_log_path, error,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: a copy opens its own."""
        return {**self.__dict__, "_reader": None, "_sink": JsonlSink(self.event_log_path), "guard": Guard()}
