"""A row of the table: what was measured, against what it was held, and how it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Row", "table"]

_HEADER = ("what", "measured", "value", "must", "aim", "verdict")


class Row(NamedTuple):
    """One requirement.

    Attributes:
        name: What is measured.
        measured: The medians behind the value, for people.
        value: The number that the limits are about: a ratio, seconds or megabytes. Smaller is better.
        unit: What the value counts.
        must: The limit that has to hold; None where there is only an aim.
        aim: The limit that is wanted; None where there is none.
        sound: False where something that no number shows is wrong, such as an import of torch.
    """

    name: str
    measured: str
    value: float
    unit: str
    must: float | None
    aim: float | None = None
    sound: bool = True

    @property
    def verdict(self) -> str:
        """`aim`, `must` or `MISSED`; a missed aim that no must stands behind is `over aim`."""
        if not self.sound or (self.must is not None and self.value > self.must):
            return "MISSED"
        if self.aim is None or self.value > self.aim:
            return "must" if self.must is not None else "over aim"
        return "aim"

    def to_dict(self) -> dict[str, Any]:
        """The row as it stands in the JSON file."""
        return {**self._asdict(), "verdict": self.verdict}


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    cells = [_HEADER]
    for row in rows:
        limits = ("-" if limit is None else f"{limit:g}" for limit in (row.must, row.aim))
        cells.append((row.name, row.measured, f"{row.value:.2f} {row.unit}", *limits, row.verdict))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
