"""What a detector's docstring says, in parts: for the pages in docs/ and for the command line."""

from __future__ import annotations

import inspect
import re

from ._base import Detector

__all__ = ["HEADINGS", "read_docstring"]

HEADINGS = ("What it sees", "Why it matters", "When it fires", "What to do", "False alarms", "Sources")


def read_docstring(detector: type[Detector]) -> tuple[str, dict[str, str], dict[str, str]]:
    """First sentence, sections by heading, and parameters by name, also those that a base describes."""
    prose, parameters = _parts(detector)
    pieces = re.split(rf"^({'|'.join(HEADINGS)}):\s", prose, flags=re.MULTILINE)
    sections = {name: _joined(text) for name, text in zip(pieces[1::2], pieces[2::2])}
    for base in detector.__mro__[1:-1]:
        parameters = {**_parts(base)[1], **parameters}
    return _joined(pieces[0]), sections, parameters


def _parts(cls: type) -> tuple[str, dict[str, str]]:
    """The text before `Args:`, and what is said of each parameter there."""
    prose, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:\n")
    found = re.findall(r"^    (\w+): ((?:.+\n?(?:     +.+\n?)*))", listed.partition("\n\n")[0], flags=re.MULTILINE)
    return prose, {name: _joined(text) for name, text in found}


def _joined(text: str) -> str:
    return " ".join(text.split())
