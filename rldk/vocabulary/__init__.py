"""Raw name to canonical name: the one place where a trainer's own metric names are known.

Families are one file each, found by discovery. A `Vocabulary` is a family fixed to a TRL version and to a run's
arguments; `translate` is what turns a log call into canonical metrics, and the only thing on the hot path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from .. import _registry
from ..metrics import lookup
from ._base import COMMON, Correction, Family, Term

__all__ = [
    "Correction", "Family", "Term", "Translation", "Vocabulary", "families", "family_of", "plain_number", "recognise",
]

# A step number in a metric's name would otherwise grow every table for as long as the run lasts.
MAX_NAMES = 10_000
_TOO_MANY = "\0"  # no name that anybody gives a metric
# Of an unknown version the newest meaning is taken.
_NEWEST = Version("9999")


@cache
def families() -> dict[str, Family]:
    """All trainer families by name, found in this package."""
    found = [module.FAMILY for module in _registry.modules_of(sys.modules[__name__])]
    return {family.name: family for family in sorted(found, key=lambda family: family.rank)}


def family_of(arguments_class: type) -> Family:
    """The family of a trainer from the class of its arguments; the nearest listed ancestor decides."""
    by_config = {config: family for family in families().values() for config in family.configs}
    for ancestor in arguments_class.__mro__:
        if ancestor.__name__ in by_config:
            return by_config[ancestor.__name__]
    return families()["generic"]


def recognise(keys: Iterable[str]) -> Family:
    """The family of a trainer from the raw keys of its logs, `generic` if nothing is characteristic.

    GRPO and RLOO log the same keys and cannot be told apart this way: both are read as GRPO.
    """
    seen = set(keys)
    seen |= {key[len("eval_"):] for key in seen if key.startswith("eval_")}
    for family in families().values():
        if any(mark <= seen for mark in family.marks):
            return family
    return families()["generic"]


class Translation(NamedTuple):
    """One log call in canonical terms.

    Attributes:
        phase: `train`, `eval` or `summary`.
        metrics: Canonical name to number or None.
        skipped: Raw names whose value is no number, with the reason.
    """

    phase: str
    metrics: dict[str, float | int | None]
    skipped: dict[str, str]


class Vocabulary:
    """The names of one trainer family, at one TRL version, in one run.

    Args:
        family: The trainer family.
        trl_version: The TRL version that wrote the logs; None if not known, then the newest meaning is taken.
        arguments: The run's arguments by name, for corrections; None if not known.
    """

    def __init__(
        self, family: Family, trl_version: str | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.family = family
        self.correction = family.corrector(arguments) if family.corrector and arguments is not None else None
        loss_type = (arguments or {}).get("loss_type")
        loss_types = {loss_type} if isinstance(loss_type, str) else set(loss_type or ())
        self._terms = {
            term.raw: term
            for term in (*COMMON, *family.terms)
            if _holds(term.trl, trl_version) and (not term.loss_types or loss_types.intersection(term.loss_types))
        }
        # Learnt on first sight, so that the hot path is one look-up in a plain dictionary a key.
        self._names: dict[Any, str] = {raw: term.name for raw, term in self._terms.items()}

    def table(self) -> dict[str, dict[str, str]]:
        """The vocabulary in force: raw name to canonical name, unit and note."""
        units = self.units(term.name for term in self._terms.values())
        return {raw: {"name": term.name, "unit": units[term.name]} for raw, term in sorted(self._terms.items())}

    def units(self, names: Iterable[str]) -> dict[str, str]:
        """The unit in force for each of the canonical names, with what is particular about it here.

        Custom metrics have no known unit and are left out.
        """
        by_name = {term.name: term for term in self._terms.values()}
        units = {}
        for name in names:
            metric = lookup(name)
            if metric is not None:
                term = by_name.get(name.removeprefix("eval_"))
                unit = (term and term.unit) or metric.unit
                units[name] = f"{unit} ({term.note})" if term and term.note else unit
        return units

    def translate(self, logs: Mapping[str, Any]) -> Translation:
        """Translates one log call. An absent key makes nothing; what is no number is skipped with a reason."""
        names = self._names
        try:
            metrics: dict[str, Any] = {names[raw]: value for raw, value in logs.items()}
        except KeyError:
            metrics = {self._name(raw): value for raw, value in logs.items()}
        skipped: dict[str, str] = {}
        if len(metrics) != len(logs) or not _PLAIN.issuperset(map(type, metrics.values())):
            metrics, skipped = self._with_care(logs)
        if _TOO_MANY in metrics:
            del metrics[_TOO_MANY]
            skipped["..."] = f"more than {MAX_NAMES} distinct metric names"
        if self.correction is not None:
            self.correction.apply(metrics)
        if "train_loss" in metrics and "train_runtime" in metrics:
            return Translation("summary", metrics, skipped)
        if "loss" in metrics or not _is_evaluation(metrics):
            return Translation("train", metrics, skipped)
        return Translation("eval", metrics, skipped)

    def _name(self, raw: Any) -> str:
        """The canonical name of a raw one; a name that was never seen is learnt, up to a number of names."""
        names = self._names
        if raw not in names:
            if len(names) >= MAX_NAMES:
                return _TOO_MANY
            name = raw if isinstance(raw, str) else str(raw)
            if name.startswith("eval_"):
                rest = name[len("eval_"):]
                # `epoch` and the like inside an evaluation row come without the prefix and are found as they are.
                name = "eval_" + names.get(rest, rest)
            names[raw] = name
        return names[raw]

    def _with_care(self, logs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        names = {raw: self._name(raw) for raw in logs}
        order: Iterable[Any] = logs
        if len(set(names.values())) != len(names):
            # Two raw names want one canonical name: the trainer's own gets it, the other stays as it is.
            order = sorted(logs, key=lambda raw: str(raw).removeprefix("eval_") not in self._terms)
        metrics: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        for raw in order:
            name = names[raw]
            if name in metrics and name != _TOO_MANY:
                name = str(raw)
                if name in metrics:
                    skipped[name] = f"another metric of this log is recorded as {name!r}"
                    continue
            try:
                metrics[name] = plain_number(logs[raw])
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                skipped[str(raw)] = str(error) or type(error).__name__
        return metrics, skipped


# Integers are not among them: they may be larger than any float or JSON reader takes.
_PLAIN = {float, type(None)}


def _is_evaluation(metrics: Mapping[str, Any]) -> bool:
    # evaluate(metric_key_prefix="test") logs test_runtime and so on: the speed key tells it whatever the prefix.
    return any(name.startswith("eval_") or name.endswith("_samples_per_second") for name in metrics)


def plain_number(value: Any) -> float | int | None:
    """Reads a number from what people put into logs: numpy scalars, 0-d arrays and tensors, huge integers.

    Raises:
        TypeError: If it is no number. Arrays and tensors of several elements raise their own error, a ValueError or
            RuntimeError.
    """
    number: float | int | None
    if value is None or type(value) in (float, int):
        number = value
    elif isinstance(value, (str, bytes)):
        raise TypeError(f"{type(value).__name__} {value[:40]!r} is not a number")
    elif isinstance(value, (bool, int, float)):
        number = float(value)
    elif callable(getattr(value, "item", None)):
        item = value.item()  # ValueError or RuntimeError for more than one element, from numpy and torch alike
        if not isinstance(item, (bool, int, float)):
            raise TypeError(f"{type(value).__name__} holds a {type(item).__name__}, not a number")
        number = float(item)
    else:
        raise TypeError(f"{type(value).__name__} is not a number")
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf
    return number


def _holds(specifier: str, version: str | None) -> bool:
    if not specifier:
        return True
    try:
        # The base version: a build of 0.27.0.dev0 has what 0.27 has, and would otherwise be on neither side of it.
        known = _NEWEST if version is None else Version(Version(version).base_version)
    except InvalidVersion:
        known = _NEWEST
    return SpecifierSet(specifier).contains(known)
