"""The verdict in one sentence, and its reasons. No score: each statement can be looked up in the report.

Silence is not health: what could not be judged is said beside what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..event import Severity
from ..metrics import lookup

__all__ = ["Reason", "Verdict", "best", "judge", "worst_first"]

_RANKS = {severity.value: severity.rank for severity in Severity}
_REASONS = 3


class Reason(NamedTuple):
    """Why, in a sentence; `place` is the part of the page that says more."""

    text: str
    place: str


class Verdict(NamedTuple):
    """What the run comes to.

    Attributes:
        tone: `critical`, `warning`, `info`, `quiet` (judged, and nothing found) or `unknown` (nothing could be judged).
        word: The tone for people.
        sentence: One sentence.
        reasons: What it rests on, and what it does not cover.
    """

    tone: str
    word: str
    sentence: str
    reasons: tuple[Reason, ...]


def worst_first(alerts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the alerts: by severity, then those still open, then by step."""
    return sorted(range(len(alerts)), key=lambda at: _badness(alerts[at]))


def _badness(alert: Mapping[str, Any]) -> tuple[int, bool, int]:
    return -_RANKS.get(str(alert.get("severity")), 0), alert.get("resolved_step") is not None, _whole(alert.get("step"))


# Their loss is centred at zero, or a bound that says nothing of how well the policy does: no value of it is the best.
_NO_BEST_LOSS = frozenset({"grpo", "rloo", "ppo", "online_dpo"})


def best(name: str, row: Mapping[str, Any], trainer: Any) -> float | None:
    """The best value of a metric, from its statistics; None where no direction is known to be good."""
    if len(name) > 200 or (name.removeprefix("eval_") == "loss" and trainer in _NO_BEST_LOSS):
        return None
    metric = lookup(name)
    side = {"low": "max", "high": "min"}.get(metric.bad) if metric is not None else None
    return row.get(side) if side is not None else None


def judge(report: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on a run, from the content of final_report.json and of alerts.json."""
    coverage = list(report.get("coverage") or ())
    codes = {state: [str(row.get("code")) for row in coverage if row.get("state") == state] for state in _GAPS}
    judged = sum(row.get("state") in ("fired", "quiet") for row in coverage)
    status, reason = str(report.get("status")), report.get("reason")
    failed = status == "failed"
    totals = report.get("totals") or {}
    counts = report.get("alerts") or {}
    total = max(len(alerts), _whole(counts.get("total")))
    ended = _ending(status, reason, _whole(totals.get("steps")))
    if not totals.get("events"):
        tone, sentence = "critical" if failed else "unknown", "Nothing was recorded, so there is nothing to judge."
    elif total:
        tone, sentence = _of_alerts(alerts, total, counts)
        tone = "critical" if failed else tone
    elif not judged:
        tone = "critical" if failed else "unknown"
        sentence = "No detector could judge this run, so its silence says nothing."
    else:
        tone = "critical" if failed else "quiet"
        sentence = f"{judged} of {_many(len(coverage), 'detector')} could judge this run, and found nothing."
    if failed:
        sentence = f"The run failed. {sentence if total or tone == 'unknown' or not judged else 'No alerts: ' + sentence}"
    reasons = [Reason(ended, "run")]
    for at in worst_first(alerts)[:_REASONS]:
        alert = alerts[at]
        reasons.append(Reason(f"{alert.get('name')}, {_when(alert)}. {alert.get('message')}", f"alert-{at + 1}"))
    if total > _REASONS and alerts:
        reasons.append(Reason(f"{total - _REASONS} more under Alerts.", "alerts"))
    for state, says in _GAPS.items():
        if codes[state]:
            reasons.append(Reason(says.format(_many(len(codes[state]), "detector")), "coverage"))
    reasons += _losses(report)
    return Verdict(tone, _WORDS[tone] if not failed else "Failed", sentence, tuple(reasons))


_WORDS = {"critical": "Critical", "warning": "Warning", "info": "Note", "quiet": "No alerts", "unknown": "No verdict"}
_GAPS = {
    "unseen": "{} never saw the metric they watch: their silence says nothing.",
    "warming": "{} saw too little to judge.",
    "failed": "{} broke and were left out.",
}


def _of_alerts(alerts: Sequence[Mapping[str, Any]], total: int, counts: Mapping[str, Any]) -> tuple[str, str]:
    by_severity = counts.get("by_severity") or {}
    worst = next((name for name in ("critical", "warning", "info") if by_severity.get(name)), None)
    if alerts:
        worst = str(alerts[worst_first(alerts)[0]].get("severity"))
    worst = worst if worst in _RANKS else "warning"
    number = sum(alert.get("severity") == worst for alert in alerts) or _whole(by_severity.get(worst)) or total
    noun = {"critical": "critical alert", "warning": "warning", "info": "note"}[worst]
    still = _whole(counts.get("open")) if "open" in counts else sum(alert.get("resolved_step") is None for alert in alerts)
    kind = _many(number, noun)
    rest = "" if number == total else f", {_many(total, 'alert')} in all"
    every = "both" if total == 2 else "all"
    lasting = "none of them open at the end" if not still else f"{every if still == total else still} still open at the end"
    if total == 1:
        lasting = "still open at the end" if still else "which had passed before the end"
    return worst, f"{kind[0].upper()}{kind[1:]}{rest}, {lasting}."


def _ending(status: str, reason: Any, steps: int) -> str:
    words = {
        "completed": "Completed,", "stopped": "Stopped after", "failed": "Failed after", "running": "Still running, so far",
        "unknown": "How it ended is not known. Recorded are",
    }
    why = f": {reason}" if reason and status != "unknown" else ""
    return f"{words.get(status, f'{status},')} {_many(steps, 'step')}{why}."


def _when(alert: Mapping[str, Any]) -> str:
    resolved = alert.get("resolved_step")
    lasting = "still open" if resolved is None else f"passed at step {resolved}"
    return f"{alert.get('severity')} at step {alert.get('step')}, {lasting}"


def _losses(report: Mapping[str, Any]) -> list[Reason]:
    """What is wrong with the record itself."""
    found = []
    lost = _whole((report.get("lost") or {}).get("events"))
    if lost:
        found.append(Reason(f"{_many(lost, 'event')} could not be written and are missing from the stream.", "run"))
    if report.get("skipped_values"):
        found.append(Reason(f"{_many(len(report['skipped_values']), 'logged name')} held values that are no numbers.", "run"))
    if report.get("rldk_failures"):
        found.append(Reason(f"rldk itself failed in {_many(len(report['rldk_failures']), 'place')}.", "run"))
    return found


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _whole(value: Any) -> int:
    return value if type(value) is int else 0
