"""A figure for notebooks: the metrics that matter, in small multiples, with marks where an alert was raised.

The one module that knows matplotlib, which comes with ``pip install "rldk[plot]"`` and is imported when a figure is asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..event import Alert, Severity
from ..exceptions import ConfigurationError
from ..metrics import METRICS, canonical_name, lookup, nearest
from ..text import clean
from ._panels import Placed, place

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot"]

_FIXED = ("step", "wall_time", "run_id", "phase")
_SKIPPED = ("Machine", "Speed")
_MOST = 12
_HUES = ("#2663c9", "#d1560b", "#14804a", "#8a3ab9", "#0b7285", "#b5196b")
_SEVERITIES = {"critical": "#b3261e", "warning": "#b07400", "info": "#2450b8"}
_WIDTH, _HEIGHT = 4.0, 2.3


def plot(
    df: pd.DataFrame,
    metrics: str | Iterable[str] | None = None,
    alerts: Iterable[Alert | dict[str, Any]] = (),
    *,
    columns: int = 3,
) -> Figure:
    """Draws the metrics of one run or several over their steps.

    Args:
        df: A frame as of `rldk.ingest_runs`.
        metrics: What to draw, one plot each; by default what rldk knows of the trainer's learning, grouped as on the
            report page, without speed and machine.
        alerts: The alerts, or the content of alerts.json: marked at their step, in the plot of their metric in full.
        columns: Plots side by side.

    Returns:
        A matplotlib figure, which a notebook shows by itself; nothing of pyplot's state is touched.

    Raises:
        ImportError: If matplotlib is not installed.
        ConfigurationError: If a metric is not in the frame, or the frame has no column `step`.

    Example:
        ```python
        figure = rldk.report.plot(rldk.ingest_runs("rldk_logs"))
        figure.savefig("run.png")
        ```
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is not installed. Install with: pip install "rldk[plot]"') from error
    if "step" not in df:
        raise ConfigurationError(f"plot needs a frame with a column 'step'; got {', '.join(map(str, df.columns[:8]))}")
    panels = _panels(df, metrics)
    columns = max(1, min(columns, len(panels) or 1))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "No metric to draw.", ha="center")
        return figure
    marks = [alert.to_dict() if isinstance(alert, Alert) else alert for alert in alerts]
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, panel in zip(axes, panels):
        _draw(axis, df, panel, marks)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _panels(df: pd.DataFrame, metrics: str | Iterable[str] | None) -> list[Placed]:
    logged = [name for name in df.columns if name not in _FIXED and df[name].notna().any()]
    if metrics is None:
        return [panel for panel in place(logged) if panel.section not in _SKIPPED][:_MOST]
    panels = []
    for given in [metrics] if isinstance(metrics, str) else metrics:
        name = given if given in df else canonical_name(given)
        if name not in df:
            raise ConfigurationError(f"plot: no metric {given!r} in the frame.{nearest(str(given), list(map(str, df.columns)))}")
        twin = f"eval_{name}"
        panels.append(Placed("", name, (name, twin) if twin in df else (name,)))
    return panels


def _draw(axis: Axes, df: pd.DataFrame, panel: Placed, alerts: Sequence[dict[str, Any]]) -> None:
    runs = list(df["run_id"].unique()) if "run_id" in df else [None]
    for at, name in enumerate(panel.metrics):
        evaluation = name.startswith("eval_")
        bare = name.removeprefix("eval_")
        first = panel.metrics.index(bare) if evaluation and bare in panel.metrics else at
        for order, run in enumerate(runs):
            rows = df if run is None else df[df["run_id"] == run]
            rows = rows[rows[name].notna()]
            if rows.empty:
                continue
            hue = _HUES[(first if len(runs) == 1 else order) % len(_HUES)]
            label = _plain(name if len(runs) == 1 else f"{name}, {run}")
            style = {"linestyle": "--", "marker": "o", "markersize": 3} if evaluation else {"marker": "o" if len(rows) == 1 else ""}
            axis.plot(rows["step"], rows[name], color=hue, linewidth=1.3, label=label, **style)
    for alert in alerts:
        own = alert.get("metric") in panel.metrics
        colour = _SEVERITIES.get(str(alert.get("severity")), _SEVERITIES[Severity.INFO.value])
        axis.axvline(alert["step"], color=colour, linewidth=1.2 if own else 0.7, alpha=0.9 if own else 0.3, zorder=0)
        if own:
            axis.annotate(_plain(alert.get("code")), (alert["step"], 1), xycoords=("data", "axes fraction"), xytext=(3, -8),
                          textcoords="offset points", fontsize=7, color=colour)
    metric = lookup(panel.metrics[0])
    unit = f" ({metric.unit})" if metric is not None and panel.metrics[0].removeprefix("eval_") in METRICS else ""
    axis.set_title(_plain(panel.title) + unit, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(axis.get_lines()) > 1 and axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=6.5, frameon=False)


def _plain(name: Any) -> str:
    """A name that matplotlib takes as text: no control characters, no formulas, no leading underscore that hides it."""
    return clean(str(name)).replace("$", r"\$").lstrip("_")
