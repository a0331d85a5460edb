"""A bit that flips in the values of a stored file is an error that names the file, never other values."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.errors import CorruptionError
from pipelines.lake.files import read_file, require_intact
from pipelines.lake.tables import Lake, data_files
from pipelines.operate.verify import verify
from pipelines.settings import Settings
from tests.lake.builders import commit, make_events


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def stored(lake: Lake) -> Path:
    """Return the file of a lake with one commit."""
    commit(lake, lake.table("events"), "b1", make_events([f"e{n}" for n in range(50)]))
    [file] = data_files(lake.table("events"))
    return Path(file)


def _columns(stored: Path) -> list[pq.ColumnChunkMetaData]:
    group = pq.read_metadata(stored).row_group(0)
    return [group.column(number) for number in range(group.num_columns)]


def test_a_bit_that_flips_changes_no_value(stored: Path) -> None:
    """Whether it is in a value, a length or a header; the footer, which is small, has no checksum."""
    rows = read_file(str(stored))
    size = max(each.data_page_offset + each.total_compressed_size for each in _columns(stored))
    for position in range(0, size, size // 60):
        _flip(stored, position)
        try:
            assert read_file(str(stored)).equals(rows)
        except CorruptionError as error:
            assert str(error).startswith(f"{stored} is damaged (")  # noqa: PT017 - others have no effect
        _flip(stored, position)


def test_verify_names_a_damaged_file(lake: Lake, stored: Path) -> None:
    """Its other checks would see values that were never written, or blame the index."""
    settings = Settings(data_dir=Path(lake.root).parent)
    assert all(check.passed is not False for check in verify(settings))
    for column in _columns(stored):
        last = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        _flip(stored, last)
        with pytest.raises(CorruptionError, match=r"\.parquet is damaged \(.*: restore this file from a copy"):
            require_intact(str(stored))
        with pytest.raises(CorruptionError, match=str(stored)):
            next(verify(settings))
        _flip(stored, last)
