"""The verdict on a run, as every command begins to speak of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..report._verdict import Verdict
from ..text import clean
from ._output import say, say_parts

__all__ = ["show_verdict"]

_TONES = {"critical": "bold red", "warning": "bold yellow", "info": "bold cyan", "quiet": "bold green"}


def show_verdict(report: Mapping[str, Any], verdict: Verdict, source: str = "") -> None:
    """Prints the run and its verdict in a sentence, and under it what kind of run it is.

    Args:
        report: The content of final_report.json.
        verdict: What it comes to.
        source: The log.
    """
    steps = report["totals"]["steps"]
    say_parts((f"{clean(str(report['run_id']))}: ", "bold"), (verdict.sentence, _TONES.get(verdict.tone, "bold")))
    status = "" if report["status"] == "unknown" else f", {report['status']}"
    reason = f" ({report['reason']})" if status and report.get("reason") else ""
    place = f", from {source}" if source else ""
    trainer = report.get("trainer") or "unknown"
    say(clean(f"{trainer} trainer, {steps:,} {'step' if steps == 1 else 'steps'}{status}{reason}{place}"), "dim")
