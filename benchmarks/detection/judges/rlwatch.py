"""rlwatch's callback for TRL."""

from __future__ import annotations

import atexit
import contextlib
import io
import tempfile
from importlib.metadata import version
from typing import Any

from rlwatch import attach
from rlwatch.detectors import Alert

from ..store import Recording
from ._alarms import Alarms
from ._base import Judge, Verdict
from ._trainer import Trainer

__all__ = ["RLWatch"]


class RLWatch(Judge):
    """The callback that `attach(framework="trl")` makes, and what its alert manager lets through."""

    name = "rlwatch"
    requirement = "rlwatch"
    how = (
        "attach(framework='trl') with its defaults, its callback shown every log call as TRL made it; each alert that "
        "passes its own cooldown of 100 steps a severity. That counts steps, not seconds: a fast replay changes nothing"
    )

    @property
    def version(self) -> str:
        """Of the package that is installed."""
        return version(self.requirement)

    def judge(self, recording: Recording, thresholds: dict[str, Any]) -> list[Verdict]:
        """An alert that is sent is an alarm."""
        alarms, trainer = Alarms(recording), Trainer(recording)
        # It draws its alerts on stderr, and keeps each step in a database.
        with tempfile.TemporaryDirectory(prefix="rlwatch-") as folder, contextlib.redirect_stderr(io.StringIO()):
            monitor = attach(framework="trl", storage={"log_dir": folder})
            send = monitor.alert_manager.send

            def heard(alert: Alert) -> bool:
                sent = send(alert)
                if sent:
                    alarms.add(alert.detector, alert.message, alert.severity)
                return sent

            monitor.alert_manager.send = heard
            callback = monitor._trl_callback_class()
            for row, logs in trainer.logs():
                alarms.at(row)
                callback.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
            monitor.stop()
            # Else the process would keep every run's monitor until it ends.
            atexit.unregister(monitor.stop)
        return alarms.verdicts
