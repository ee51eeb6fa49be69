"""Whole files: written so that a reader never sees half of one, read without trusting what is in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from .event import Alert, sanitised

__all__ = ["json_bytes", "read_alerts", "read_object", "replace_bytes", "replace_json"]


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there in one step.

    Raises:
        OSError: If it cannot be written; what stood there before still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON, with a newline. What JSON cannot say is written as its string."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    try:
        return orjson.dumps(value, default=str, option=options)
    except TypeError:
        # Lone surrogates in a metric's name or integers beyond 64 bits: never worth losing a report.
        return orjson.dumps(sanitised(value), option=options)


def replace_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON (`json_bytes`), atomically.

    Raises:
        OSError: If it cannot be written.
    """
    replace_bytes(path, json_bytes(value))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file, or anything else in it."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def read_alerts(path: Path) -> list[Alert]:
    """The alerts in an alerts.json; those that this version cannot read are left out."""
    try:
        rows = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    names = set(Alert._fields)
    return [Alert(**row) for row in rows if isinstance(row, dict) and names == set(row)] if isinstance(rows, list) else []
