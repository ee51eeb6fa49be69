"""What rldk costs, in one table: each requirement, what was measured in this run, and how it stands.

Run it on a quiet machine for the seconds; the ratios hold on a busy one too, as both sides are measured in turns:

    OMP_NUM_THREADS=1 python -m benchmarks.cost            # some minutes, 3 GB of temporary files
    OMP_NUM_THREADS=1 python -m benchmarks.cost --quick    # about a minute

Floor 1 is the least that a durable record can cost: `orjson.dumps` of an event of 25 metrics that is already there, and
one `os.write` to a file opened for append.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ._rows import Row, table

__all__ = ["main"]

_PARTS = ("hot", "trainer", "gradients", "run", "load", "report", "startup")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; for a look, not for a record")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, metavar="PART", help=", ".join(_PARTS))
    options = parser.parse_args(argv)
    logging.getLogger("rldk").addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")  # transformers warns of its own old names
    rows: list[Row] = []
    for part in options.only:
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        rows.extend(importlib.import_module(f"{__package__}.{part}").rows(options.quick))
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({**_machine(), "quick": options.quick, "rows": _plain(rows)}, indent=1) + "\n")
    return 0


def _plain(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [row.to_dict() for row in rows]


def _machine() -> dict[str, object]:
    """What the numbers were measured on."""
    packages = ("torch", "transformers", "trl", "orjson", "pandas")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
