"""`rldk report`: all that can be said of one run, as files or as a document."""

from __future__ import annotations

import os
import sys
import webbrowser
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .._files import json_bytes, read_alerts, read_object, replace_bytes
from ..adapters.rldk_stream import RldkStream
from ..detectors import merged_thresholds
from ..rebuild import folder_here, lacking, rebuild_log, recorded_thresholds, status_of
from ..remote import is_fetched
from ..replay import Replayed, replay_run
from ..report import Curves, render_html, render_markdown, render_text
from ..report._verdict import judge, worst_first
from ..runfiles import RunFiles
from ..runs import FoundRun, one_run
from ._options import (
    FailOn,
    FieldMap,
    Hint,
    Json,
    Level,
    Threshold,
    exit_code,
    read_field_map,
    read_thresholds,
    warn_of_unknown_metrics,
)
from ._output import SEVERITY_STYLES, emit_bytes, emit_json, fail, progress, say, table, warn
from ._verdict import show_verdict

__all__ = ["report"]

_ALERTS = 10
_REPORTED = {"run_id", "status", "health", "totals", "coverage", "metrics", "alerts"}


class Format(str, Enum):
    """A rendering."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"
    TEXT = "text"


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its event stream, or any log.", show_default=False)],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-d", metavar="DIR", help="Where the files go. By default where the run's are.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    format: Annotated[Format | None, typer.Option("--format", "-f", help="One document instead of the files, to stdout.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="With --format: into this file instead.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", "--run-id", metavar="ID", help="Which run, if there are several.")] = None,
    threshold: Threshold = None,
    fail_on: FailOn = Level.NEVER,
    hint: Hint = None,
    field_map: FieldMap = None,
    json: Json = False,
) -> None:
    """Write a run's report: a page to look at, alerts, statistics, CSV.

    Makes every file of a run anew from its events, as after a kill, or for the first time from a trainer_state.json or
    any other log. The files of such a log go into a folder named after the run, beside it; those of a log elsewhere
    (hf://datasets/user/name/run) into one in the current folder, with a copy of the log. What rldk did not write is
    never replaced, and the files of a run that is still being recorded are not touched, nor those of one whose stream
    holds less than they do (jsonl_log_interval above 1).

    Examples:
      rldk report rldk_logs --open
      rldk report rldk_logs --run my-run --output-dir reports
      rldk report out/checkpoint-500/trainer_state.json
      rldk report ~/.cache/huggingface/trackio/my_project.db --run baseline
      rldk report hf://datasets/user/name/my-run --open
      rldk report rldk_logs --format md > comment.md
      rldk report rldk_logs --json            the files, and what final_report.json has to stdout
    """
    if output is not None and format is None:
        fail("-o goes with --format; the folder for all files is --output-dir")
    if format is not None and (output_dir is not None or open_page):
        fail("--format makes one document: it goes with -o, and neither with --output-dir nor with --open")
    if json and format is not None:
        fail("--json goes without --format; --format json makes no files")
    given = read_thresholds(threshold)
    chosen = one_run(run, run_id, hint, read_field_map(field_map))
    if output_dir is None and is_fetched(chosen.log.path):
        output_dir = folder_here(chosen.name, chosen.log.path)
    manifest: dict[str, Any] = {}
    there: dict[str, Any] = {}
    running = False
    if isinstance(chosen.log, RldkStream):
        files = RunFiles.of(chosen.log.path.parent, chosen.name)
        manifest, there = read_object(files.manifest), read_object(files.report)
        running = status_of(there, manifest, chosen.log.path)[0] == "running"
    if running:
        warn(f"run {chosen.name} is still being recorded, by process {manifest.get('pid')}: this is what there is so far")
    if format is not None or (running and output_dir is None):
        alerts = _document(chosen, given, format or (Format.JSON if json else Format.TEXT), output)
        if format is None and not json:
            say("\nIts files were not touched. To write a report of it: --output-dir DIR", "dim")
            if open_page:
                warn("there is no page to open: --output-dir DIR makes one")
    elif output_dir is None and given is None and lacking(manifest, there) and there.keys() >= _REPORTED:
        # The run's own files know more than its stream, and are what is asked for.
        warn(
            f"the files of run {chosen.name} hold every log, and its stream {lacking(manifest, there)}: they were kept as "
            "they are. --output-dir DIR makes others from the stream"
        )
        alerts = _written({**there, "files": {name: str(path) for name, path in files._asdict().items()}}, open_page, json)
    else:
        thresholds = merged_thresholds(recorded_thresholds(manifest), given)
        with progress("reading") as advance:
            content = rebuild_log(
                chosen.log, chosen.survey, chosen.run_id, output_dir=output_dir, alert_thresholds=thresholds, progress=advance
            )
        alerts = _written(content, open_page, json)
    if chosen.log.damage.count:
        warn(f"skipped lines: {chosen.log.damage}")
    raise typer.Exit(exit_code(alerts, fail_on))


def _document(chosen: FoundRun, thresholds: dict[str, Any] | None, format: Format, output: Path | None) -> list[dict[str, Any]]:
    """Writes one rendering; returns the alerts."""
    judged = Replayed(chosen.run_id, chosen.log, thresholds)
    curves = Curves() if format is Format.HTML else None
    with progress("reading") as advance:
        for event in replay_run(judged, chosen.survey, advance):
            if curves is not None:
                curves.add(event)
    content, alerts = judged.report(), judged.alerts
    warn_of_unknown_metrics(judged.name, content["metrics"])
    if format is Format.HTML:
        text = render_html(content, judged.manifest, alerts, curves.to_dict() if curves is not None else None)
    elif format is Format.MARKDOWN:
        text = render_markdown(content, alerts)
    elif format is Format.JSON:
        text = json_bytes(content).decode()
    else:
        text = render_text(content) + "\n"
    if output is not None:
        replace_bytes(output, text.encode("utf-8", "replace"))
    elif format is Format.TEXT and sys.stdout.isatty():
        say(text.rstrip("\n"))
    else:
        emit_bytes(text.encode("utf-8", "replace"))
    return alerts


def _written(content: dict[str, Any], open_page: bool, json: bool) -> list[dict[str, Any]]:
    """Says what was found and written; returns the alerts."""
    files = {name: Path(path) for name, path in content["files"].items()}
    alerts = [alert.to_dict() for alert in read_alerts(files["alerts"])]
    warn_of_unknown_metrics(content["run_id"], content["metrics"])
    page = files.get("page")
    if json:
        emit_json(content)
    else:
        _told(content, files, alerts)
    if open_page and page is not None and page.exists() and not webbrowser.open(page.resolve().as_uri()):
        warn(f"no browser could be started; open {page}")
    return alerts


def _told(content: dict[str, Any], files: dict[str, Path], alerts: list[dict[str, Any]]) -> None:
    show_verdict(content, judge(content, alerts))
    if alerts:
        say()
        rows = [[alerts[at][key] for key in ("severity", "code", "step", "message")] for at in worst_first(alerts)[:_ALERTS]]
        table(("severity", "alert", "step", "what happened"), rows, right=[2], styles=lambda row: SEVERITY_STYLES[str(row[0])])
    say()
    about = {
        "page": "to look at", "report": "statistics, health, coverage", "alerts": "every alert, with advice",
        "metrics": "one row a step",
    }
    table((), [[_short(files[name]), text] for name, text in about.items() if name in files and files[name].exists()])


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
