"""The report for a pull request or a chat: verdict, headline metrics, alerts, coverage. Markdown-escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..event import Alert
from ..metrics import HEADLINE
from ..text import clean, number
from ._verdict import best, judge, worst_first

__all__ = ["render_markdown"]

_ALERTS = 10
_CODES = 8
_SPECIAL = re.compile(r"([\\`*_{}\[\]()!|<>~&$])")
# Mentions, references to issues and bare addresses are found after escapes are gone; a comment, or escaped slashes, are
# what keeps them text.
_LIVE = ((re.compile(r"([@#])(?=\w)"), r"\1<!-- -->"), (re.compile(r"://"), r":\\/\\/"), (re.compile(r"(?i)\b(www)\."), r"\1\\."))


def render_markdown(report: Mapping[str, Any], alerts: Sequence[Alert | Mapping[str, Any]] = ()) -> str:
    """A run as a short markdown document.

    Args:
        report: The content of final_report.json.
        alerts: The alerts, or the content of alerts.json.

    Returns:
        Text that ends with a newline. What comes from the log is escaped: it makes no links, mentions, HTML or table
        cells of its own.
    """
    rows = [alert.to_dict() if isinstance(alert, Alert) else alert for alert in alerts]
    verdict = judge(report, rows)
    totals = report.get("totals") or {}
    seconds = totals.get("wall_time")
    lines = [
        f"### {_escape(report.get('run_id'))}: {_escape(verdict.word)}",
        "",
        f"**{_escape(verdict.sentence)}**",
        "",
        f"{_escape(report.get('trainer') or 'unknown')} trainer, {_escape(report.get('status'))}, "
        f"{number(totals.get('steps', 0))} steps" + (f" in {seconds:.1f} s" if isinstance(seconds, (int, float)) else "")
        + (f". {_escape(report['reason'])}" if report.get("reason") else ""),
    ]
    lines += _metrics(report.get("metrics") or {}, report.get("trainer"))
    if rows:
        lines += ["", "| alert | severity | step | passed | what happened |", "|---|---|---|---|---|"]
        for at in worst_first(rows)[:_ALERTS]:
            row = rows[at]
            passed = row.get("resolved_step")
            cells = (_linked(row), _escape(row.get("severity")), _escape(row.get("step")),
                     "open" if passed is None else _escape(passed), _escape(row.get("message")))
            lines.append(f"| {' | '.join(cells)} |")
        if len(rows) > _ALERTS:
            lines += ["", f"{len(rows) - _ALERTS} more alerts are in the run's alerts.json."]
        lines += ["", *(f"- {_escape(rows[at].get('code'))}: {_escape(rows[at].get('advice'))}" for at in _first_of_each(rows))]
    lines += _coverage(report.get("coverage") or ())
    return "\n".join(lines) + "\n"


def _metrics(metrics: Mapping[str, Mapping[str, Any]], trainer: Any) -> list[str]:
    shown = [name for name in HEADLINE if metrics.get(name, {}).get("count")]
    if not shown:
        # A run of which rldk knows no metric has some of its own.
        shown = [name for name in metrics if metrics[name].get("count")][:_CODES]
    if not shown:
        return []
    lines = ["", "| metric | first | last | best | not finite |", "|---|---:|---:|---:|---:|"]
    for name in shown:
        row = metrics[name]
        top = best(name, row, trainer)
        cells = (number(row.get("first")), number(row.get("last")), "" if top is None else number(top), str(row.get("nonfinite", 0)))
        lines.append(f"| {_escape(name)} | {' | '.join(cells)} |")
    return lines


def _first_of_each(rows: Sequence[Mapping[str, Any]]) -> Iterable[int]:
    seen: dict[str, int] = {}
    for at in worst_first(rows):
        seen.setdefault(str(rows[at].get("code")), at)
    return list(seen.values())[:_CODES]


def _linked(row: Mapping[str, Any]) -> str:
    docs = str(row.get("docs") or "")
    safe = re.fullmatch(r"https://[\w./%#?=-]+", docs)
    return f"[{_escape(row.get('code'))}]({docs})" if safe else _escape(row.get("code"))


def _coverage(coverage: Iterable[Mapping[str, Any]]) -> list[str]:
    by_state: dict[str, list[str]] = {}
    for row in coverage:
        by_state.setdefault(str(row.get("state")), []).append(str(row.get("code")))
    says = {
        "fired": "raised alerts", "quiet": "judged and found nothing", "warming": "saw too little to judge",
        "unseen": "never saw their metric", "failed": "broke and were left out",
    }
    parts = [f"{len(by_state[state])} {words}" for state, words in says.items() if state in by_state]
    if not parts:
        return []
    lines = ["", f"Detectors: {', '.join(parts)}."]
    if by_state.get("unseen"):
        lines += ["", "<details><summary>Detectors that never saw their metric</summary>", "",
                  ", ".join(map(_escape, by_state["unseen"])), "", "</details>"]
    return lines


def _escape(value: Any) -> str:
    """Text that stays text in markdown, on one line."""
    text = _SPECIAL.sub(r"\\\1", clean(str(value)))
    for pattern, replacement in _LIVE:
        text = pattern.sub(replacement, text)
    return text
