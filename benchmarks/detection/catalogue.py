"""What there is to know of the scenarios without importing torch and TRL: facts kept beside the streams.

Importing the scenarios takes longer than judging all runs, so their facts are written down once for each state of their
sources and read from there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .store import STREAMS

__all__ = ["Facts", "catalogue"]

_SOURCES = Path(__file__).parent / "scenarios"


@dataclass(frozen=True)
class Facts:
    """A scenario as `scenarios._base.Scenario` describes it, but for the training itself."""

    name: str
    trainer: str
    about: str
    steps: dict[int, int]
    codes: frozenset[str] = frozenset()
    twin: str = ""
    onset: int = 0
    held_out: bool = False
    thresholds: dict[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong in it."""
        return not self.codes


def catalogue(streams: Path = STREAMS) -> dict[str, Facts]:
    """The facts of all scenarios by name; the scenarios are imported only if their sources have changed."""
    path, digest = streams / "scenarios.json", _digest()
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    if kept.get("sources") == digest:
        return {record["name"]: _facts(record) for record in kept["scenarios"]}
    from .scenarios import scenarios  # heavy: torch, transformers and TRL

    names = [item.name for item in fields(Facts)]
    found = [Facts(**{name: getattr(scenario, name) for name in names}) for scenario in scenarios().values()]
    found.sort(key=lambda facts: (facts.trainer, facts.name))
    records = [{**asdict(facts), "codes": sorted(facts.codes)} for facts in found]
    streams.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sources": digest, "scenarios": records}, indent=1) + "\n")
    return {facts.name: facts for facts in found}


def _facts(record: dict[str, Any]) -> Facts:
    steps = {int(interval): count for interval, count in record["steps"].items()}
    return Facts(**{**record, "steps": steps, "codes": frozenset(record["codes"])})


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
