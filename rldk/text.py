"""Numbers and foreign strings, made fit for a terminal, a log line or a spreadsheet."""

from __future__ import annotations

import math

__all__ = ["cell", "clean", "number"]


def clean(text: str) -> str:
    r"""Escapes control characters (terminal escapes, newlines, direction overrides), so that text stays text.

    Example:
        >>> clean("loss\x1b[31m")
        'loss\\x1b[31m'
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def cell(text: str) -> str:
    """Text for a cell of a CSV file: what a spreadsheet would run as a formula gets an apostrophe in front.

    Example:
        >>> cell("=1+2"), cell("reward/format")
        ("'=1+2", 'reward/format')
    """
    cleaned = clean(text.encode("utf-8", "replace").decode("utf-8"))
    # A tab or a carriage return in front, which some spreadsheets pass over, was escaped with the other controls.
    return "'" + cleaned if cleaned[:1] in _FORMULA else cleaned


_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the latter as wide as Chinese characters


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def number(value: float | int | None) -> str:
    """A number in at most about nine characters; None is ``none``.

    Example:
        >>> number(0.000123456), number(1234567), number(12.5), number(None)
        ('0.0001235', '1234567', '12.5', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e9):
        return str(int(value))
    return f"{value:.4g}"
