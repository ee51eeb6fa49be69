"""trainproof's callback for the Hugging Face Trainer."""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import version
from typing import Any

from trainproof.integrations.hf import TrainproofCallback

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict
from ._trainer import Trainer

__all__ = ["Trainproof"]


class Trainproof(Judge):
    """TrainproofCallback, which prints."""

    name = "trainproof"
    requirement = "trainproof"
    how = (
        "TrainproofCallback() with its defaults, shown the trainer's log history at every log call; each time that it "
        "announces a failing verdict, which it does once until the verdict is better. It looks every 25 steps from 10 "
        "losses on, and reads loss, gradient norm, learning rate and evaluation loss; PPO logs no loss by that name"
    )

    @property
    def version(self) -> str:
        """Of the package that is installed."""
        return version(self.requirement)

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """An announcement is an alarm, however many findings it lists.

        The callback also measures the time between calls, which a replay distorts; but that can only make a warning,
        and warnings are not announced.
        """
        alarms, trainer, callback = Alarms(recording), Trainer(recording), TrainproofCallback()
        for row, logs in trainer.logs():
            alarms.at(row)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                callback.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
            if "TRAINPROOF WARNING" in printed.getvalue():
                lines = map(str.strip, printed.getvalue().splitlines())
                alarms.add("FAIL", " ".join(line for line in lines if line.startswith("[FAIL]")))
        return alarms.verdicts
