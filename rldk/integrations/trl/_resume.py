"""Which run a training is: a new one, or an earlier one that goes on.

The trainer's state tells whether it was resumed (its step is not 0 when training begins). The run is then found by the
given `run_id`, or by the manifest that names the trainer's output folder. Existing files are never overwritten.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..._files import read_object
from ...environment import git_commit, redact
from ...event import Event
from ...exceptions import RunExistsError
from ...runfiles import RunFiles, new_run_id
from ...runs import earlier_events
from ...timeline import resume_note

__all__ = ["RunPlan", "check_new", "plan_run"]

logger = logging.getLogger("rldk")

# Manifests of the runs that this process is recording: of two callbacks on one trainer, each goes on with its own.
_recording: set[Path] = set()


class RunPlan(NamedTuple):
    """What `plan_run` decided.

    Attributes:
        run_id: The run.
        files: Its files.
        resume_at: The step that it goes on from; None for a new run.
        wall_time: Seconds that it had lasted at that step.
        tokens: The trainer's token count at that step, where it survives a resume.
        note: For the event that marks the resume; empty for a new run.
        manifest: The earlier manifest; empty for a new run.
        git: Commit and dirty flag.
    """

    run_id: str
    files: RunFiles
    resume_at: int | None
    wall_time: float
    tokens: int
    note: str
    manifest: Mapping[str, Any]
    git: Mapping[str, Any]

    def model_info(self, tags: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
        """What every event says of the run."""
        info: dict[str, Any] = {"run_id": self.run_id}
        if self.git.get("commit"):
            info["git_sha"] = self.git["commit"]
        if tags:
            info["tags"] = redact(tags)
        return info

    def release(self) -> None:
        """Says that this process no longer records the run."""
        _recording.discard(self.files.manifest.absolute())

    def earlier_events(self) -> Iterator[Event]:
        """The run's events up to the step that it goes on from."""
        return earlier_events(self.files.events, self.run_id, self.resume_at or 0)


def check_new(files: RunFiles, run_id: str, *, never: bool = False) -> None:
    """Refuses an existing run, unless its trainer has a checkpoint that it may be resuming from.

    Only on the main process: the others may be constructed while it is already writing.

    Raises:
        RunExistsError: If files exist and no resume is possible, or `never` forbids it.
    """
    if os.environ.get("RANK", "0") not in ("", "0"):
        return
    existing = _own(files, run_id)
    if not existing:
        return
    output_dir = read_object(files.manifest).get("output_dir")
    resumable = bool(output_dir) and any(Path(str(output_dir)).glob("checkpoint-*"))
    if never or not resumable:
        raise RunExistsError(
            f"run_id {run_id!r} exists already ({existing[0]}), and "
            f"{'resume=False' if never else 'it has no checkpoint to resume from'}. Give another run_id, or none for a "
            "new one, or resume=True if this is the same run going on"
        )


def plan_run(
    args: Any,
    state: Any,
    folder: Path,
    run_id: str | None,
    files_of: Callable[[str], RunFiles],
    resume: bool | None,
) -> RunPlan:
    """Decides which run a training is.

    Args:
        args: The trainer's arguments.
        state: The trainer's state as training begins.
        folder: Where runs are recorded.
        run_id: As the user gave it.
        files_of: The files of a run.
        resume: As the user gave it; with False, a resumed trainer begins a new run.
    """
    step = int(state.global_step)
    resumed = step > 0 and resume is not False
    if resumed:
        run_id = run_id or _run_of(folder, args.output_dir)
        if run_id is None:
            logger.warning(
                "rldk: training resumes at step %d, but no earlier record of %s was found in %s; a new run begins",
                step, args.output_dir, folder,
            )
    if run_id is None:
        run_id = new_run_id(getattr(args, "run_name", None) or args.output_dir)
        resumed = False
    elif not resumed:
        run_id = _free(run_id, files_of)
    files = files_of(run_id)
    _recording.add(files.manifest.absolute())
    git = git_commit()
    if not resumed and step == 0:
        return RunPlan(run_id, files, None, 0.0, 0, "", {}, git)
    # What GRPO and RLOO count from; 0 with the others, whose count starts again.
    tokens = int(getattr(state, "num_input_tokens_seen", 0) or 0)
    wall_time = 0.0
    for event in earlier_events(files.events, run_id, step):
        wall_time = max(wall_time, event.wall_time)
    return RunPlan(run_id, files, step, wall_time, tokens, resume_note(step), read_object(files.manifest), git)


def _own(files: RunFiles, run_id: str) -> list[Path]:
    """The files of the run that exist; a stream of another name is no proof, since runs may share an `event_log_path`."""
    return [path for path in files.existing() if path.name.startswith(f"{run_id}_")]


def _free(run_id: str, files_of: Callable[[str], RunFiles]) -> str:
    """The id itself, or one with a number if its files exist: a new training never touches an old one's record."""
    chosen, number = run_id, 1
    while _own(files_of(chosen), chosen):
        number += 1
        chosen = f"{run_id}-{number}"
    if chosen != run_id:
        logger.warning(
            "rldk: run_id %r exists already and training does not resume it: this run is recorded as %r", run_id, chosen
        )
    return chosen


def _run_of(folder: Path, output_dir: str) -> str | None:
    """The newest run in the folder whose trainer wrote to this output folder, and that nobody here records."""
    wanted, found = os.path.abspath(output_dir), []
    for path in folder.glob("*_run.json"):
        manifest = read_object(path)
        run_id = manifest.get("run_id")
        if manifest.get("output_dir") == wanted and isinstance(run_id, str) and path.absolute() not in _recording:
            found.append((str(manifest.get("created")), run_id))
    return max(found)[1] if found else None
