"""run.json: what a run was, so that its record can be read, and the run repeated, years later. No secrets."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from ...environment import describe, redact
from ...event import timestamp
from ._reader import LogReader
from ._resume import RunPlan

__all__ = ["build_manifest"]


def build_manifest(
    args: Any, plan: RunPlan, reader: LogReader, model: Any, tags: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a run; of a resumed one, the earlier manifest with this part added under `resumed`."""
    now = timestamp(time.time())
    environment = describe()
    if plan.resume_at is not None and plan.manifest:
        part = {"time": now, "step": plan.resume_at, "pid": os.getpid(), "host": platform.node(), "git": plan.git,
                "environment": environment, "rldk_before": plan.manifest.get("rldk")}
        # The settings in force are the present ones: the earlier events were judged anew by them.
        return {**plan.manifest, "pid": os.getpid(), "host": platform.node(), "rldk": redact(settings),
                "resumed": [*plan.manifest.get("resumed", []), part]}
    vocabulary = reader.vocabulary
    return {
        "run_id": plan.run_id,
        "created": now,
        "pid": os.getpid(),
        "host": platform.node(),
        "trainer": {"family": vocabulary.family.name, "arguments_class": type(args).__name__},
        "output_dir": os.path.abspath(args.output_dir),
        "arguments": redact(reader.arguments),
        "model": _about(model),
        "tags": redact(tags) if tags else None,
        "rldk": redact(settings),
        "git": plan.git,
        "environment": environment,
        "vocabulary": vocabulary.table(),
        "corrections": [vocabulary.correction.text] if vocabulary.correction else [],
        "resumed": [],
    }


def _about(model: Any) -> dict[str, Any]:
    """Class and size of the model, where it can be asked."""
    if model is None:
        return {}
    about: dict[str, Any] = {"class": type(model).__name__}
    parameters = getattr(model, "parameters", None)
    if callable(parameters):
        # DeepSpeed's ZeRO-3 leaves empty parameters behind, and keeps their size beside them.
        sizes = [(getattr(item, "ds_numel", item.numel()), item.requires_grad) for item in parameters()]
        about["parameters"] = sum(size for size, _ in sizes)
        about["trainable_parameters"] = sum(size for size, trains in sizes if trains)
    return about
