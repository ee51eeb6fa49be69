"""`TRLAdapter`: logs of TRL training, from a path to a DataFrame, by the name that users know.

The work is done by `rldk.ingest`; this is its face for one source, with the questions that one asks before reading.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..exceptions import EmptyLogError, IngestError
from ..metrics import canonical_name
from ..vocabulary import Vocabulary, families, recognise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TRLAdapter"]


class TRLAdapter:
    """Reads TRL logs.

    Args:
        source: A file, a folder or a glob.

    Example:
        ```python
        adapter = TRLAdapter("rldk_logs")
        if adapter.can_handle():
            df = adapter.load()
        ```
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.source = source

    def can_handle(self) -> bool:
        """Whether there are logs, all of a format that needs no guessing."""
        # Both imports here: `ingest` stands above this package, and discovery of the formats imports this module.
        from ..ingest import find_logs, open_log

        names = []
        try:
            for path in find_logs(self.source):
                try:
                    names.append(open_log(path).name)
                except EmptyLogError:
                    continue  # `load` passes over an empty file among others too
        except IngestError:
            return False
        return bool(names) and "flexible" not in names

    def load(self) -> pd.DataFrame:
        """Reads the logs; columns and errors as `rldk.ingest.ingest_runs`."""
        from ..ingest import ingest_runs  # see can_handle

        return ingest_runs(self.source)

    def _extract_trl_metric(self, record: Mapping[str, Any], name: str) -> float | None:
        """The value of a metric in one raw log record, by its canonical name or a synonym; None if it is not there.

        Example:
            >>> TRLAdapter("logs")._extract_trl_metric({"objective/kl": 3.5, "loss/value_avg": 0.1}, "kl_mean")
            3.5
        """
        metrics = record.get("metrics")
        if isinstance(metrics, Mapping):
            record = {str(key): value for key, value in metrics.items()}
        translated = Vocabulary(recognise(key for key in record if isinstance(key, str))).translate(record).metrics
        wanted = canonical_name(name)
        value = translated.get(wanted)
        if value is None:
            # A record with too few keys to tell its trainer: any family's name for it will do.
            value = next((found for raw, found in _synonyms(record, wanted)), None)
        return None if value is None else float(value)


def _synonyms(record: Mapping[str, Any], wanted: str) -> list[tuple[str, float]]:
    names = {term.raw for family in families().values() for term in family.terms if term.name == wanted}
    names |= {raw for raw in record if canonical_name(str(raw)) == wanted}
    return [(raw, record[raw]) for raw in record if raw in names and isinstance(record[raw], (int, float))]
