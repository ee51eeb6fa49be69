"""The fold from events to curves: what the page draws, in constant memory, a block of events at a time.

Values are packed as they come, in one call an event, and spread over the curves a block at a time, as in `rldk.frame`: an
event costs a microsecond or two.
"""

from __future__ import annotations

import itertools
import math
import struct
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..event import Event
from ..metrics import METRICS
from ._thin import Curve

__all__ = ["Curves"]

_EVENTS_A_BLOCK = 1024
_BYTES_A_BLOCK = 1 << 22
_LAYOUTS = 256
# Beyond rldk's own metrics. A step number in a metric's name makes a name a step.
MAX_CUSTOM = 200
# Of all curves of a page together: some three megabytes.
_POINTS_A_PAGE = 160_000


class _Layout:
    """Events with the same metrics in the same order: one is packed in one call."""

    __slots__ = ("data", "names", "pack", "rows")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.pack = struct.Struct(f"={len(names)}d").pack
        self.data = bytearray()
        self.rows = array("i")  # where its events stand in the block


class Curves:
    """The curve of each metric. rldk's own always have one, others as long as there are few enough."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}
        self._custom = 0
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._layout = _Layout(())
        self._steps = array("q")
        self._size = 0

    def add(self, event: Event) -> None:
        """Takes one event."""
        metrics = event.metrics
        if not metrics:
            return
        names = tuple(metrics)
        layout = self._layout
        if names != layout.names:
            layout = self._layout = self._layout_of(names)
        try:
            packed = layout.pack(*metrics.values())
        except (struct.error, OverflowError, TypeError):  # a None, which makes no point, or an integer beyond the largest float
            numbers = {name: _float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
            if not numbers:
                return
            layout = self._layout_of(tuple(numbers))
            packed = layout.pack(*numbers.values())
        layout.data += packed
        layout.rows.append(len(self._steps))
        self._steps.append(event.step)
        self._size += len(packed)
        if len(self._steps) >= _EVENTS_A_BLOCK or self._size >= _BYTES_A_BLOCK:
            self._fold()

    def add_all(self, events: Iterable[Event]) -> None:
        """Takes events; those in a row that have the same metrics are packed at once."""
        for names, group in itertools.groupby(events, _names):
            alike = list(group)
            try:
                packed = array("d", itertools.chain.from_iterable([event.metrics.values() for event in alike])).tobytes()  # type: ignore[type-var]  # a None is a TypeError
            except (OverflowError, TypeError):
                packed = None
            rows = len(self._steps)
            # A block ends where it would if they came one by one: `add` knows where.
            if packed is None or not names or rows + len(alike) > _EVENTS_A_BLOCK or self._size + len(packed) >= _BYTES_A_BLOCK:
                for event in alike:
                    self.add(event)
                continue
            layout = self._layout_of(names)
            layout.data += packed
            layout.rows.extend(range(rows, rows + len(alike)))
            self._steps.extend([event.step for event in alike])
            self._size += len(packed)
            if len(self._steps) >= _EVENTS_A_BLOCK:
                self._fold()

    def _layout_of(self, names: tuple[str, ...]) -> _Layout:
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._layouts[names] = _Layout(names)
        return layout

    def _fold(self) -> None:
        """Spreads the block over the curves."""
        steps = np.array(self._steps, dtype=np.int64)
        parts: dict[str, list[tuple[Any, Any]]] = {}
        for layout in self._layouts.values():
            if not layout.data:
                continue
            rows = np.array(layout.rows, dtype=np.intp)
            table = np.frombuffer(bytes(layout.data), dtype=np.float64).reshape(len(rows), -1).T
            for name, column in zip(layout.names, table):
                parts.setdefault(name, []).append((rows, column))
            layout.data, layout.rows = bytearray(), array("i")
        self._steps, self._size = array("q"), 0
        # Events with ever-changing sets of metrics must not collect layouts.
        if len(self._layouts) > _LAYOUTS:
            self._layouts.clear()
            self._layout = _Layout(())
        for name, pieces in parts.items():
            curve = self._curves.get(name) or self._new(name)
            if curve is None:
                continue
            rows, values = pieces[0]
            if len(pieces) > 1:
                rows = np.concatenate([piece[0] for piece in pieces])
                order = np.argsort(rows)
                rows, values = rows[order], np.concatenate([piece[1] for piece in pieces])[order]
            curve.fold(steps if len(rows) == len(steps) else steps[rows], values)

    def _new(self, name: str) -> Curve | None:
        if name.removeprefix("eval_") not in METRICS:
            if self._custom >= MAX_CUSTOM:
                return None
            self._custom += 1
        curve = self._curves[name] = Curve()
        return curve

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The curves as plain values: `steps`, `values` (None at the first step of a gap), `means`, `gaps`, `logged`, `width`."""
        self._fold()
        most = max(64, _POINTS_A_PAGE // max(1, len(self._curves)))
        return {name: _plain(curve, most) for name, curve in self._curves.items()}


def _names(event: Event) -> tuple[str, ...]:
    return tuple(event.metrics)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _plain(curve: Curve, most: int) -> dict[str, Any]:
    steps, values, means = curve.points(most)
    points: list[float | None] = list(values)
    if curve.gaps:
        # The line is to break where it was not finite.
        marked = sorted([*zip(steps, points), *((first, None) for first, *_ in curve.gaps)], key=lambda point: point[0])
        steps, points = [step for step, _ in marked], [value for _, value in marked]
    # A bucket gives two points; what fits whole has one point a value.
    width = max(curve.width, 2 * curve.logged // max(1, len(values))) if curve.logged > len(values) else 1
    return {"steps": steps, "values": points, "means": means, "gaps": curve.gaps, "logged": curve.logged, "width": width}
