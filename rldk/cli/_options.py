"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any

import typer

from ..event import Severity
from ..metrics import lookup
from ..runs import listed
from ._output import fail, warn

__all__ = [
    "FailOn", "FieldMap", "Hint", "Json", "Level", "Sources", "Threshold", "exit_code", "read_field_map", "read_thresholds",
    "warn_of_unknown_metrics",
]


class Level(str, Enum):
    """The severity from which on alerts make the exit code 1."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    NEVER = "never"


Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
FailOn = Annotated[Level, typer.Option("--fail-on", help="Exit with 1 if there is an alert of this severity or worse.")]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold", metavar="NAME=VALUE",
        help="A number of yours for a detector (kl_divergence=5), or for one of its parameters (stall.floor=1800). "
        "May be repeated.",
    ),
]
Hint = Annotated[
    str | None,
    typer.Option(
        "--hint", metavar="FORMAT",
        help="The format, if it is not to be recognised: rldk, named_values, trl, trainer_state, trackio, wandb, tensorboard, "
        "mlflow, flexible.",
    ),
]
FieldMap = Annotated[
    list[str] | None,
    typer.Option(
        "--field-map", metavar="NAME=CANONICAL",
        help="What a name in the log means here: it=step, avg_r=reward_mean. May be repeated.",
    ),
]
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, globs, or URLs (hf://datasets/user/name).", show_default=False)]


def read_thresholds(given: Iterable[str] | None) -> dict[str, Any] | None:
    """`--threshold` as a mapping for `make_detectors`; None if none was given. Values that are no numbers end the command."""
    thresholds: dict[str, Any] = {}
    for name, value in _pairs("--threshold", given):
        thresholds[name] = _value(value)
    return thresholds or None


def read_field_map(given: Iterable[str] | None) -> dict[str, str] | None:
    """`--field-map` as a mapping; None if none was given."""
    return dict(_pairs("--field-map", given)) or None


def _pairs(option: str, given: Iterable[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for item in given or ():
        name, sign, value = (part.strip() for part in item.partition("="))
        if not sign or not name or not value:
            fail(f"{option} takes name=value; got {item!r}")
        pairs.append((name, value))
    return pairs


def _value(text: str) -> Any:
    """A number where it is one; the detector says what it thinks of anything else."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def exit_code(alerts: Iterable[Mapping[str, Any]], level: Level) -> int:
    """1 if an alert is at or above the level, else 0.

    Args:
        alerts: As in alerts.json.
        level: `--fail-on`.
    """
    if level is Level.NEVER:
        return 0
    least = Severity(level.value).rank
    return int(any(Severity(alert["severity"]).rank >= least for alert in alerts))


def warn_of_unknown_metrics(run: str, metrics: Iterable[str]) -> None:
    """Says so if a run has no metric whose meaning rldk knows: most detectors are then blind."""
    names = list(metrics)
    if names and not any(map(lookup, names)):
        warn(
            f"{run} has no metric that rldk knows; it has {listed(names)}. Only NaN and infinity can be judged. "
            f"If one of them is known under another name, say so: --field-map {shlex.quote(names[0])}=reward_mean"
        )
