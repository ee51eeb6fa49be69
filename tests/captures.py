"""What 24 real TRL runs logged: `log_history` of each trainer on TRL 0.23.1, 1.12.0 and 1.16.0, six steps each."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).parent / "data" / "trl_captures.jsonl.gz"
_FAMILY = {"onlinedpo": "online_dpo"}


class Capture(NamedTuple):
    """One run: the TRL version, the family, and the rows as transformers keeps them (with `step`)."""

    trl: str
    family: str
    rows: list[dict[str, Any]]

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The rows as `on_log` got them: without the step."""
        return [{key: value for key, value in row.items() if key != "step"} for row in self.rows]

    def __str__(self) -> str:
        return f"{self.trl}_{self.family}"


@functools.cache
def captures() -> tuple[Capture, ...]:
    """All runs."""
    with gzip.open(_FILE, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return tuple(
        Capture(record["trl"], _FAMILY.get(record["trainer"], record["trainer"]), record["log_history"])
        for record in records
    )


def capture(name: str) -> Capture:
    """One run, by a name such as ``1.16.0_grpo``."""
    return next(item for item in captures() if str(item) == name)
