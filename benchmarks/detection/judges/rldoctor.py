"""rldoctor's live callback."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rl_doctor.detectors.base import Finding
from rl_doctor.integrations.trl import RLDoctorCallback

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict
from ._trainer import Trainer

__all__ = ["RLDoctor"]


class RLDoctor(Judge):
    """RLDoctorCallback, its findings taken where it would print them."""

    name = "rldoctor"
    requirement = "rldoctor"
    how = (
        "RLDoctorCallback() with its defaults: every log call as TRL made it, and the trainer's arguments; each finding "
        "that it announces (warning or worse). It looks at every 25th log call from the 60th on: a run of fewer than 75 "
        "log calls, evaluations included, is never looked at"
    )

    @property
    def version(self) -> str:
        """Of the package that is installed."""
        return version(self.requirement)

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """It announces a finding when it appears and when it gets worse."""
        alarms, trainer, callback = Alarms(recording), Trainer(recording), RLDoctorCallback()

        def found(finding: Finding) -> None:
            alarms.add(finding.detector, finding.summary, finding.severity.label)

        callback.monitor.on_finding = found
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
        for row, logs in trainer.logs():
            alarms.at(row)
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
        return alarms.verdicts
