"""`rldk compare`: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..compare import compare as compare_runs
from ..metrics import canonical_name, headline
from ..text import number
from ._options import Json
from ._output import emit_json, fail, say, say_indented, table

__all__ = ["compare"]

_METRICS_SHOWN = 12
_DIFFERING_SHOWN = 8
_LONGEST_CELL = 60


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two runs or more: folders, logs, trainer_state.json.", show_default=False)],
    to: Annotated[
        str | None, typer.Option("--to", metavar="METRIC=LEVEL", help="When does each run reach this? reward_mean=0.8, say.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Relative difference up to which two values count as equal.")
    ] = 0.0,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="NAME", help="Leave this metric out of the search for a divergence.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="NAME", help="Show this metric. May be repeated.")] = None,
    fail_on_divergence: Annotated[
        bool, typer.Option("--fail-on-divergence", help="Exit with 1 if a run parts from the first one.")
    ] = False,
    json: Json = False,
) -> None:
    """Hold runs against each other.

    Shows where each ends, its best, its mean over the steps that all have, when it reached a level, its alerts, the arguments
    and versions that differ, and the first step at which it parts from the first run: that looks at every logged metric but
    times, speeds and resources, and at the checksums of the random state.

    A metric whose unit differs between the runs is not compared. A folder of several runs stands for all of them, and
    so does a tracker's store.

    Examples:
      rldk compare runs/a runs/b
      rldk compare runs/a runs/b --to reward_mean=0.8
      rldk compare rldk_logs --metric loss --metric kl_mean
      rldk compare first again --fail-on-divergence     is this run repeatable?
    """
    found = compare_runs(runs, to=_level(to), tolerance=tolerance, ignore=ignore or ())
    if json:
        emit_json(found)
    else:
        _show(found, [canonical_name(name) for name in metric or ()])
    if fail_on_divergence and any(pair["step"] is not None for pair in found["divergence"]):
        raise typer.Exit(1)


def _level(given: str | None) -> dict[str, float] | None:
    if given is None:
        return None
    name, _, level = given.partition("=")
    try:
        return {name.strip(): float(level)}
    except ValueError:
        fail(f"--to takes metric=level, such as reward_mean=0.8; got {given!r}")


def _show(found: dict[str, Any], chosen: Sequence[str]) -> None:
    runs = found["runs"]
    labels = [run["label"] for run in runs]
    for run in runs:
        took = f" in {_clock(run['seconds'])}" if run["seconds"] is not None else ""
        seed = f", seed {run['seed']}" if run["seed"] is not None else ""
        status = "" if run["status"] == "unknown" else f"{run['status']}, "
        facts = f"{run['trainer'] or 'unknown'} trainer, {status}{run['steps']:,} steps{took}{seed}"
        say_indented(f"{run['name']}: {facts}", 4, first=f"{run['label']}")
    _show_divergence(found)
    _show_differences(found["arguments"]["what"], "Arguments that differ", labels)
    _show_differences(found["arguments"]["where"], "Where they stand", labels)
    _show_differences(found["versions"], "Versions that differ", labels)
    _show_metrics(found["metrics"], chosen, labels)
    _show_time(found["time_to"], runs)
    _show_alerts(found["alerts"], labels)
    if found["not_compared"]:
        say("\nNot compared, since their units differ", "bold")
        for name, units in found["not_compared"].items():
            say_indented(f"{name}: {', '.join(_said(units, labels))}", 2)
    if found["measured_otherwise"]:
        say("\nOf one unit, but measured differently", "bold")
        for name, units in found["measured_otherwise"].items():
            say_indented(f"{name}: {', '.join(_said(units, labels))}", 2)
    if found["notes"]:
        say("\nTo know", "bold")
        for note in found["notes"]:
            say_indented(note, 2)


def _said(units: Sequence[str | None], labels: Sequence[str]) -> list[str]:
    return [f"{label} in {unit or 'a unit of its own'}" for label, unit in zip(labels, units)]


def _show_divergence(found: dict[str, Any]) -> None:
    say()
    for pair in found["divergence"]:
        ours, theirs = pair["between"]
        should = {True: "the same arguments and seed", False: "different arguments", None: "arguments that are not known of both"}
        of_what = f"{_many(pair['steps_compared'], 'step')} and {_many(pair['checksums_compared'], 'random state')}"
        if pair["step"] is not None:
            say(f"{ours} and {theirs} part at step {pair['step']:,}", "bold yellow" if pair["same_arguments"] else "bold")
            before = f", equal up to step {pair['last_equal_step']:,}" if pair["last_equal_step"] is not None else ", from the first on"
            say_indented(f"They have {should[pair['same_arguments']]}{before}.", 2)
            names = list(pair["metrics"])
            for name in names[:_DIFFERING_SHOWN]:
                say_indented(f"{_exact(pair['metrics'][name][0])} against {_exact(pair['metrics'][name][1])}", 24, first=f"  {_short(name, 20)}")
            if len(names) > _DIFFERING_SHOWN:
                say_indented(f"and {len(names) - _DIFFERING_SHOWN} more metrics", 2)
            if pair["random_state"]:
                say_indented(f"{pair['random_state'][0]} against {pair['random_state'][1]}", 24, first="  random state")
        elif not pair["steps_compared"] and not pair["checksums_compared"]:
            say(f"{ours} and {theirs} have no step in common that could be compared", "bold")
        else:
            say(f"{ours} and {theirs} do not part: {of_what} compared, all equal", "bold green")
            say_indented(f"They have {should[pair['same_arguments']]}.", 2)
        if pair["other_spans"]:
            say_indented(
                f"At {_many(pair['other_spans'], 'step')} their logs are means over different numbers of steps (logging_steps): "
                "there only evaluations, the learning rate and the random state are held against each other.", 2,
            )
        if pair["ends"][0] != pair["ends"][1]:
            say_indented(f"{ours} ends at step {pair['ends'][0]:,}, {theirs} at step {pair['ends'][1]:,}.", 2)
        for label, names in pair["only_in"].items():
            if names:
                rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
                say_indented(f"Only {label} logs {', '.join(names[:6])}{rest}.", 2)


def _show_differences(differing: dict[str, list[Any]], title: str, labels: Sequence[str]) -> None:
    if differing:
        say(f"\n{title}", "bold")
        table(["", *labels], [[name, *(_short(_plain(value), _LONGEST_CELL) for value in values)] for name, values in differing.items()])


def _show_metrics(metrics: dict[str, Any], chosen: Sequence[str], labels: Sequence[str]) -> None:
    names = [name for name in chosen if name in metrics] or [name for name in headline(metrics) if name in metrics][:_METRICS_SHOWN]
    if not names:
        return
    say("\nMetrics", "bold")
    rows: list[list[str]] = []
    for name in names:
        row = metrics[name]
        rows.append([_short(name, 24), "end", *map(_cell, row["end"])])
        if any(value is not None for value in row["best"]):
            rows.append(["", "best (step)", *(
                f"{number(value)} ({step})" if value is not None else "-" for value, step in zip(row["best"], row["best_step"])
            )])
        if any(value is not None for value in row["mean"]):
            rows.append(["", f"mean of {_many(row['common_steps'], 'step')}", *map(_cell, row["mean"])])
        if any(row["nonfinite"]):
            rows.append(["", "not finite", *map(str, row["nonfinite"])])
    table(["", "", *labels], rows, right=range(2, 2 + len(labels)), styles=lambda row: "bold")
    more = len(headline(metrics)) - len(names)
    say(f"A mean is over the steps that all runs which log it have.{f' {more} more with --json or --metric.' if more > 0 else ''}", "dim")


def _show_time(time_to: dict[str, Any] | None, runs: Sequence[dict[str, Any]]) -> None:
    if time_to is None:
        return
    how = "" if time_to["how"] == "given" else f" ({time_to['how']})"
    say(f"\n{time_to['metric']} {time_to['reached_by']} {number(time_to['level'])}{how}", "bold")
    if not time_to["comparable"]:
        say_indented("not compared, since its unit differs between the runs", 2)
        return
    for run, reached in zip(runs, time_to["runs"]):
        if reached is None:
            text = "not reached"
        else:
            seconds = f", after {_clock(reached['seconds'])}" if reached["seconds"] is not None else ""
            text = f"step {reached['step']:,}{seconds}"
        say_indented(text, 6, first=f"  {run['label']}")


def _show_alerts(alerts: dict[str, list[Any]], labels: Sequence[str]) -> None:
    say("\nAlerts", "bold")
    if not alerts:
        say_indented("none", 2)
        return
    rows = [[code, *map(_alert, items)] for code, items in alerts.items()]
    table(["", *labels], rows)


def _alert(item: dict[str, Any] | None) -> str:
    if item is None:
        return "-"
    times = "" if item["count"] == 1 else f"{item['count']} times, first "
    lasting = f", {item['open']} open" if item["open"] else ", passed"
    return f"{item['severity']}, {times}step {item['first_step']}{lasting}"


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def _exact(value: Any) -> str:
    return "none" if value is None else repr(value)


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
