"""The `rldk` command: one command a file, found by discovery, imported when it is called.

A command is a file here whose name has no underscore in front. It defines a function of its own name, with parameters
that typer reads. The docstring of the function is its help: the first line stands in the list of commands, and an indented
block under `Examples:` is shown as it stands.

What all share: exit codes (0 fine, 1 alerts at or above `--fail-on`, 2 bad use or input), errors as one line, and
`_output`, the only module that prints.
"""

from __future__ import annotations

import ast
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..exceptions import RLDKError, UnknownSchemaError
from ..metrics import nearest
from . import _output

__all__ = ["app", "command_names", "main"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SIGNALS = 128  # what a shell adds to the number of the signal that ended a process
_NO_HELP = ("Args:", "Returns:", "Raises:", "Yields:")  # for readers of the source: typer lists the parameters itself


@cache
def command_names() -> tuple[str, ...]:
    """The commands, by their files."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")))


class _Commands(TyperGroup):
    """Imports a command when it is called; the list of all takes their first lines from the source."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in alphabetical order."""
        return list(command_names())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or for a list its name and first line alone."""
        if cmd_name not in command_names():
            return None
        return TyperCommand(cmd_name, help=_first_line(cmd_name)) if self._listing else _command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's, with the nearest name for one that is unknown."""
        if args and not args[0].startswith("-") and args[0] not in command_names() and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}.{nearest(args[0], list(command_names()))}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, for which no command is imported."""
        self._listing = True
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Completions of a command's name, for which none is imported either."""
        self._listing = True
        return super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; what goes wrong is one line and an exit code."""
        try:
            with _output.warnings_as_lines():
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except BrokenPipeError:
            # `rldk replay ... | head`: nobody reads any more. Python must not complain of it when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_SIGNALS + 13) from None
        except KeyboardInterrupt:
            raise typer.Exit(_SIGNALS + 2) from None
        except (RLDKError, OSError, MemoryError) as error:
            if os.environ.get("RLDK_DEBUG"):
                raise
            _output.fail(_said(error))
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # a fault of rldk's own: Python would exit with 1, which means alerts
            if os.environ.get("RLDK_DEBUG") or hasattr(error, "exit_code"):  # the latter: typer's own, of bad usage
                raise
            _output.fail(
                f"rldk itself failed ({type(error).__name__}: {error}). RLDK_DEBUG=1 shows where; please report it."
            )


def _said(error: BaseException) -> str:
    """An error's message, with what to type where it names a parameter of Python's."""
    text = str(error) or type(error).__name__
    if isinstance(error, UnknownSchemaError) and error.field_map:
        options = " ".join(f"--field-map {shlex.quote(f'{name}={meaning}')}" for name, meaning in error.field_map.items())
        text = text.partition(" Say which is which")[0] + f" Say which is which, for example: {options}"
    return text


def _source(name: str) -> str:
    """The text of a command's file."""
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    source = spec.loader.get_source(spec.name) if spec is not None and hasattr(spec.loader, "get_source") else None  # type: ignore[union-attr]
    return source or ""


def _first_line(name: str) -> str:
    for node in ast.parse(_source(name)).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def _command(name: str) -> Any:
    function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    one = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    one.command(name, help=_help(inspect.getdoc(function) or ""), context_settings=_CONTEXT)(function)
    return typer.main.get_command(one)


def _help(docstring: str) -> str:
    """A docstring as help: without the sections for readers of the source, and with indented blocks as they stand."""
    shown, skipping = [], False
    for paragraph in re.split(r"\n\s*\n", docstring):
        skipping = paragraph.startswith(_NO_HELP) or (skipping and paragraph.startswith(" "))
        if not skipping:
            block = any(line.startswith(" ") for line in paragraph.splitlines())
            shown.append(f"\b\n{paragraph}" if block else paragraph)  # the mark by which click leaves a paragraph alone
    return "\n\n".join(shown)


app = typer.Typer(
    cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, context_settings=_CONTEXT
)


def _show_version(wanted: bool) -> None:
    if wanted:
        _output.say(f"rldk {importlib.metadata.version('rldk')}")
        raise typer.Exit


@app.callback(
    help=_help(
        """The flight recorder and smoke detector for TRL training.

        Reads what RLDKCallback recorded, and any trainer_state.json of transformers.

        Examples:
          rldk doctor                             is this installation sound?
          rldk replay out/checkpoint-500          what is wrong with this run?
          rldk report rldk_logs --open            a page about it, in the browser
          rldk ingest 'runs/*' -o runs.parquet    many runs as one table

        Exit codes: 0 fine, 1 alerts at or above --fail-on, 2 bad use or input.
        """.replace("\n        ", "\n")
    )
)
def _rldk(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: In place of those of the process.
    """
    # Reading a log makes objects by the million and no cycles of them: looking for such costs an eighth of the time.
    gc.set_threshold(50_000, 20, 20)
    _output.prepare()
    app(args=None if arguments is None else list(arguments), prog_name="rldk")
