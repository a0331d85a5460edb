"""Resolving the store of a lake."""

from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.lake.stores import list_files, resolve_store, temporary_folder


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed endpoint takes effect at once, as it does in the other libraries that open the lake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, path = resolve_store("s3://lakes/mine")
    assert path == "lakes/mine"
    assert resolve_store("s3://lakes/mine")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert not resolve_store("s3://lakes/mine")[0].equals(first)


def test_a_temporary_folder_is_removed(tmp_path: Path) -> None:
    """It is new each time, and is removed with its files, also after an error."""
    with temporary_folder(str(tmp_path)) as first, temporary_folder(str(tmp_path)) as second:
        assert first != second
        for name in ("b.parquet", "a.parquet", ".a.parquet.crc"):
            Path(first, name).touch()
        assert list_files(first, ".parquet") == [f"{first}/a.parquet", f"{first}/b.parquet"]
    with suppress(UsageError), temporary_folder(str(tmp_path / "deeper")):
        raise UsageError("nothing is written")
    assert [path.name for path in tmp_path.rglob("*")] == ["deeper"]
