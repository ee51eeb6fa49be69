"""Formats of logs, one a file, found by discovery: path to events. Reads, and judges nothing."""

from __future__ import annotations

import inspect
import sys
from functools import cache

from .. import _registry
from ._base import Adapter, Feed, Row, Survey, sniff
from ._lines import Damage, records_of

__all__ = ["Adapter", "Damage", "Feed", "Row", "Survey", "formats", "records_of", "sniff"]


@cache
def formats() -> dict[str, type[Adapter]]:
    """All formats by name, the most particular first."""
    found = {
        item
        for module in _registry.modules_of(sys.modules[__name__])
        for item in vars(module).values()
        # Defined there first: in Python 3.10 an imported alias such as tuple[int] is an instance of type, and no class.
        if isinstance(item, type) and item.__module__ == module.__name__
        and issubclass(item, Adapter) and not inspect.isabstract(item)
    }
    return {adapter.name: adapter for adapter in sorted(found, key=lambda adapter: adapter.rank)}
