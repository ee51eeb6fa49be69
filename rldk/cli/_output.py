"""All that the command line prints, and the only module that prints.

Results go to stdout; warnings, errors and progress to stderr, so that a pipe gets results alone. Nothing that is printed
as text is read as markup, and control characters are escaped on the way (`rldk.text.clean`): names and values come
from logs, and a log may come from anywhere.

Colours, and all other escapes, appear only on a terminal, and not where NO_COLOR is set or TERM is `dumb`. On a terminal
lines are wrapped at its width; in a pipe or a file they are as long as they are, unless COLUMNS says how wide.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import typer

from .._files import json_bytes
from ..text import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "SEVERITY_STYLES", "console", "emit_bytes", "emit_json", "fail", "prepare", "progress", "safe", "say", "say_indented", "say_parts",
    "stdout_bytes", "table", "warn", "warnings_as_lines",
]

SEVERITY_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan", "no alerts": "green"}
_UNWRAPPED = 100_000
_BAD_USE = 2
_MOMENT_S = 0.5


def prepare() -> None:
    """Lets characters that the terminal's encoding does not have appear as escapes, and not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def console(*, stderr: bool = False) -> Console:
    """A console of rich's for what `say` and `table` cannot do. Pass it `safe(text)` for all that comes from a log."""
    from rich.console import Console  # here, since `rldk --help` does without

    stream = sys.stderr if stderr else sys.stdout
    wide = stream.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(
        file=stream, highlight=False, emoji=False, width=None if wide else _UNWRAPPED,
        # With rich's own no_color bold and dim would still be escapes.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def safe(text: object) -> str:
    """A foreign string for rich's markup: control characters and square brackets escaped."""
    from rich.markup import escape  # see console

    return escape(clean(str(text)))


def say(text: str = "", style: str = "") -> None:
    """Prints text to stdout, wrapped at the terminal's width.

    Args:
        text: Plain text, of one or more lines.
        style: Of rich's, for all of it: "bold", "dim", "red".
    """
    _print(text, style, stderr=False)


def say_parts(*parts: tuple[str, str]) -> None:
    """Prints one line of several pieces, each with its style."""
    from rich.text import Text  # see console

    _show(Text.assemble(*((clean(text), style) for text, style in parts)))


def say_indented(text: str, indent: int, *, first: str = "", style: str = "", first_style: str = "") -> None:
    """Prints a paragraph whose lines begin at a column.

    Args:
        text: Plain text.
        indent: The column.
        first: What stands before the column on the first line.
        style: Of the text.
        first_style: Of what stands before it.
    """
    from rich.table import Table  # see console
    from rich.text import Text

    grid = Table.grid(padding=0)
    grid.add_column(width=indent, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(clean(first), style=first_style), Text(clean(text), style=style))
    _show(grid)


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = (),
    styles: Callable[[Sequence[object]], str] | None = None, indent: int = 0,
) -> None:
    """Prints columns to stdout: a heading, and under it the rows. Cells that do not fit are wrapped.

    Args:
        header: The headings; none for none.
        rows: The cells.
        right: Columns that are aligned to the right.
        styles: Gives the style of a row's first cell.
        indent: The column at which the table begins.
    """
    from rich.padding import Padding  # see console
    from rich.table import Table
    from rich.text import Text

    cells = [
        [Text(clean(str(cell)), style="" if index or styles is None else styles(row)) for index, cell in enumerate(row)]
        for row in rows
    ]
    grid = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False, show_header=bool(header)
    )
    for index in range(len(header) or max(map(len, cells), default=0)):
        title = Text(clean(header[index])) if header else Text()
        grid.add_column(title, justify="right" if index in set(right) else "left", overflow="fold")
    for line in cells:
        grid.add_row(*line)
    _show(Padding(grid, (0, 0, 0, indent), expand=False))


def _show(what: RenderableType) -> None:
    """Prints one of rich's objects to stdout, without the blanks that it pads lines with."""
    here = console()
    with here.capture() as captured:
        here.print(what)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def warn(text: str) -> None:
    """Prints a warning to stderr; the command goes on."""
    _print(text, "", stderr=True, label="Warning: ", label_style="yellow")


def fail(message: str) -> NoReturn:
    """Ends the command with an error on stderr and exit code 2: bad use or input."""
    _print(message, "", stderr=True, label="Error: ", label_style="bold red")
    raise typer.Exit(_BAD_USE)


def _print(text: str, style: str, *, stderr: bool, label: str = "", label_style: str = "") -> None:
    cleaned = "\n".join(clean(line) for line in text.split("\n"))
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty():  # the same without rich, whose import takes longer than most commands
        stream.write(f"{label}{cleaned}\n")
        return
    from rich.text import Text  # see console

    console(stderr=stderr).print(Text.assemble((label, label_style), (cleaned, style)), soft_wrap=False)


def emit_json(value: Any) -> None:
    """Prints a value as JSON to stdout, and nothing else. NaN and Inf, which JSON lacks, become null.

    What a terminal would obey or hide is escaped as JSON does it: such characters stand only inside of strings.
    """
    text = json_bytes(value).decode()
    if not text.isascii():
        text = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    emit_bytes(text.encode())


def emit_bytes(content: bytes) -> None:
    """Prints a document as it is to stdout."""
    stdout_bytes().write(content)


def stdout_bytes() -> BinaryIO:
    """Stdout for what is written as bytes."""
    sys.stdout.flush()
    return sys.stdout.buffer


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Shows Python's warnings and rldk's log records as warnings of the command's."""
    logger = logging.getLogger("rldk")
    handler = _Lines(logging.WARNING)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            # Deprecations inside of libraries are nothing that a user of the command could act on.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", message="rldk:")
            warnings.showwarning = lambda message, *_: warn(str(message).removeprefix("rldk: "))
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Lines(logging.Handler):
    """Log records as one line each; a traceback only where RLDK_DEBUG asks for it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.module == "console":  # the alerts of a run that is rebuilt: the command has its own way to say them
            return
        warn(record.getMessage().removeprefix("rldk: "))
        if record.exc_info and os.environ.get("RLDK_DEBUG"):
            sys.stderr.write(logging.Formatter().formatException(record.exc_info) + "\n")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, if that is a terminal, while something takes more than a moment.

    Args:
        what: What is being done.

    Yields:
        A function to call with how much is done, and how much there is, if known.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR"):
        yield lambda done, total: None  # a bar is made of escapes
        return
    bar = _Bar(what)
    try:
        yield bar.show
    finally:
        bar.end()


class _Bar:
    """A bar that appears after a moment, and leaves nothing behind."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._due = time.monotonic() + _MOMENT_S
        self._bar: Any = None

    def show(self, done: int, total: int | None) -> None:
        if self._bar is None:
            if time.monotonic() < self._due:
                return
            self._start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _start(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            SpinnerColumn("line"), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console(stderr=True), transient=True)
        self._bar.add_task(clean(self._what), total=None)
        self._bar.start()

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
