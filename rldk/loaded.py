"""`rldk.load`: a run as one object, for notebooks and scripts.

Nothing is read until it is asked for, and nothing is written. What the run's files do not hold, since it was killed or was
never under rldk, is found by replaying its log.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ._files import read_alerts, read_object
from .adapters.rldk_stream import RldkStream
from .event import Alert
from .ingest import ingest_all
from .metrics import HEADLINE
from .replay import Replayed, replay_run
from .report import plot
from .report._verdict import judge, worst_first
from .runfiles import RunFiles
from .runs import FoundRun, one_run
from .text import clean, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["LoadedRun", "load"]

_ALERTS_SHOWN = 10
_METRICS_SHOWN = 8
_COLOURS = {"critical": "#c62828", "warning": "#b26a00", "info": "#1565c0"}


def load(
    path: str | os.PathLike[str],
    run_id: str | None = None,
    *,
    alert_thresholds: Mapping[str, Any] | None = None,
    adapter_hint: str | None = None,
    field_map: Mapping[str, str] | None = None,
) -> LoadedRun:
    """Loads one run, to look at.

    Args:
        path: A run's folder, its event stream or any other of its files, or any log that `rldk.ingest_runs` reads, such
            as a `trainer_state.json`.
        run_id: Which run, if there are several.
        alert_thresholds: As of `RLDKCallback`: judge by these. By default the alerts are those that the run's files hold.
        adapter_hint: As of `rldk.ingest_runs`.
        field_map: As of `rldk.ingest_runs`.

    Returns:
        The run: `df`, `alerts`, `report`, `plot()`.

    Raises:
        IngestError: If there is no log, or nothing in it.
        ConfigurationError: If there are several runs, or none of that name; the message lists them.

    Example:
        ```python
        run = rldk.load("rldk_logs")
        run                      # in a notebook: verdict, numbers, alerts
        run.df.plot(x="step", y="loss")
        [alert.message for alert in run.alerts]
        ```
    """
    return LoadedRun(one_run(path, run_id, adapter_hint, field_map), alert_thresholds, adapter_hint, field_map)


class LoadedRun:
    """A run that was recorded, or only logged.

    Attributes:
        name: Its `run_id`, or what its log is called.
        path: Its log.
    """

    def __init__(
        self, found: FoundRun, thresholds: Mapping[str, Any] | None, hint: str | None, field_map: Mapping[str, str] | None
    ) -> None:
        self.name = found.name
        self.path = found.log.path
        self._found, self._thresholds, self._hint, self._field_map = found, thresholds, hint, field_map
        ours = isinstance(found.log, RldkStream)
        # The files that say what is asked for. With thresholds of one's own they say something else.
        self._files = RunFiles.of(self.path.parent, self.name) if ours and thresholds is None else None

    @cached_property
    def df(self) -> pd.DataFrame:
        """The events, as of `rldk.ingest_runs`."""
        frame = ingest_all([self.path], self._hint, self._field_map)
        if frame["run_id"].nunique() > 1:
            frame = frame[frame["run_id"] == self.name].reset_index(drop=True)
        return frame

    @cached_property
    def alerts(self) -> list[Alert]:
        """The alerts, in the order in which they were raised."""
        if self._files is not None and self._files.alerts.exists():
            return read_alerts(self._files.alerts)
        return self._replayed.found

    @cached_property
    def report(self) -> dict[str, Any]:
        """The content of final_report.json; for a run without one, what it would say now."""
        there = read_object(self._files.report) if self._files is not None else {}
        return there if {"health", "totals", "coverage"} <= there.keys() else self._replayed.report()

    @cached_property
    def _replayed(self) -> Replayed:
        run = Replayed(self._found.run_id, self._found.log, self._thresholds)
        for _ in replay_run(run, self._found.survey):
            pass
        return run

    def plot(self, metrics: str | list[str] | None = None, **options: Any) -> Figure:
        """Draws the metrics over the steps, with the alerts marked (`rldk.report.plot`).

        Args:
            metrics: What to draw; by default what rldk knows of the trainer's learning.
            **options: Further ones of `rldk.report.plot`.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return plot(self.df, metrics, self.alerts, **options)

    def __repr__(self) -> str:
        verdict = judge(self.report, self._rows())
        return f"<run {clean(self.name)}: {clean(verdict.sentence)} {self.report['totals']['steps']} steps>"

    def _rows(self) -> list[dict[str, Any]]:
        return [alert.to_dict() for alert in self.alerts]

    def _repr_html_(self) -> str:
        report, rows = self.report, self._rows()
        verdict = judge(report, rows)
        colour = _COLOURS.get(verdict.tone, "#2e7d32" if verdict.tone == "quiet" else "#616161")
        parts = [
            f"<p><b>{_text(self.name)}</b>: <b style='color:{colour}'>{_text(verdict.sentence)}</b><br>"
            f"{_text(report.get('trainer') or 'unknown')} trainer, {_text(report['totals']['steps'])} steps, "
            f"{_text(report['status'])}</p>"
        ]
        known = report["metrics"]
        shown = [name for name in HEADLINE if known.get(name, {}).get("count")] or [
            name for name, row in known.items() if row.get("count")
        ]
        if shown:
            keys = ("first", "last", "min", "max")
            body = [[name, *(number(known[name][key]) for key in keys)] for name in shown[:_METRICS_SHOWN]]
            parts.append(_table(("metric", *keys), body))
        if rows:
            order = worst_first(rows)
            body = [
                [row["severity"], row["code"], row["step"], "open" if row["resolved_step"] is None else row["resolved_step"],
                 f"{row['message']} {row['advice']}"]
                for row in (rows[at] for at in order[:_ALERTS_SHOWN])
            ]
            parts.append(_table(("severity", "alert", "step", "passed", "what happened, what to try"), body))
            if len(order) > _ALERTS_SHOWN:
                parts.append(f"<p>and {len(order) - _ALERTS_SHOWN} more alerts</p>")
        return "".join(parts)


def _table(header: tuple[str, ...], rows: list[list[Any]]) -> str:
    head = "".join(f"<th style='text-align:left'>{_text(title)}</th>" for title in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{_text(item)}</td>" for item in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(clean(str(value)))
