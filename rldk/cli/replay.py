"""`rldk replay`: what is wrong with a run, from any of its logs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..adapters import Damage
from ..event import Severity
from ..remote import shown
from ..replay import Replayed
from ..replay import replay as replayed
from ..report._verdict import Verdict, judge, worst_first
from ..text import clean
from ._options import (
    FailOn,
    FieldMap,
    Hint,
    Json,
    Level,
    Sources,
    Threshold,
    exit_code,
    read_field_map,
    read_thresholds,
    warn_of_unknown_metrics,
)
from ._output import SEVERITY_STYLES, console, emit_json, progress, say, say_indented, say_parts, warn
from ._verdict import show_verdict

__all__ = ["replay"]

_STATES = {
    "fired": "raised alerts",
    "quiet": "judged, and found nothing",
    "warming": "saw too little to judge",
    "unseen": "never saw their metric",
    "failed": "broke, and were left out",
}
_ALERTS = 20
_MARGIN = 12


def replay(
    sources: Sources,
    json: Json = False,
    threshold: Threshold = None,
    fail_on: FailOn = Level.CRITICAL,
    hint: Hint = None,
    field_map: FieldMap = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name the detectors behind each number.")] = False,
) -> None:
    """Judge recorded runs: what is wrong, since when, and what to do about it.

    Runs all detectors over rldk's events, older rldk streams, flat TRL logs, transformers' trainer_state.json, or what
    trackio, wandb, TensorBoard and MLflow keep of a run. The verdict is the one that RLDKCallback gave, or would have given.
    Nothing is written.

    A run that rldk recorded is judged by the thresholds that it had, unless --threshold gives that detector another one.

    Examples:
      rldk replay out/checkpoint-500/trainer_state.json
      rldk replay rldk_logs
      rldk replay ~/.cache/huggingface/trackio/my_project.db
      rldk replay wandb
      rldk replay rldk_logs --threshold kl_divergence=5 --threshold stall.floor=1800
      rldk replay 'runs/*/trainer_state.json' --json > verdicts.json
      rldk replay rldk_logs --fail-on warning || echo "look at it"
    """
    shown: list[dict[str, Any]] = []
    parts: list[tuple[dict[str, Any], Verdict]] = []
    damaged: dict[Damage, None] = {}
    with progress("judging") as advance:
        for run in replayed(
            sources, alert_thresholds=read_thresholds(threshold), adapter_hint=hint, field_map=read_field_map(field_map),
            progress=lambda _, done, total: advance(done, total), passed_over=lambda error: warn(f"skipped: {error}"),
        ):
            report = run.report()
            verdict = judge(report, run.alerts)
            parts.append((report, verdict))
            shown.append(_as_json(run, report, verdict))
            damaged[run.damage] = None
            warn_of_unknown_metrics(run.name, run.metrics)
    for damage in damaged:
        if damage.count:
            warn(f"skipped lines: {damage}")
    if json:
        emit_json({"verdict": _worst(shown), "runs": shown})
    else:
        for index, row in enumerate(shown):
            if index:
                say()
            _show(row, *parts[index], verbose)
        if len(shown) > 1:
            say(f"\n{len(shown)} runs; the worst verdict is: {_worst(shown)}.", "bold")
    raise typer.Exit(exit_code((alert for row in shown for alert in row["alerts"]), fail_on))


def _as_json(run: Replayed, report: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    alerts = run.alerts
    return {
        "run_id": run.name, "source": shown(run.path), "format": run.format, "trainer": run.trainer,
        "status": report["status"], "steps": report["totals"]["steps"], "events": report["totals"]["events"],
        "verdict": report["health"]["verdict"], "sentence": verdict.sentence, "tone": verdict.tone,
        "thresholds": run.thresholds or {}, "alerts": alerts,
        "alerts_dropped": report["alerts"]["total"] - len(alerts), "coverage": report["coverage"],
        "skipped_lines": run.damage.count,
    }


def _worst(runs: list[dict[str, Any]]) -> str:
    ranks = ("no alerts", *(severity.value for severity in Severity))
    return max((str(run["verdict"]) for run in runs), key=ranks.index)


def _show(run: dict[str, Any], report: dict[str, Any], verdict: Verdict, verbose: bool) -> None:
    show_verdict(report, verdict, run["source"])
    if run["thresholds"]:
        given = ", ".join(f"{name}={value}" for name, value in run["thresholds"].items())
        say(f"judged by thresholds of yours: {clean(given)}", "dim")
    order = worst_first(run["alerts"])
    for at in order[:_ALERTS]:
        say()
        _show_alert(run["alerts"][at])
    more = len(order) - _ALERTS + run["alerts_dropped"]
    if more > 0:
        say(f"\n... and {more} more alerts; --json has them.")
    say()
    _show_coverage(run["coverage"], verbose)


def _show_alert(alert: dict[str, Any]) -> None:
    step, passed = alert["step"], alert["resolved_step"]
    when = f"step {step:,}, still open" if passed is None else f"steps {step:,} to {passed:,}"
    say_parts((f"  {alert['severity']:<8}  ", SEVERITY_STYLES[alert["severity"]]), (alert["code"], "bold"), (f"  {when}", ""))
    say_indented(alert["message"], _MARGIN)
    say_indented(alert["advice"], _MARGIN, first="  try", first_style="dim")
    if console().width >= _MARGIN + len(alert["docs"]):
        say_indented(alert["docs"], _MARGIN, first="  more", first_style="dim", style="dim")
    else:
        say(alert["docs"], "dim")  # broken in two, an address could not be clicked on


def _show_coverage(coverage: list[dict[str, Any]], verbose: bool) -> None:
    by_state = {state: [row for row in coverage if row["state"] == state] for state in _STATES}
    if not verbose:
        parts = [f"{len(rows)} {_STATES[state]}" for state, rows in by_state.items() if rows]
        say(f"Of {len(coverage)} detectors, {'; '.join(parts)}.", "dim")
        return
    for state, rows in by_state.items():
        if rows:
            say(f"{len(rows)} {_STATES[state]}:", "bold")
            say_indented(", ".join(row["code"] for row in rows), 2)
