"""`rldk detectors`: what rldk watches for."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from ..detectors import Detector, detector_classes
from ..detectors._docstring import read_docstring
from ..metrics import nearest
from ..monitor import DOCS
from ._options import Json
from ._output import emit_json, fail, say, say_indented, table

__all__ = ["detectors"]


def detectors(
    code: Annotated[str | None, typer.Argument(help="Explain this one.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the detectors, or explain one.

    The list has what each watches for, the metrics that it judges, and the parameters that it takes in alert_thresholds
    and --threshold.

    Examples:
      rldk detectors
      rldk detectors kl_divergence
      rldk detectors --json
    """
    classes = detector_classes()
    if code is None:
        if json:
            emit_json([_described(cls) for cls in classes.values()])
            return
        rows = [[name, cls.title, ", ".join(_watched(cls))] for name, cls in classes.items()]
        table(["code", "what it means", "watches"], rows, styles=lambda row: "bold")
        say(f"\n{len(rows)} detectors, all armed. Explain one: rldk detectors CODE")
        return
    name = code.strip().lower().replace("-", "_")
    if name not in classes:
        fail(f"no detector {code!r}.{nearest(name, list(classes))} `rldk detectors` lists them")
    if json:
        emit_json(_described(classes[name]))
    else:
        _explain(classes[name])


def _explain(cls: type[Detector]) -> None:
    described = _described(cls)
    say(f"{cls.code}: {cls.title}", "bold")
    say(described["about"])
    for heading, text in described["sections"].items():
        say()
        say(heading, "bold")
        say_indented(text, 2)
    say()
    say("Judged by it", "bold")
    say_indented(", ".join(described["watches"]), 2)
    if cls.needs:
        say_indented(f"It needs {cls.needs}.", 2)
    say()
    say("Parameters", "bold")
    for name, item in described["parameters"].items():
        default = "no default: it is armed when this is given" if item["required"] else f"default {item['default']}"
        width = max(map(len, described["parameters"])) + 4
        say_indented(f"{item['help']} ({default})" if item["help"] else default, width, first=f"  {name}")
    if described["parameters"]:
        first = next(iter(described["parameters"]))
        say_indented(f"Set one: --threshold {cls.code}.{first}=NUMBER, or in alert_thresholds", 2, style="dim")
    else:
        say_indented("none", 2)
    say()
    say(described["docs"], "dim")


def _watched(cls: type[Detector]) -> list[str]:
    if cls.phases == frozenset({"setup"}):
        return ["the set-up"]
    return list(cls.watches) or ["every metric"]


def _described(cls: type[Detector]) -> dict[str, Any]:
    """All that a detector's class says of itself."""
    about, sections, arguments = read_docstring(cls)
    parameters = {
        name: {
            "default": None if item.default is item.empty else item.default,
            "required": item.default is item.empty,
            "help": arguments.get(name, ""),
        }
        for name, item in inspect.signature(cls).parameters.items()
    }
    return {
        "code": cls.code, "name": cls.title, "about": about, "watches": _watched(cls), "needs": cls.needs,
        "parameters": parameters, "advice": cls.advice, "sections": sections,
        "docs": f"{DOCS}{cls.code}.md",
    }
