"""The rows of the derived tables by user, for a refresh to compare with: at the cost of the users that it asks for.

A cache: the rows of a base (`base.py`), written once beside it in the order of users, and those of the users who
changed since. The newest rows of a user apply, and a user may have none. Newer rows are in memory, or in files that
last as long as the process; they are merged geometrically. A hash stands for all users who share it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.boundary.locked_sql import identifier
from pipelines.lake.files import make_durable
from pipelines.lake.kept_files import checksums_of, require_unchanged_if_due
from pipelines.lake.manifest import manifest_text, read_manifest
from pipelines.lake.mapping import advise_random, create_map, open_map
from pipelines.lake.merges import Merges
from pipelines.reputation.chunks import CHUNK_ROWS, Chunks, in_chunks, map_chunks, store_chunks
from pipelines.reputation.sorted_words import contains, distinct, positions, union
from pipelines.reputation.sql import arrow_rows, statement

HASH = "user_hash"
HASHES = 2**64
"""A hash is less."""
_MEMORY_ROWS = 100_000
"""More rows are in files."""
_FOREGROUND_MERGE_ROWS = 100_000
"""A merge of this many rows takes about a tenth of a second; the thread does larger ones."""
_PART_USERS = 16_384
"""A merge holds the rows of so many users at a time."""
_ROWS, _USERS, _SUMS = ".rows", ".users", ".checksums"
_CHECKSUMS = "checksums"
_SCRATCH = "newer-"
Columns = Mapping[str, str]
"""The types of columns in SQL, by name."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one table in the order of users."""

    chunks: Chunks
    users: np.ndarray
    """The hash of the user of each row, ascending: uint64, shape (rows,)."""

    def of(self, users: np.ndarray) -> pa.Table:
        """Return the rows of users (sorted hashes), in their order."""
        return self.chunks.take(positions(self.users, users))


@dataclass(frozen=True, slots=True)
class Piece:
    """All rows of some users, in every table."""

    users: np.ndarray
    """Those users, with or without rows: sorted hashes, uint64, shape (users,)."""
    tables: Mapping[str, Rows]
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.users) + sum(len(rows.chunks) for rows in self.tables.values())


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a base and newer ones, as of a moment: for any thread, also when the files are removed meanwhile."""

    columns: Mapping[str, Columns]
    """The columns of each table."""
    base: Mapping[str, Rows]
    pieces: tuple[Piece, ...]

    def rows_of(self, table: str, users: np.ndarray) -> pa.Table:
        """Return the rows of users (sorted hashes) in a table, in no order: its columns, and `user_hash`."""
        found, remaining = _newest_rows(self.pieces, table, users)
        return pa.concat_tables([self.base[table].of(remaining), *found])

    def users_from(self, table: str, position: int, count: int) -> tuple[np.ndarray, int]:
        """Return the next users from a position on with rows in a table (sorted hashes), and the position after them.

        About `count`, among them users whose newer rows are in other tables only. Positions are from 0 to less than
        HASHES; the position after the last user is HASHES.
        """
        kept = [rows[table].users for rows in (self.base, *(piece.tables for piece in self.pieces))]
        parts = [users[np.searchsorted(users, np.uint64(position)) :][:count] for users in kept]
        last = min((int(part[-1]) for part in parts if len(part) == count), default=HASHES - 1)
        found = distinct(np.concatenate(parts))
        return found[found <= np.uint64(last)], last + 1


class UserRows:
    """The rows of a base, and newer ones. Not thread-safe.

    columns: the columns of each table.
    base: the rows of each table of the base.
    folder: where newer rows are, if they are in files.
    """

    def __init__(self, columns: Mapping[str, Columns], base: Mapping[str, Rows], folder: Path) -> None:
        self.columns, self._base, self._folder, self._numbers = columns, base, folder, count(1)
        self._merges = Merges(self._merge, self._merge, _FOREGROUND_MERGE_ROWS)

    def stored(self) -> StoredRows:
        """Return the rows as they are now."""
        return StoredRows(self.columns, self._base, tuple(self._merges.pieces))

    def rows_of(self, table: str, users: np.ndarray) -> pa.Table:
        """Return the rows of users like `StoredRows.rows_of`, as they are now."""
        return self.stored().rows_of(table, users)

    def replace(self, users: np.ndarray, tables: Mapping[str, pa.Table]) -> None:
        """Make these all rows of users (sorted hashes), in any order."""
        size = len(users) + sum(map(len, tables.values()))
        piece = self._write(size, users, {name: in_chunks(table.sort_by(HASH)) for name, table in tables.items()})
        self._merges.pieces.append(piece)
        self._merges.merge_due()
        self._remove_replaced()

    def begin_base(self) -> None:
        """Let a new base be made of the rows as they are now: `continue_with` it."""
        self._merges.seal()

    def continue_with(self, base: Mapping[str, Rows]) -> None:
        """Continue with a base that has the rows of the last `begin_base`; only those replaced since are newer."""
        self._base = base
        self._merges.drop_sealed()
        self._remove_replaced()

    def close(self) -> None:
        """End the thread, and remove the files of newer rows, also those of a merge that failed."""
        self._merges.close()
        for file in self._folder.glob(f"{_SCRATCH}*"):
            file.unlink()

    def _remove_replaced(self) -> None:
        for file in [file for piece in self._merges.take_replaced() for file in piece.files]:
            file.unlink()

    def _merge(self, older: Piece, newer: Piece) -> Piece:
        users = union(older.users, newer.users)
        rows = {name: _merged_rows([older, newer], name, users) for name in newer.tables}
        return self._write(len(older) + len(newer), users, rows)

    def _write(self, size: int, users: np.ndarray, tables: Mapping[str, Iterable[pa.RecordBatch]]) -> Piece:
        path = self._new_path() if size > _MEMORY_ROWS else None
        rows, files = dict[str, Rows](), list[Path]()
        for name, batches in tables.items():
            file = None if path is None else _files(path, name)[0]
            chunks = store_chunks(file, self._base[name].chunks.schema, batches)
            rows[name] = Rows(chunks, chunks.column(HASH))
            files += [] if file is None else [file]
        return Piece(users, rows, tuple(files))

    def _new_path(self) -> Path:
        return self._folder / f"{_SCRATCH}{next(self._numbers):08}"


def columns_of(connection: duckdb.DuckDBPyConnection, relation: str) -> Columns:
    """Return the columns of a table or view."""
    described = connection.execute(statement("user_rows_columns", relation=relation)).fetchall()
    return {name: kind for name, kind, *_ in described}


def stored_form(columns: Columns) -> str:
    """Return the columns of a table with the hash of the user, as SQL, in types that Arrow has."""
    return ", ".join([f"hash(user_id) AS {HASH}", *(_as_text(name, kind) for name, kind in columns.items())])


def table_form(columns: Columns) -> str:
    """Return the columns of a table as SQL, from those of `stored_form`."""
    return ", ".join(f"CAST({identifier(name)} AS {kind}) AS {identifier(name)}" for name, kind in columns.items())


def load_rows(connection: duckdb.DuckDBPyConnection, stored: StoredRows, name: str, users: np.ndarray) -> str:
    """Load the rows of users (sorted hashes) in a table into a temporary table; return its name."""
    with arrow_rows(connection, stored.rows_of(name, users)):
        connection.execute(statement("user_rows_loaded", name=name, columns=table_form(stored.columns[name])))
    return f"loaded_{name}"


def _as_text(name: str, kind: str) -> str:
    """Return a column as SQL: Arrow has no integers of 128 bits."""
    column = identifier(name)
    return f"CAST({column} AS VARCHAR) AS {column}" if kind == "HUGEINT" else column


def read_rows(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """Return the rows of a query in chunks; until it ends or is closed, a `checkpoint` waits for it."""
    return connection.sql(query).to_arrow_reader(CHUNK_ROWS)


def write_base_rows(path: Path, table: str, rows: pa.RecordBatchReader) -> None:
    """Write the rows of a table of a base (in the order of users), durably: a file exists only whole.

    Raises OSError when the disk is full.
    """
    files = _files(path, table)
    partial = [file.with_name(f"{file.name}.next") for file in files]
    chunks = store_chunks(partial[0], rows.schema, iter(rows))
    _fill(create_map(partial[1], (len(chunks),)), chunks) if len(chunks) else partial[1].touch()
    partial[2].write_text(manifest_text({_CHECKSUMS: checksums_of(partial[:2])}), encoding="utf-8")
    make_durable(partial)
    for written, target in zip(partial, files, strict=True):
        written.replace(target)


def open_base_rows(path: Path, table: str) -> Rows:
    """Map the rows of a table of a base. Raises OSError or ValueError if they are missing or damaged.

    Large files are compared with their checksums once a day.
    """
    file, users_file, checksums_file = _files(path, table)
    require_unchanged_if_due([file, users_file], read_manifest(checksums_file)[_CHECKSUMS])
    chunks = map_chunks(file)
    if not len(chunks):
        return Rows(chunks, np.empty(0, np.uint64))
    users = open_map(users_file, (len(chunks),))
    advise_random(users)
    return Rows(chunks, users)


def _files(path: Path, table: str) -> tuple[Path, Path, Path]:
    """Return the files of the rows, of their users, and of the checksums of both."""
    rows, users, checksums = (path.with_name(f"{path.name}.{table}{suffix}") for suffix in (_ROWS, _USERS, _SUMS))
    return rows, users, checksums


def _fill(users: np.ndarray, chunks: Chunks) -> None:
    for start, chunk in zip(chunks.starts, chunks.batches, strict=False):
        users[start : start + chunk.num_rows] = chunk.column(HASH).to_numpy()


def _newest_rows(pieces: Sequence[Piece], table: str, users: np.ndarray) -> tuple[list[pa.Table], np.ndarray]:
    """Return the rows of users in pieces, the oldest first, and the users who are in none."""
    found: list[pa.Table] = []
    for piece in reversed(pieces):
        here = contains(piece.users, users)
        found.append(piece.tables[table].of(users[here]))
        users = users[~here]
    return found, users


def _merged_rows(pieces: Sequence[Piece], table: str, users: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield the newest rows of users in the order of their hashes, some users at a time."""
    for start in range(0, len(users), _PART_USERS):
        found, _ = _newest_rows(pieces, table, users[start : start + _PART_USERS])
        yield from in_chunks(pa.concat_tables(found).sort_by(HASH))
