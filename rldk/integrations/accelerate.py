"""RLDKTracker: what accelerate logs, recorded and judged like a trainer's logs.

`Accelerator(log_with="rldk")` finds it after `import rldk`. It translates accelerate's calls for a `Session` and holds
nothing of its own. Never changes what is logged, and never speaks but on the main process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker

from .._register import register

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["RLDKTracker"]

# Accelerate does not say which trackers stand beside this one. These can be asked whether they have a run.
_BESIDE = ("trackio", "wandb", "mlflow", "swanlab")


class RLDKTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """Records a run of a training loop that is built on accelerate, judges it live, and leaves rldk's files.

    Alerts and the summary also go to the runs that trackio, W&B, MLflow or SwanLab have in this process. Accelerate ends
    its trackers in the order of `log_with`: name rldk before them, so that they are still there for the summary.

    Args:
        run_name: Name of the run's files, with the UTC time and four random digits behind it: the `project_name` of
            `init_trackers`.
        output_dir: Folder of the run's files.
        run_id: The whole name of the run's files, instead of one made from `run_name`.
        settings: More of `rldk.session.Session`: `resume`, `tags`, `alert_thresholds`, `log_interval`,
            `enable_resource_monitoring`.

    Raises:
        ConfigurationError: By `start`, for a bad setting.

    Example:
        ```python
        accelerator = Accelerator(log_with="rldk")
        accelerator.init_trackers("my_run", init_kwargs={"rldk": {"output_dir": "rldk_logs"}})
        accelerator.log({"loss": 0.5}, step=1)
        accelerator.end_training()
        ```
    """

    name = "rldk"
    requires_logging_directory = False  # it would have to be given, and rldk has a default
    main_process_only = True

    def __init__(
        self,
        run_name: str,
        output_dir: str | os.PathLike[str] = "./rldk_logs",
        run_id: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._settings = {**settings, "run_id": run_id, "output_dir": output_dir, "name": str(run_name)}
        self._session: Session | None = None

    @property
    def tracker(self) -> Session | None:
        """The session, with `alerts`, `report`, `files`; None before the run has begun, and on other processes."""
        return self._session

    def start(self) -> None:
        """Begins the run. Before accelerate 1.8 nobody calls this, and the first other call begins it."""
        self._begun()

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Puts the training's settings into the run's manifest."""
        session = self._begun()
        if session is not None:
            session.log_config(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Records one log call.

        Args:
            values: Names to numbers. Text is left out, and named in the report.
            step: The step; by default the one after the last.
            kwargs: Taken because accelerate may pass some, and not used.
        """
        session = self._begun()
        if session is not None:
            session.log(values, step=step)

    def finish(self) -> None:
        """Ends the run and writes its report."""
        if self._session is not None:
            self._session.finish()

    def _begun(self) -> Session | None:
        """The session; on processes other than the main one there is none."""
        if self._session is None and PartialState().is_main_process:
            # Here, since everyone who imports rldk and accelerate imports this module, and few use it.
            from ..session import Session
            from ..sinks.trackers import TrackerSink

            sink = TrackerSink(_BESIDE, kept_in=str(self._settings["output_dir"]), asked=False)
            self._session = Session(**self._settings, trackers=sink)
        return self._session


register()  # for who imports this module before accelerate: the table was there before the class
