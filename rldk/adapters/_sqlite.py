"""SQLite databases that somebody else writes, read and never changed, nor kept from their writer for longer than a moment.

Whatever goes wrong in one is an `OSError`. Which tool a database is of is told by its tables.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..text import clean
from ._lines import Damage

__all__ = ["FAILURES", "columns_of", "each", "found_in", "holds", "last_write", "opened", "refusal"]

_MAGIC = b"SQLite format 3\0"
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_WAIT_S = 5.0
_SHOWN = 6
_LOCKED = "database is locked"
# The latter for a name that is no UTF-8, as a parameter or in SQLite's own message about a damaged schema.
FAILURES = (sqlite3.Error, UnicodeError)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens a database for reading. Text that is not UTF-8 comes with surrogates in it.

    Raises:
        OSError: If it cannot be opened, or if reading it inside the `with` fails.
    """
    connection: sqlite3.Connection | None = None
    with ExitStack() as needed:
        try:
            connection = _connected(path, needed)
            yield connection
        except FAILURES as error:
            raise OSError(clean(str(error))) from error
        finally:
            if connection is not None:
                connection.close()


def _connected(path: Path, needed: ExitStack) -> sqlite3.Connection:
    with open(path, "rb") as file:
        writes_ahead = file.read(20)[18:] == b"\2\2"
    beside = [Path(f"{path}{end}") for end in ("-wal", "-shm", "-journal")]
    # Where a database in WAL mode lies alone, nobody has it open, and SQLite would make files beside it.
    immutable = writes_ahead and not any(item.exists() for item in beside)
    try:
        return _asked(f"{path.resolve().as_uri()}?{'immutable=1' if immutable else 'mode=ro'}")
    except sqlite3.OperationalError as error:
        if _LOCKED in str(error) or not any(item.exists() for item in beside):
            raise
        # What a dead writer left beside it has to be worked in, which a folder that cannot be written does not allow.
        folder = Path(needed.enter_context(tempfile.TemporaryDirectory(prefix="rldk-")))
        for item in (path, beside[0], beside[2]):
            if item.is_file():
                shutil.copyfile(item, folder / item.name)
        return _asked(f"{(folder / path.name).as_uri()}?mode=rw")


def _asked(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S)
    try:
        connection.text_factory = _text
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()  # opening alone reads nothing
    except FAILURES:
        connection.close()
        raise
    return connection


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _names(connection: sqlite3.Connection) -> list[str]:
    # Neither views nor virtual tables: what a stranger's database would compute is not ours to run.
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%'")
    return [name for (name,) in rows if isinstance(name, str)]


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none if there is no such table."""
    if table not in _names(connection):
        return set()
    return {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}


def each(
    connection: sqlite3.Connection, order: str, asked: Sequence[Any], columns: str, damage: Damage
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields number and columns of some rows of `metrics`. Each is asked for alone, so that no writer waits for a reader.

    Args:
        connection: To the database.
        order: The query for the numbers of the rows, which are eight bytes each.
        asked: Its parameters.
        columns: What is wanted of each row.
        damage: Counts rows that cannot be read.
    """
    numbers = array("q")
    try:
        for (number,) in connection.execute(order, asked):
            numbers.append(number)
    except FAILURES:
        damage.add(0)  # what was found up to there can still be read
    query = f"SELECT {columns} FROM metrics WHERE rowid = ?"
    for number in numbers:
        try:
            row = connection.execute(query, (number,)).fetchone()
        except FAILURES:
            damage.add(number)
            continue
        if row is not None:  # it may have been deleted meanwhile
            yield number, row


def holds(path: Path, head: bytes, known: Mapping[str, set[str]]) -> bool:
    """Whether a file is a database that has these columns, by table.

    Raises:
        OSError: If its writer keeps it to itself for longer than a moment.
    """
    if not head.startswith(_MAGIC):
        return False
    try:
        with opened(path) as connection:
            return all(columns <= columns_of(connection, table) for table, columns in known.items())
    except OSError as error:
        if _LOCKED in str(error):
            raise
        return False  # the refusal says why


def refusal(path: Path, head: bytes) -> str:
    """Why a file that is a database is not one that can be read; empty if it is no database."""
    if not head.startswith(_MAGIC):
        return ""
    try:
        with opened(path) as connection:
            names = _names(connection)
    except OSError as error:
        return f"{path} is an SQLite database that cannot be read: {error}"
    shown = ", ".join(map(clean, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{path} is an SQLite database, and neither trackio's nor MLflow's: it has {f'the tables {shown}' if names else 'no table'}"


def found_in(folder: Path, known: Mapping[str, set[str]]) -> list[Path]:
    """The databases in a folder, or one level below, that have these columns."""
    for place in ("*", "*/*"):
        files = sorted(path for path in folder.glob(place) if path.suffix in _SUFFIXES and path.is_file())
        found = [path for path in files if _may_hold(path, known)]
        if found:
            return found
    return []


def _may_hold(path: Path, known: Mapping[str, set[str]]) -> bool:
    try:
        with open(path, "rb") as file:
            return holds(path, file.read(len(_MAGIC)), known)
    except OSError:
        return False  # nobody asked for this very file


def last_write(path: Path) -> float:
    """When a database was last written to, in seconds since the epoch; 0 if it is not there."""
    latest = 0.0
    for item in (path, Path(f"{path}-wal")):
        try:
            latest = max(latest, item.stat().st_mtime)
        except OSError:
            continue  # there is none, or no longer
    return latest
