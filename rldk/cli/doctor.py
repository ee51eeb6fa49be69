"""`rldk doctor`: whether an installation, a machine and a set-up will do, before they cost anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..event import Severity
from . import _checks
from ._arguments import judge_arguments, read_arguments
from ._checks import Problem
from ._options import FailOn, Json, Level, exit_code
from ._output import SEVERITY_STYLES, emit_json, say, say_indented, say_parts, table

__all__ = ["doctor"]

_MARGIN = 12


def doctor(
    args: Annotated[
        Path | None, typer.Option("--args", metavar="FILE", help="A script's arguments as JSON, with \"trainer\": \"grpo\"; or a run.json.")
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-d", metavar="DIR", help="Where runs will be recorded.")] = Path("rldk_logs"),
    json: Json = False,
    fail_on: FailOn = Level.WARNING,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Explain each known peculiarity of the installed TRL.")] = False,
) -> None:
    """Check the installation, the machine, and a script's arguments.

    Says what is installed and what of it is known to fail, whether a GPU is seen, whether a stray file is in the way of a
    package, where PPO comes from, and whether the output folder can be written. Run it in the folder in which training
    will be started.

    With --args, the arguments are judged as they are when training begins, and names that the trainer does not take are
    named; this imports TRL.

    Examples:
      rldk doctor
      rldk doctor --args grpo.json
      rldk doctor --args rldk_logs/my_run_run.json --fail-on critical
      rldk doctor --json
    """
    given = read_arguments(args) if args is not None else None
    installed = _checks.versions()
    found = _checks.compatibility()
    gpus, why_none = _checks.gpus()
    folder, problems = _checks.output_folder(output_dir)
    stray = _checks.stray_modules(Path.cwd())
    strays = {problem.code for problem in stray}
    problems = [
        *problems, *stray, *_checks.unused_gpu(gpus, installed["torch"]),
        *(problem for problem in _checks.known_problems(found, installed) if problem.code not in strays),
    ]
    result: dict[str, Any] = {
        "versions": installed, "gpus": gpus, "ppo": _checks.ppo_home(found), "compatibility_checked": bool(found),
        "output_dir": folder, "arguments": None,
    }
    if given is not None:
        alerts, unknown, asked = judge_arguments(*given)
        problems += unknown
        result["arguments"] = {"trainer": given[0], "count": len(given[1]), "alerts": alerts, "names_checked": asked}
    alerts = result["arguments"]["alerts"] if given is not None else []
    judged = [*(problem._asdict() for problem in problems), *alerts]
    result["problems"] = [problem._asdict() for problem in problems]
    result["verdict"] = max((row["severity"] for row in judged), key=lambda name: Severity(name).rank, default="fine")
    if json:
        emit_json(result)
    else:
        _show(result, problems, why_none, verbose)
    raise typer.Exit(exit_code(judged, fail_on))


def _show(result: dict[str, Any], problems: list[Problem], why_none: str, verbose: bool) -> None:
    installed = result["versions"]
    serious = [problem for problem in problems if problem.severity != "info"]
    alerts = result["arguments"]["alerts"] if result["arguments"] else []
    count = len(serious) + len(alerts)
    say(
        f"{count} {'problem' if count == 1 else 'problems'} found." if count else "Nothing wrong was found.",
        "bold yellow" if count else "bold green",
    )
    say()
    rows = [[name, version or "not installed"] for name, version in installed.items()]
    rows.append(["GPU", _gpus(result["gpus"], why_none)])
    rows.append(["PPO", _ppo(result)])
    rows.append(["output", _folder(result["output_dir"])])
    if result["arguments"]:
        names = "" if result["arguments"]["names_checked"] else "; their names could not be checked without TRL"
        rows.append(["arguments", f"{result['arguments']['count']} of a {result['arguments']['trainer']} trainer{names}"])
    table((), rows, styles=lambda row: "bold")
    rows = [*map(list, serious), *([alert[key] for key in ("severity", "code", "message", "advice")] for alert in alerts)]
    for severity, code, message, remedy in sorted(rows, key=lambda row: -Severity(row[0]).rank):
        say()
        _show_problem(severity, code, message, remedy)
    peculiar = [problem for problem in problems if problem.severity == "info"]
    if peculiar and verbose:
        say(f"\nKnown of TRL {installed['trl']}:", "bold")
        for problem in peculiar:
            say()
            _show_problem(problem.severity, problem.code, problem.message, problem.remedy)
    elif peculiar:
        say(f"\nKnown of TRL {installed['trl']} (-v explains):", "bold")
        say_indented(", ".join(problem.code for problem in peculiar), 2)


def _show_problem(severity: str, code: str, message: str, remedy: str) -> None:
    say_parts((f"  {severity:<8}  ", SEVERITY_STYLES[severity]), (code, "bold"))
    say_indented(message, _MARGIN)
    say_indented(remedy, _MARGIN, first="  try", first_style="dim")


def _gpus(found: list[dict[str, Any]], why_none: str) -> str:
    if not found:
        return f"none seen ({why_none})" if why_none else "none seen"
    rooms = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in gpu else gpu["name"] for gpu in found]
    return f"{len(found)}: {'; '.join(dict.fromkeys(rooms))}"


def _ppo(result: dict[str, Any]) -> str:
    if result["ppo"]:
        return f"works, from {result['ppo']}"
    if result["versions"]["trl"] is None:
        return "not without TRL"
    return "no: neither TRL nor rldk has it here" if result["compatibility_checked"] else "not looked for"


def _folder(folder: dict[str, Any]) -> str:
    if not folder["writable"]:
        return f"{folder['path']} cannot be written"
    room = f", {folder['free_bytes'] / 2**30:,.0f} GiB free"
    return f"{folder['path']} {'can be written' if folder['exists'] else 'can be made'}{room}"
