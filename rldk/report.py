"""The report: a pure function of what flowed, and its rendering as text.

No score: the verdict is the worst severity among the alerts, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .event import Alert, Severity
from .metrics import HEADLINE
from .summary import Summary
from .text import clean, number

__all__ = ["build_report", "render_text"]

STATUSES = ("running", "completed", "stopped", "failed")
_RESOURCES = (
    "cpu_percent", "host_cpu_percent", "memory_bytes", "memory_peak_bytes", "host_memory_frac",
    "host_memory_peak_frac", "gpu_percent", "gpu_memory_bytes", "gpu_memory_peak_bytes", "gpu_memory_frac",
    "gpu_memory_peak_frac", "tokens_per_second", "samples_per_second",
)


def build_report(
    *,
    run_id: str,
    status: str,
    summary: Summary,
    alerts: Iterable[Alert],
    dropped_alerts: int,
    coverage: list[dict[str, Any]],
    reason: str | None = None,
    trainer: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds the content of final_report.json.

    Args:
        run_id: The run.
        status: `running`, `completed`, `stopped` or `failed`.
        summary: The fold of the run's events.
        alerts: All alerts.
        dropped_alerts: Alerts beyond the number that is kept.
        coverage: What each detector did (`Monitor.coverage`).
        reason: Why it stopped or failed: an exception's name, a signal.
        trainer: The trainer's family.
        extra: Further top-level entries (environment, files, losses of data).
    """
    alerts = list(alerts)
    by_severity = Counter(alert.severity for alert in alerts)
    metrics = summary.metrics()
    report: dict[str, Any] = {
        "run_id": run_id,
        "status": status,
        "reason": reason,
        "trainer": trainer,
        "health": _health(alerts),
        "totals": summary.totals(),
        "alerts": {
            "total": len(alerts) + dropped_alerts,
            "open": sum(alert.resolved_step is None for alert in alerts),
            "by_severity": {severity.value: by_severity[severity.value] for severity in Severity},
            "by_code": dict(sorted(Counter(alert.code for alert in alerts).items())),
        },
        "coverage": coverage,
        "metrics": {name: row for name, row in metrics.items() if name not in _RESOURCES},
        "resources": {name: metrics[name] for name in _RESOURCES if name in metrics},
    }
    report.update(extra or {})
    return report


def _health(alerts: list[Alert]) -> dict[str, Any]:
    """The verdict and how it came about. It speaks only of the detectors that could judge (`coverage`)."""
    if not alerts:
        return {"verdict": "no alerts", "why": "No armed detector raised an alert."}
    worst = max(alerts, key=lambda alert: (Severity(alert.severity).rank, alert.resolved_step is None))
    lasting = "still open" if worst.resolved_step is None else f"passed at step {worst.resolved_step}"
    return {"verdict": worst.severity, "why": f"{worst.code} at step {worst.step} ({lasting}): {worst.message}"}


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
