"""`rldk ingest`: logs of many runs as one table."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import orjson
import typer

from ..ingest import find_all, ingest_all
from ..remote import is_url
from ..text import cell
from ._options import FieldMap, Hint, Json, Sources, read_field_map
from ._output import emit_json, fail, say, stdout_bytes, table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ingest"]

_STDOUT = "-"
_ROWS_A_BLOCK = 10_000


class Format(str, Enum):
    """What the table is written as."""

    CSV = "csv"
    PARQUET = "parquet"
    JSONL = "jsonl"


_ENDINGS = {".csv": Format.CSV, ".parquet": Format.PARQUET, ".pq": Format.PARQUET, ".jsonl": Format.JSONL, ".ndjson": Format.JSONL}


def ingest(
    sources: Sources,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The table; - for stdout. Without it, what there is is listed.")
    ] = None,
    format: Annotated[Format | None, typer.Option("--format", help="If the file's ending does not say.")] = None,
    hint: Hint = None,
    field_map: FieldMap = None,
    json: Json = False,
) -> None:
    """Turn logs into one table: CSV, Parquet or JSON lines.

    A row is one log call. The columns are step, wall_time, run_id, phase, then one a metric, by its canonical name. In
    CSV, names and runs that a spreadsheet would run as formulas get an apostrophe in front.

    Examples:
      rldk ingest rldk_logs
      rldk ingest rldk_logs -o run.csv
      rldk ingest 'runs/*/checkpoint-500' -o all.parquet
      rldk ingest mlflow.db -o experiments.csv
      rldk ingest rldk_logs --json
      rldk ingest log.jsonl --field-map it=step --field-map avg_r=reward_mean -o - | head
    """
    chosen = None if output is None else format or _format_of(output)
    if json and output == _STDOUT:
        fail("--json says what was found, and -o - writes the table: both to stdout")
    if chosen is Format.PARQUET and importlib.util.find_spec("pyarrow") is None:
        fail("Parquet needs pyarrow: pip install pyarrow (or write .csv or .jsonl)")
    if output is not None and output != _STDOUT:
        _check(Path(output), sources)
    frame = ingest_all(sources, hint, read_field_map(field_map))
    if output is None or chosen is None:
        _said(frame, None) if json else _list(frame)
    elif output == _STDOUT:
        if chosen is Format.PARQUET and sys.stdout.isatty():
            fail("Parquet is not for a terminal: give a file, or pipe it")
        _write(frame, stdout_bytes(), chosen)
    else:
        _replace(frame, Path(output), chosen)
        if json:
            _said(frame, output)
            return
        runs = frame["run_id"].nunique()
        say(f"{len(frame):,} rows of {runs:,} {'run' if runs == 1 else 'runs'}, {frame.shape[1]} columns: {output}")


def _format_of(output: str) -> Format:
    if output == _STDOUT:
        return Format.CSV
    found = _ENDINGS.get(Path(output).suffix.lower())
    if found is None:
        fail(f"the ending of {output!r} is none of {', '.join(_ENDINGS)}: add --format")
    return found


def _check(path: Path, sources: list[str]) -> None:
    """Refuses an output before an hour of reading, and never writes over a log."""
    if path.is_dir():
        fail(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        fail(f"there is no folder {str(path.parent)!r} to write {path.name} into")
    if path.exists() and path.resolve() in {source.resolve() for source in find_all(source for source in sources if not is_url(source))}:
        fail(f"{path} is one of the logs that are to be read: give another output")


def _replace(frame: pd.DataFrame, path: Path, format: Format) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _write(frame, file, format)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(frame: pd.DataFrame, file: BinaryIO, format: Format) -> None:
    if format is Format.PARQUET:
        frame.attrs = {}  # pandas would write them, and warns that it does
        frame.to_parquet(file, engine="pyarrow", index=False)
    elif format is Format.JSONL:
        _write_lines(frame, file)
    else:
        # Only names and the two columns of text can hold anything but numbers.
        safe = frame.rename(columns=cell)
        for name in ("run_id", "phase"):
            safe[name] = safe[name].astype(object).map(cell)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        safe.to_csv(text, index=False, lineterminator="\n")
        text.flush()
        text.detach()


def _write_lines(frame: pd.DataFrame, file: BinaryIO) -> None:
    """One object a row, with what the row logged. Inf, which JSON lacks, is written as a string."""
    names = [str(name) for name in frame.columns]
    for start in range(0, len(frame), _ROWS_A_BLOCK):
        block = frame.iloc[start : start + _ROWS_A_BLOCK]
        columns = [block[name].tolist() for name in frame.columns]
        for row in zip(*columns):
            record = {name: _plain(value) for name, value in zip(names, row) if value == value}
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _plain(value: Any) -> Any:
    return str(value) if value in (float("inf"), float("-inf")) else value


def _runs(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What was found, run by run."""
    for run, part in frame.groupby("run_id", observed=True, sort=False):
        logged = part.drop(columns=["step", "wall_time", "run_id", "phase"]).notna().any()
        phases = {str(phase): int(count) for phase, count in part["phase"].value_counts().items() if count}
        steps = int(part["step"].min()), int(part["step"].max())
        yield {"run_id": str(run), "first_step": steps[0], "last_step": steps[1], "rows": phases, "metrics": int(logged.sum())}


def _said(frame: pd.DataFrame, output: str | None) -> None:
    """The same as JSON."""
    skipped = int(frame.attrs.get("skipped_lines", 0))
    emit_json({"output": output, "rows": len(frame), "columns": list(frame.columns), "skipped_lines": skipped, "runs": list(_runs(frame))})


def _list(frame: pd.DataFrame) -> None:
    """The same as a table, a line a run."""
    rows = []
    for run in _runs(frame):
        phases = ", ".join(f"{count:,} {phase}" for phase, count in run["rows"].items())
        rows.append([run["run_id"], f"{run['first_step']:,} to {run['last_step']:,}", phases, run["metrics"]])
    table(["run", "steps", "rows", "metrics"], rows, right=[3], styles=lambda row: "bold")
    say(f"\n{len(frame):,} rows. Write them: -o FILE.csv, .parquet or .jsonl")
