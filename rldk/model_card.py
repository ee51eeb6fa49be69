"""A "Training health" section for a model card: what the run's own report says, beside the weights that came of it.

Nothing in rldk calls this by itself. huggingface_hub, which every TRL installs, reads and writes the card's metadata; the
text of the card is left as it is but for our section.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._files import read_object, replace_bytes
from .event import Alert, Severity
from .exceptions import ConfigurationError, NoLogsError
from .live import sound_alerts
from .text import clean

__all__ = ["add_training_health", "training_health"]

TAG = "rldk"
_BEGIN, _END = "<!-- rldk: training health begins -->", "<!-- rldk: training health ends -->"
_REPORTS = "*_final_report.json"
_ALERTS_SHOWN = 20
_VERSIONS = ("trl", "transformers", "torch", "accelerate", "peft")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()!|~&$#])")


def add_training_health(
    model_dir: str | os.PathLike[str], run: str | os.PathLike[str] | Mapping[str, Any] | Any
) -> Path:
    """Adds the section "Training health" and the tag `rldk` to the card of a saved model.

    To be called after `trainer.save_model()` and `trainer.create_model_card()`: TRL writes the card anew each time. A second
    call replaces the section. What is pushed to the Hub afterwards has it; after `push_to_hub`, upload README.md again.

    Args:
        model_dir: The model's folder, or its README.md. The card is made if there is none.
        run: The run: its folder, its final_report.json, its event stream, the `RLDKCallback` that recorded it, or the
            content of its report.

    Returns:
        The card's path.

    Raises:
        NoLogsError: If the run has no final report; it says where it was looked for.
        ConfigurationError: If the run has not ended, if there are several in the folder, or if the card cannot be read.

    Example:
        ```python
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        rldk.add_training_health(trainer.args.output_dir, run=recorder)
        ```
    """
    # Here, since it brings a client of the Hub, which reading logs does without.
    from huggingface_hub.repocard import metadata_load, metadata_save

    report, alerts = _read(run)
    folder = Path(model_dir)
    path = folder if folder.suffix.lower() == ".md" else folder / "README.md"
    if not path.parent.is_dir():
        raise ConfigurationError(f"no such folder: {str(path.parent)!r}; save the model first")
    if not path.exists():
        _make(path, report)
    try:
        metadata = metadata_load(path)
        text = path.read_bytes().decode("utf-8-sig")
    except Exception as error:  # YAML's errors are of a library that is not ours to import
        raise ConfigurationError(f"cannot read the model card {path}: {error}") from error
    line_end = "\r\n" if "\r\n" in text else "\n"
    replace_bytes(path, _with_section(text, training_health(report, alerts), line_end).encode("utf-8"))
    tags = (metadata or {}).get("tags")
    tags = [tags] if isinstance(tags, str) else list(tags or ())
    if TAG not in tags:
        metadata_save(path, {**(metadata or {}), "tags": [*tags, TAG]})
    return path


def training_health(report: Mapping[str, Any], alerts: Sequence[Alert]) -> str:
    """The section's text, in markdown.

    Args:
        report: The content of final_report.json.
        alerts: The run's alerts.
    """
    totals, health = _table(report.get("totals")), _table(report.get("health"))
    trainer = f" {_escape(report['trainer'])}" if report.get("trainer") else ""
    seconds = totals.get("wall_time")
    took = f" in {_duration(seconds)}" if isinstance(seconds, (int, float)) and seconds >= 0 else ""
    reason = f" ({_escape(report['reason'])})" if report.get("reason") else ""
    lines = [
        "## Training health",
        "",
        f"Recorded by [rldk](https://github.com/rldk/rldk):{trainer} run {_escape(report.get('run_id'))}, "
        f"{_escape(report.get('status'))}{reason}, {_escape(totals.get('steps'))} steps{took}.",
        "",
        f"**Verdict: {_escape(health.get('verdict'))}.** {_escape(health.get('why'))}",
    ]
    if alerts:
        lines += ["", "| alert | severity | step | passed at | what was seen |", "|---|---|---|---|---|"]
        worst = sorted(alerts, key=lambda alert: (-Severity(alert.severity).rank, alert.step))
        for alert in worst[:_ALERTS_SHOWN]:
            passed = "open at the end" if alert.resolved_step is None else str(alert.resolved_step)
            cells = (alert.code, alert.severity, alert.step, passed, alert.message)
            lines.append(f"| {' | '.join(map(_escape, cells))} |")
        if len(alerts) > _ALERTS_SHOWN:
            lines += ["", f"{len(alerts) - _ALERTS_SHOWN} more alerts are in the run's record."]
    states = [row.get("state") for row in report.get("coverage") or () if isinstance(row, dict)]
    judged = sum(state in ("fired", "quiet") for state in states)
    if states:
        lines += ["", f"{judged} of {len(states)} detectors could judge this run; the others saw too little of what they need, or nothing."]
    versions = _table(_table(report.get("environment")).get("versions"))
    said = [f"{name} {versions[name]}" for name in (TAG, *_VERSIONS) if name in versions]
    if said:
        lines += ["", f"Versions: {_escape(', '.join(said))}."]
    return "\n".join(lines)


def _with_section(text: str, section: str, line_end: str) -> str:
    """The card with the section in its place, or at the end; line endings are the card's."""
    block = "\n".join((_BEGIN, section, _END)).replace("\n", line_end)
    begin = text.find(_BEGIN)
    end = text.find(_END, begin)
    if begin >= 0 and end >= 0:
        return text[:begin] + block + text[end + len(_END) :]
    if begin >= 0:
        # The end was deleted by hand: what follows cannot be told from the card's own text, and stays.
        text = text[:begin] + text[begin + len(_BEGIN) :]
    return f"{text.rstrip()}{line_end * 2}{block}{line_end}" if text.strip() else f"{block}{line_end}"


def _make(path: Path, report: Mapping[str, Any]) -> None:
    from huggingface_hub import ModelCard, ModelCardData  # see add_training_health

    data = ModelCardData(library_name="transformers", tags=["trl", TAG])
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {_escape(path.parent.resolve().name or report.get('run_id'))}\n").save(path)


def _read(run: Any) -> tuple[Mapping[str, Any], list[Alert]]:
    """The report of a run that has ended, and its alerts."""
    if isinstance(run, Mapping):
        report, place = run, None
    elif isinstance(run, (str, os.PathLike)):
        place = _report_of(Path(run))
        report = read_object(place)
    else:
        own = getattr(run, "report", None)  # an RLDKCallback
        if not isinstance(own, Mapping):
            raise ConfigurationError(
                f"run must be a folder, a final_report.json, an event stream, a report or an RLDKCallback that has recorded "
                f"a run; got {run!r}"
            )
        report, place = own, None
    if not report.get("run_id") or report.get("status") == "running":
        raise ConfigurationError(
            f"run {report.get('run_id') or str(run)!r} has no final report yet: it has not ended, or was killed. `rldk report` "
            "(or rldk.rebuild_run) makes the report of a killed run"
        )
    return report, sound_alerts(_alerts_of(report, place))


def _report_of(source: Path) -> Path:
    if source.is_dir():
        found = sorted(source.glob(_REPORTS))
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:5])
            raise ConfigurationError(f"{source} holds {len(found)} runs: name the report of one ({names})")
    elif source.name.endswith("_events.jsonl"):
        found = [source.with_name(source.name.replace("_events.jsonl", "_final_report.json"))]
    else:
        found = [source]
    if not found or not found[0].is_file():
        raise NoLogsError(f"no {_REPORTS} of {str(source)!r} (looked in {Path.cwd()})")
    return found[0]


def _alerts_of(report: Mapping[str, Any], place: Path | None) -> Path:
    """The alerts beside the report; a report in memory says where they are."""
    if place is not None:
        return place.with_name(place.name.replace("_final_report.json", "_alerts.json"))
    return Path(str(_table(report.get("files")).get("alerts", "")))


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _escape(value: object) -> str:
    """Text that stays text in markdown: no emphasis, links, HTML, table cells or mentions of its own."""
    text = _SPECIAL.sub(r"\\\1", clean(str(value)))
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "&#64;").replace("://", ":&#47;&#47;")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
