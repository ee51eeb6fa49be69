"""training-doctor's callback for the Hugging Face Trainer."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from training_doctor.integrations.huggingface import HuggingFaceCallback

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict
from ._trainer import Trainer

__all__ = ["TrainingDoctor"]


class TrainingDoctor(Judge):
    """HuggingFaceCallback, its diagnoses read instead of printed."""

    name = "training-doctor"
    requirement = "training-doctor"
    how = (
        "HuggingFaceCallback() with its defaults, shown every log call as TRL made it, and each evaluation once more as "
        "the Trainer does; each diagnosis, which it repeats after its own cooldown of 100 to 500 steps"
    )

    @property
    def version(self) -> str:
        """Of the package that is installed."""
        return version(self.requirement)

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """A diagnosis is an alarm."""
        alarms, trainer, callback = Alarms(recording), Trainer(recording), HuggingFaceCallback(auto_print=False)
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
        known = 0
        for row, logs in trainer.logs():
            alarms.at(row)
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
            if row.phase == "eval":
                callback.on_evaluate(trainer.args, trainer.state, trainer.control, metrics=logs)
            diagnoses = callback.diagnoses
            for diagnosis in diagnoses[known:]:
                seen = "; ".join(evidence.observation for evidence in diagnosis.evidence)
                alarms.add(diagnosis.detector_name, f"{diagnosis.problem}: {seen}", diagnosis.severity.value)
            known = len(diagnoses)
        return alarms.verdicts
