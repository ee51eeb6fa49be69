"""Detectors, found by discovery: a new illness is a new file here.

`make_detectors` builds the set for a run from the user's `alert_thresholds`. All are armed; a `threshold` that the user
gives to one of the four that take it is absolute and replaces that detector's calibrated rule.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from .. import _registry
from ..exceptions import ConfigurationError
from ..metrics import canonical_name, nearest
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, State

__all__ = [
    "ABSENT", "FINE", "WARMING", "Answer", "Detector", "Example", "Finding", "State", "detector_classes",
    "make_detectors", "merged_thresholds",
]


@cache
def detector_classes() -> dict[str, type[Detector]]:
    """All detectors by code, in the order of their codes."""
    found = {}
    for module in _registry.modules_of(sys.modules[__name__]):
        for item in vars(module).values():
            # Defined there, not imported: bases are no detectors, and Python 3.10 takes aliases (tuple[int]) for types.
            if isinstance(item, type) and item.__module__ == module.__name__ and issubclass(item, Detector):
                found[item.code] = item
    return dict(sorted(found.items()))


def make_detectors(thresholds: Mapping[str, Any] | None = None) -> list[Detector]:
    """Builds the detectors of a run.

    Args:
        thresholds: By detector code, or by the metric that it watches first (`kl` for `kl_divergence`): a number, which
            is its `threshold`, or a mapping of its parameters. A single parameter may also be written
            ``"code.parameter"``.

    Raises:
        ConfigurationError: For an unknown code or parameter (with the nearest known one), or a value out of range.
    """
    classes = detector_classes()
    parameters: dict[str, dict[str, Any]] = {}
    if not isinstance(thresholds, (Mapping, type(None))):
        raise ConfigurationError(f"alert_thresholds must be a mapping of names to numbers; got {thresholds!r}")
    for key, value in (thresholds or {}).items():
        code, parameter = _code_of(str(key), classes)
        if code not in classes:
            raise ConfigurationError(
                f"alert_thresholds: unknown threshold {key!r}.{nearest(code, list(classes))} "
                f"Known: {', '.join(classes)}"
            )
        given = {parameter: value} if parameter else value if isinstance(value, Mapping) else {"threshold": value}
        known = _parameters(classes[code])
        for name in given:
            if name not in known:
                raise ConfigurationError(
                    f"alert_thresholds: {code} has no parameter {name!r}.{nearest(str(name), list(known))} "
                    f"It takes: {', '.join(known) or 'none'}"
                )
        twice = set(given) & set(parameters.get(code, ()))
        if twice:
            raise ConfigurationError(f"alert_thresholds: {', '.join(sorted(twice))} of {code} is given twice, by {key!r} too")
        parameters.setdefault(code, {}).update(given)
    for code, given in parameters.items():
        needed = [name for name, item in _parameters(classes[code]).items() if item.default is item.empty]
        if missing := [name for name in needed if name not in given]:
            raise ConfigurationError(f"alert_thresholds: {code} needs {', '.join(missing)}; got {given!r}")
    return [
        cls(**parameters.get(code, {}))
        for code, cls in classes.items()
        if code in parameters or not _needs_parameters(cls)
    ]


def merged_thresholds(recorded: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The thresholds of a recorded run with those that are given now: a detector that is given one has that alone."""
    classes = detector_classes()
    given = given or {}
    codes = {_code_of(str(key), classes)[0] for key in given}
    kept = {key: value for key, value in (recorded or {}).items() if _code_of(str(key), classes)[0] not in codes}
    return {**kept, **given} or None


def _code_of(key: str, classes: Mapping[str, type[Detector]]) -> tuple[str, str]:
    """The detector that a key of `alert_thresholds` is about, and the parameter that it names, if any."""
    code, _, parameter = key.partition(".")
    return code if code in classes else _by_metric(classes).get(canonical_name(code), code), parameter


def _by_metric(classes: Mapping[str, type[Detector]]) -> dict[str, str]:
    """Codes of the detectors that take an absolute threshold, by the name of the metric that it is about."""
    return {cls.watches[0]: code for code, cls in classes.items() if "threshold" in _parameters(cls)}


def _parameters(cls: type[Detector]) -> dict[str, inspect.Parameter]:
    return {name: item for name, item in inspect.signature(cls).parameters.items() if item.kind is item.KEYWORD_ONLY}


def _needs_parameters(cls: type[Detector]) -> bool:
    return any(item.default is item.empty for item in _parameters(cls).values())
