"""The report as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metrics import HEADLINE
from ..text import clean, number

__all__ = ["render_text"]


def render_text(report: Mapping[str, Any]) -> str:
    """A report of a few lines for a terminal, from the content of final_report.json."""
    totals, alerts = report["totals"], report["alerts"]
    reason = f" ({clean(str(report['reason']))})" if report.get("reason") else ""
    lines = [
        f"Run {clean(report['run_id'])}: {report['status']}{reason}, {totals['steps']} steps in "
        f"{totals['wall_time']:.1f} s, {clean(str(report.get('trainer') or 'unknown'))} trainer",
        f"Health: {report['health']['verdict']}. {clean(report['health']['why'])}",
    ]
    if alerts["total"]:
        codes = ", ".join(f"{code} x{count}" for code, count in alerts["by_code"].items())
        lines.append(f"Alerts: {alerts['total']}, of which {alerts['open']} open: {codes}")
    for state in _STATES:
        here = [row["code"] for row in report["coverage"] if row["state"] == state]
        if here:
            lines.append(f"Detectors {_STATES[state]}: {', '.join(here)}")
    rows = {name: row for name, row in report["metrics"].items() if row["count"] > 1}
    shown = [name for name in HEADLINE if name in rows][:_ROWS]
    if shown:
        width = max(map(len, shown))
        lines.append(f"{'metric':<{width}} {'first':>10} {'last':>10} {'min':>10} {'max':>10} {'mean':>10}")
        for name in shown:
            cells = " ".join(f"{number(rows[name][key]):>10}" for key in ("first", "last", "min", "max", "mean"))
            bad = f"  ({rows[name]['nonfinite']} not finite)" if rows[name].get("nonfinite") else ""
            lines.append(f"{name:<{width}} {cells}{bad}")
    if len(report["metrics"]) > len(shown):
        lines.append(f"... and {len(report['metrics']) - len(shown)} more metrics in the report")
    return "\n".join(lines)


_ROWS = 12
_STATES = {
    "fired": "that raised alerts",
    "quiet": "armed and quiet",
    "warming": "not armed, for want of what they need",
    "unseen": "that never saw their metric",
    "failed": "that broke and were left out",
}
