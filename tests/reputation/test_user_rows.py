"""The rows by user against a dictionary: after any replacements and merges, in memory and in files."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation import user_rows as module
from pipelines.reputation.sql import arrow_rows, statement
from pipelines.reputation.user_rows import (
    HASHES,
    Rows,
    UserRows,
    open_base_rows,
    read_rows,
    stored_form,
    table_form,
    write_base_rows,
)

_USERS = ("ann", "bob", "cid", "dan", "eve")
_COLUMNS = {"user_id": "VARCHAR", "number": "HUGEINT"}
_NUMBERS = st.lists(st.integers(-(2**126), 2**126), max_size=3)
_STATES = st.dictionaries(st.sampled_from(_USERS), _NUMBERS, max_size=5)
State = dict[str, list[int]]


def _hashes(connection: duckdb.DuckDBPyConnection, users: list[str]) -> np.ndarray:
    found = connection.execute("SELECT hash(unnest(CAST(? AS VARCHAR[]))) AS h", [users]).fetchnumpy()["h"]
    return np.unique(found)


def _stored(connection: duckdb.DuckDBPyConnection, state: State) -> pa.RecordBatchReader:
    """Return the numbers of users in the stored form of a table, in the order of users."""
    connection.execute("CREATE OR REPLACE TABLE given (user_id VARCHAR, number HUGEINT)")
    rows = [(user, str(number)) for user, numbers in state.items() for number in numbers]
    if rows:
        connection.executemany("INSERT INTO given VALUES (?, ?)", rows)
    columns = stored_form(_COLUMNS)
    return read_rows(connection, statement("user_rows_stored", columns=columns, relation="given"))


def _numbers(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> list[tuple[str, int]]:
    with arrow_rows(connection, rows):
        query = statement("user_rows_read", columns=table_form(_COLUMNS), rows="arrow_rows")
        return sorted(connection.execute(query).fetchall())


def _base(connection: duckdb.DuckDBPyConnection, folder: Path, state: State) -> dict[str, Rows]:
    write_base_rows(folder / "1.duckdb", "given", _stored(connection, state))
    return {"given": open_base_rows(folder / "1.duckdb", "given")}


@pytest.mark.slow
@given(
    _STATES,
    st.lists(_STATES | st.sampled_from(("begin a base", "continue with it")), max_size=10),
    st.sampled_from((0, 3, 100)),
    st.sampled_from((0, 4, 100)),
)
def test_the_newest_rows_of_a_user_stand(base: State, changes: list[State | str], in_memory: int, at_once: int) -> None:
    """A user who was replaced has exactly the new rows, perhaps none; the others have those of the base.

    A base of a moment takes the place of what was before that moment, and of nothing newer.
    """
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched, duckdb.connect() as connection:
        patched.setattr(module, "_MEMORY_ROWS", in_memory)
        patched.setattr(module, "_FOREGROUND_MERGE_ROWS", at_once)
        patched.setattr(module, "_PART_USERS", 2)
        kept = UserRows({"given": _COLUMNS}, _base(connection, Path(folder), base), Path(folder))
        state, begun, newer = dict(base), dict(base), 0
        for change in changes:
            if change == "begin a base":
                kept.begin_base()
                begun, newer = dict(state), 0
                continue
            if isinstance(change, str):
                kept.continue_with(_base(connection, Path(folder), begun))
                assert len(kept.stored().pieces) <= newer
            else:
                newer += 1
                state |= change
                kept.replace(_hashes(connection, [*change]), {"given": _stored(connection, change).read_all()})
            for users in ([*_USERS], [*_USERS[:2]], []):
                found = _numbers(connection, kept.rows_of("given", _hashes(connection, users)))
                assert found == sorted((user, number) for user in users for number in state.get(user, []))
        _assert_walked(kept, _hashes(connection, [user for user, numbers in state.items() if numbers]))
        kept.close()
        assert sorted(file.name for file in Path(folder).iterdir()) == [
            f"1.duckdb.given.{suffix}" for suffix in ("checksums", "rows", "users")
        ]


def _assert_walked(kept: UserRows, users: np.ndarray) -> None:
    """Assert that some users at a time, from one position to the next, are all users with rows, in order."""
    for count in (1, 2, 9):
        position, found = 0, list[np.ndarray]()
        while position < HASHES:
            part, position = kept.stored().users_from("given", position, count)
            assert len(part) <= count * (1 + len(kept.stored().pieces))
            found.append(part)
        walked = np.concatenate(found)
        assert (np.diff(walked) > 0).all()
        assert np.isin(users, walked).all()


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x"), lambda file: file.unlink(), _flip])
@pytest.mark.parametrize("suffix", ["rows", "users", "checksums"])
def test_damaged_rows_of_a_base_are_refused(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    """The caller writes them again from the base."""
    with duckdb.connect() as connection:
        write_base_rows(tmp_path / "1.duckdb", "given", _stored(connection, {"ann": [1], "bob": [2, 3]}))
    damage(tmp_path / f"1.duckdb.given.{suffix}")
    with pytest.raises((OSError, ValueError)):
        open_base_rows(tmp_path / "1.duckdb", "given")


def test_rows_that_another_user_wrote_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This user may read them, but not note that they were compared."""

    def deny(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with duckdb.connect() as connection:
        write_base_rows(tmp_path / "1.duckdb", "given", _stored(connection, {"ann": [1]}))
    monkeypatch.setattr(os, "utime", deny)
    assert len(open_base_rows(tmp_path / "1.duckdb", "given").users) == 1


def test_an_empty_table(tmp_path: Path) -> None:
    """It has no rows, and its columns."""
    with duckdb.connect() as connection:
        write_base_rows(tmp_path / "1.duckdb", "given", _stored(connection, {}))
        rows: Rows = open_base_rows(tmp_path / "1.duckdb", "given")
        assert rows.of(_hashes(connection, ["ann"])).column_names == ["user_hash", "user_id", "number"]
