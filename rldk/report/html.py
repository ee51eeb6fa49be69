"""The report as a page: one file that opens from disk, with no network.

All that comes from the log is data: it stands in the page as JSON, and the page's script puts it there as text. The page's
policy (CSP) forbids every address, and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from ..event import Alert, sanitised
from ..metrics import HEADLINE, lookup
from ..text import clean
from ._panels import place
from ._thin import BUCKETS
from ._verdict import best, judge, worst_first

__all__ = ["render_html"]

_ASSETS = Path(__file__).with_name("assets")
# Rows of the table of all metrics: more would make the page slow, and are in other files.
MAX_ROWS = 600
_DIGITS = 7


def render_html(
    report: Mapping[str, Any],
    manifest: Mapping[str, Any] | None = None,
    alerts: Sequence[Alert | Mapping[str, Any]] = (),
    series: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page of a run.

    Args:
        report: The content of final_report.json.
        manifest: The content of run.json, for the configuration.
        alerts: The alerts, or the content of alerts.json.
        series: The curves (`rldk.report.Curves.to_dict`); without them there are no plots.
    """
    rows = [alert.to_dict() if isinstance(alert, Alert) else alert for alert in alerts]
    data = _page_data(report, manifest or {}, rows, series or {})
    frame, style, script = _parts()
    policy = "; ".join(
        (
            "default-src 'none'", f"script-src '{_digest(script)}'", f"style-src '{_digest(style)}'",
            "base-uri 'none'", "form-action 'none'",
        )
    )
    parts = {"policy": policy, "style": style, "script": script, "data": _json(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


@cache
def _parts() -> tuple[str, str, str]:
    """Frame, style and script of the page."""
    read = {path.name: path.read_text(encoding="utf-8") for path in _ASSETS.iterdir() if path.suffix in (".html", ".css", ".js")}
    own = "".join(path.read_text(encoding="utf-8") for path in sorted((_ASSETS / "js").glob("*.js")))
    script = f"{read['uplot.iife.min.js']}\n(() => {{\n'use strict';\n{own}}})();\n"
    return read["page.html"], f"{read['uplot.min.css']}\n{read['page.css']}", script


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


_HIDDEN = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def _json(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    try:
        text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:
        text = orjson.dumps(sanitised(value)).decode()
    return re.sub("[<>&\u2028\u2029]", lambda match: _HIDDEN[match[0]], text)


def _page_data(
    report: Mapping[str, Any], manifest: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]],
    series: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    verdict = judge(report, alerts)
    statistics: dict[str, Any] = {**(report.get("metrics") or {}), **(report.get("resources") or {})}
    placed = place(series)
    units = _units(manifest)
    drawn = {name for panel in placed for name in panel.metrics}
    # What is drawn comes first, then what rldk knows, then the rest in the order of their appearance.
    ordered = sorted(statistics, key=lambda name: (name not in drawn, lookup(name) is None if len(name) < 200 else True))
    listed = ordered[:MAX_ROWS]
    curves, steps = _curves({name: curve for name, curve in series.items() if name in drawn or name in listed})
    files = {name: Path(str(path)).name for name, path in (report.get("files") or {}).items()}
    environment = manifest.get("environment") or report.get("environment") or {}
    return {
        "run": _clean({
            "id": report.get("run_id"), "status": report.get("status"), "reason": report.get("reason"),
            "trainer": report.get("trainer"), "began": report.get("began"), "updated": report.get("updated"),
            "totals": report.get("totals") or {}, "files": files,
        }),
        "verdict": _clean({**verdict._asdict(), "reasons": [reason._asdict() for reason in verdict.reasons]}),
        "alerts": [_clean(_alert(alert)) for alert in alerts],
        "alerts_total": (report.get("alerts") or {}).get("total", len(alerts)),
        "order": worst_first(alerts),
        "headline": [name for name in HEADLINE if name in curves and curves[name]["v"]][:6],
        "panels": [{"section": panel.section, "title": clean(panel.title), "names": panel.metrics} for panel in placed],
        "metrics": [
            {"key": name, "name": clean(name), "unit": clean(units.get(name, "")), **statistics.get(name, {}),
             "best": best(name, statistics.get(name, {}), report.get("trainer"))}
            for name in listed + [name for name in drawn if name not in statistics]
        ],
        "metrics_total": len(statistics),
        "curves": curves,
        "steps": steps,
        "thinned": _thinned(series),
        "coverage": _clean(report.get("coverage") or []),
        "record": _clean({key: report[key] for key in _RECORD if report.get(key)}),
        "arguments": _clean(_pairs(manifest.get("arguments"))),
        "settings": _clean(_pairs(manifest.get("rldk"))),
        "environment": _clean(_pairs(environment)),
        "reproduce": _clean(_reproduce(manifest, environment)),
        "corrections": _clean(manifest.get("corrections") or []),
    }


_RECORD = ("lost", "skipped_values", "rldk_failures", "checkpoints_not_analysed", "trackers", "stop_requested")


def _alert(alert: Mapping[str, Any]) -> dict[str, Any]:
    docs = str(alert.get("docs") or "")
    # The one address on the page; it opens only when it is clicked, and it is no script.
    return {**alert, "key": alert.get("metric"), "docs": docs if docs.startswith("https://") else ""}


def _units(manifest: Mapping[str, Any]) -> _Units:
    in_force: dict[str, str] = {}
    vocabulary = manifest.get("vocabulary")
    for row in vocabulary.values() if isinstance(vocabulary, Mapping) else ():
        if isinstance(row, Mapping) and row.get("name") and row.get("unit"):
            in_force[str(row["name"])] = str(row["unit"])
    return _Units(in_force)


class _Units:
    """The unit of a metric: the one in force in the run, or the table's."""

    def __init__(self, in_force: Mapping[str, str]) -> None:
        self._in_force = in_force

    def get(self, name: str, default: str) -> str:
        if len(name) >= 200:  # no name of ours
            return default
        known = lookup(name)
        return self._in_force.get(name.removeprefix("eval_")) or (known.unit if known is not None else default)


def _curves(series: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[list[int]]]:
    """The curves with their steps apart, since most metrics share them."""
    shared: dict[tuple[int, ...], int] = {}
    curves = {}
    for name, curve in series.items():
        steps = tuple(curve["steps"])
        curves[name] = {
            "s": shared.setdefault(steps, len(shared)),
            "v": [value if value is None else float(f"{value:.{_DIGITS}g}") for value in curve["values"]],
            "m": [float(f"{value:.{_DIGITS}g}") for value in curve["means"]],
            "gaps": curve["gaps"], "logged": curve["logged"], "width": curve["width"],
        }
    return curves, [list(steps) for steps in shared]


def _thinned(series: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How much the plots leave out: curves with more values than points, their widest bucket, their number of buckets."""
    wide = [curve for curve in series.values() if curve["width"] > 1]
    return {
        "curves": len(wide), "width": max((curve["width"] for curve in wide), default=1), "buckets": BUCKETS,
        "logged": max((curve["logged"] for curve in wide), default=0),
    }


def _pairs(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """A JSON object as rows: nested names are joined with a dot."""
    rows: list[tuple[str, Any]] = []
    if not isinstance(value, Mapping):
        return rows
    for name, item in value.items():
        if isinstance(item, Mapping) and item and len(prefix) < 100:
            rows += _pairs(item, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", item))
    return rows


_DIRTY = {"True": "yes: the commit alone is not what ran", "False": "none"}


def _reproduce(manifest: Mapping[str, Any], environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What it takes to run it again."""
    git, arguments = manifest.get("git") or {}, manifest.get("arguments") or {}
    versions = environment.get("versions") or {}
    rows: list[tuple[str, Any]] = []
    if git.get("commit"):
        rows.append(("commit", git["commit"]))
        rows.append(("uncommitted changes", _DIRTY.get(str(git.get("dirty")), "unknown")))
    command = manifest.get("command") or manifest.get("command_line")
    if command:
        rows.append(("command", " ".join(map(str, command)) if isinstance(command, (list, tuple)) else command))
    rows += [(name, arguments[name]) for name in ("seed", "data_seed", "full_determinism") if name in arguments]
    rows += [(name, manifest[name]) for name in ("created", "output_dir") if manifest.get(name)]
    model = manifest.get("model") or {}
    if model:
        rows.append(("model", ", ".join(f"{key} {value}" for key, value in model.items())))
    if versions:
        rows.append(("packages", " ".join(f"{name}=={version}" for name, version in versions.items())))
    if environment.get("python"):
        rows.append(("python", environment["python"]))
    for part in manifest.get("resumed") or ():
        if isinstance(part, Mapping):
            rows.append(("resumed", f"from step {part.get('step')} at {part.get('time')}"))
    return rows


def _clean(value: Any) -> Any:
    """The same with every string free of characters that move, hide or turn text round."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): item if key == "key" else _clean(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [_clean(item) for item in value]
    return value
