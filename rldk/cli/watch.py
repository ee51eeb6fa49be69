"""`rldk watch`: a run as it goes, in the terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ..ingest import looked_for
from ..live import WatchedRun
from ..live_view import View
from ..remote import is_url
from ._frame import Glyphs, frame, glyphs_for
from ._options import FailOn, Json, Level, Threshold, exit_code, read_thresholds
from ._output import console, emit_json, fail
from ._terminal import Terminal

__all__ = ["watch"]

_SLICE_S = 0.05
_LONGEST_WAIT_S = 3600.0


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder, or its log.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    json: Json = False,
    interval: Annotated[float, typer.Option("--interval", min=0.25, max=3600, help="Seconds between two frames.")] = 0.5,
    stay: Annotated[bool, typer.Option("--stay", help="Stay when the run has ended, until q.")] = False,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Show this metric. May be repeated.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="The run, if there are several; else the newest.")] = None,
    threshold: Threshold = None,
    fail_on: FailOn = Level.NEVER,
) -> None:
    """Watch a run live in the terminal.

    Shows how far the run is, the course of the metrics that matter for its trainer, its alerts as they come, and what it uses.
    It ends by itself with the run; q or Ctrl-C ends it before. The run notices nothing of it: its files are read, and
    nothing else. The log need not be there yet.

    Where stdout is no terminal, and with --once, one frame is printed. --json prints what the frame shows as JSON.

    Of the runs in a tracker's store, such as a database of trackio, it shows the one that was written to last.

    The alerts are the run's own. Where its alerts.json is not there, as beside a plain log, its events are judged by the
    same engine, and --threshold applies.

    Examples:
      rldk watch rldk_logs
      rldk watch rldk_logs/my_run_events.jsonl --stay
      rldk watch train_log.jsonl --metric loss --metric my_metric
      rldk watch ~/.cache/huggingface/trackio/my_project.db
      rldk watch rldk_logs --once --fail-on critical
    """
    if is_url(run):
        fail(f"rldk watch reads files of this machine; rldk replay and rldk report read {run}")
    watched = WatchedRun(run, run_id=run_id, thresholds=read_thresholds(threshold), chosen=metric or ())
    screen = console()
    try:
        if once or json or not screen.is_terminal or screen.is_dumb_terminal:
            _read_all(watched)
            view = watched.view()
            if json:
                emit_json(view.to_dict())
            else:
                width = screen.width if screen.is_terminal or os.environ.get("COLUMNS") else 100
                _print(frame(view, min(width, 1000), None, glyphs_for(screen.encoding)))
        else:
            view = _live(watched, interval, stay)
    finally:
        watched.close()
    if fail_on is not Level.NEVER and exit_code([alert.to_dict() for alert in view.alerts], fail_on):
        raise typer.Exit(1)


def _read_all(watched: WatchedRun) -> None:
    while not watched.poll(1.0):
        pass
    if watched.path is None:
        fail(f"no log in {watched.source}: looked for {looked_for()}" if watched.source.is_dir()
             else f"no such file or folder: {str(watched.source)!r} (looked in {Path.cwd()})")
    if not watched.view().events:
        fail(f"no event in {watched.path}")


def _live(watched: WatchedRun, interval: float, stay: bool) -> View:
    """Draws until the run or the user says that it is over; then leaves the last frame on the screen."""
    screen = console()
    glyphs = glyphs_for(screen.encoding)
    with Terminal(screen).open() as terminal:
        while not terminal.quit:
            started = time.monotonic()
            done = watched.poll(min(_SLICE_S, interval))
            terminal.draw(_drawn(watched.view(), screen.width, screen.height, glyphs))
            if done and watched.ended and not stay:
                break
            # Reading goes on between two frames, in slices that leave a key no time to be missed.
            left = max(0.01, interval - (time.monotonic() - started))
            terminal.wait(left, None if done else lambda: not watched.poll(_SLICE_S))
    view = watched.view()
    try:
        _print(frame(view, screen.width, None, glyphs))
    except OSError:
        # The window was closed. What Python still has to say as it ends must not become the exit code.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    return view


def _drawn(view: View, width: int, height: int, glyphs: Glyphs) -> list:  # type: ignore[type-arg]  # of rich's Text
    return frame(view, width, height, glyphs, keys="q quits")


def _print(lines: list) -> None:  # type: ignore[type-arg]  # of rich's Text
    """The frame as it stays on the screen, or in a pipe."""
    screen = console()
    for line in lines:
        screen.print(line, no_wrap=True, overflow="ignore", crop=False)
