"""The report: a pure function of what flowed.

No score: the verdict is the worst severity among the alerts, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..event import Alert, Severity
from ..summary import Summary

__all__ = ["STATUSES", "build_report"]

STATUSES = ("running", "completed", "stopped", "failed", "unknown")
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
