"""Files of history on an object store, found by the settings that the lake uses (`once`)."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from pipelines.backfill import backfill
from pipelines.errors import UsageError
from pipelines.inputs import find_files
from pipelines.lake.stores import resolve_store
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.draining import query

_MAPPING = ColumnMapping("u", "t", "iso", "Voted")


def _put(address: str, data: bytes) -> None:
    store, path = resolve_store(address)
    with store.open_output_stream(path, compression=None) as out:
        out.write(data)


@pytest.mark.slow
def test_objects_folders_and_delta_tables_are_loaded(tmp_path: Path, uri: str) -> None:
    """Each object is a file that its content identifies; the values of folder names are columns."""
    settings = Settings(data_dir=tmp_path / "data")
    _put(f"{uri}/in/u=a/x.csv.gz", gzip.compress(b"t\n2024-01-01\n"))
    _put(f"{uri}/in/u=b/x.csv", b"t\n2024-01-02\n")
    write_deltalake(f"{uri}/delta", pa.table({"u": ["c"], "t": ["2024-01-03"]}))
    addresses = find_files([f"{uri}/in/", f"{uri}/delta"])
    assert addresses[:2] == [f"{uri}/in/u=a/x.csv.gz", f"{uri}/in/u=b/x.csv"]
    for commits in (1, 0):
        assert [backfill(settings, address, _MAPPING) for address in addresses] == [commits] * 3
    assert query(settings, "SELECT user_id FROM events ORDER BY ALL") == [("a",), ("b",), ("c",)]


def test_an_object_that_does_not_exist_is_named(tmp_path: Path, uri: str) -> None:
    """Without a traceback; a pattern is not read as one."""
    with pytest.raises(UsageError, match=r"none\.csv: there is no such object$"):
        backfill(Settings(data_dir=tmp_path), f"{uri}/none.csv", _MAPPING)
    with pytest.raises(UsageError, match=r"\*\.csv: there is no such object: patterns are for local files; give the f"):
        backfill(Settings(data_dir=tmp_path), f"{uri}/*.csv", _MAPPING)
