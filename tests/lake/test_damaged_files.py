"""A bit that flips in the values of a stored file is an error that names the file, never other values."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import CorruptionError
from pipelines.lake.files import read_file, read_footer, require_intact, write_file
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


@pytest.mark.parametrize("read", [read_file, read_footer, require_intact])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda file: file[:-20], lambda file: b"\0" * len(file)])
def test_a_file_without_its_end_is_named(
    stored: Path, read: Callable[[str], object], damage: Callable[[bytes], bytes]
) -> None:
    """Also where only its footer is read, with which a compaction begins."""
    stored.write_bytes(damage(stored.read_bytes()))
    with pytest.raises(CorruptionError, match=f"^{stored} is damaged "):
        read(str(stored))


def test_a_name_of_a_column_that_is_not_utf8(stored: Path) -> None:
    """Its error is none of Parquet, nor of Arrow."""
    content = stored.read_bytes()
    at = content.index(b"batch_id")
    stored.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
    with pytest.raises(CorruptionError, match=f"^{stored} is damaged "):
        read_file(str(stored))


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


def test_memory_is_that_of_a_row_group(tmp_path: Path) -> None:
    """Of dead letters, a record of which may take 128 MiB: a file may have many."""
    size, used = 20 << 20, pa.default_memory_pool()
    write_file(str(tmp_path), pa.table({"value": [bytes(size)] * 8}), "a")
    measured = pa.proxy_memory_pool(used)
    pa.set_memory_pool(measured)
    try:
        require_intact(str(tmp_path / "a.parquet"))
    finally:
        pa.set_memory_pool(used)
    assert size <= measured.max_memory() < 4 * size
