"""A bit that flips in a stored file is an error that names the file, never other values, nor written elsewhere."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import AddAction

from pipelines.errors import CorruptionError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.copying import copy_lake
from pipelines.lake.files import compare_checksums, read_file, read_footer, require_intact, write_file
from pipelines.lake.table_files import list_files
from pipelines.lake.tables import Lake, data_files
from pipelines.lake.upkeep import compact, replace_files
from pipelines.operate.verify import verify
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scores import scores
from pipelines.settings import Settings
from tests.lake.builders import START, commit, make_events

_AS_OF = START + timedelta(days=30)


@contextmanager
def _flipped(path: Path, position: int, bit: int) -> Iterator[None]:
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    yield
    path.write_bytes(content)


def _commit(lake: Lake, name: str) -> Path:
    before = set(data_files(lake.table("events")))
    commit(lake, lake.table("events"), name, make_events([f"{name}{n}" for n in range(50)]))
    [file] = set(data_files(lake.table("events"))) - before
    return Path(file)


@pytest.fixture
def stored(lake: Lake) -> Path:
    """Return the file of a lake with one commit."""
    return _commit(lake, "b")


@pytest.mark.parametrize("read", [read_file, require_intact, lambda path: compare_checksums([path])])
def test_no_bit_may_flip(stored: Path, read: Callable[[str], object]) -> None:
    """In a value, a header or the footer, which would rename a column, so that it is missing."""
    read(str(stored))
    some = np.random.default_rng(1)
    for position in some.choice(stored.stat().st_size, 200, replace=False).tolist():
        with (
            _flipped(stored, position, int(some.integers(8))),
            pytest.raises(CorruptionError, match=rf"^{stored} is damaged \(its bytes have the checksum"),
        ):
            read(str(stored))


def test_another_file_in_its_place(stored: Path) -> None:
    """As when a copy is restored to the wrong name."""
    other = write_file(str(stored.parent), read_file(str(stored)).slice(1), "a")
    stored.write_bytes((stored.parent / other[0].path).read_bytes())
    with pytest.raises(CorruptionError, match=f"^{stored} is damaged "):
        read_file(str(stored))


def test_a_folder_has_no_checksum(tmp_path: Path) -> None:
    """Whatever its name: only the name of a file has one."""
    folder = str(tmp_path / "copy.00000000.parquet")
    [action] = write_file(folder, pa.table({"a": [1]}), "a")
    assert len(read_file(f"{folder}/{action.path}")) == 1


@pytest.mark.parametrize("read", [read_file, read_footer, require_intact])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda file: file[:-20], lambda file: b"\0" * len(file)])
def test_a_file_without_its_end_is_named(
    stored: Path, read: Callable[[str], object], damage: Callable[[bytes], bytes]
) -> None:
    """Also where only its footer is read, with which a compaction begins."""
    stored.write_bytes(damage(stored.read_bytes()))
    with pytest.raises(CorruptionError, match=f"^{stored} is damaged "):
        read(str(stored))


def _as_other_engines_write(lake: Lake, stored: Path) -> Path:
    """Give a file of the lake a name without checksum."""
    table = lake.table("events")
    [file] = [file for file in list_files(table) if stored.name == file.path]
    other, stats = stored.rename(stored.with_name("part-0.parquet")), json.dumps({"numRecords": file.rows})
    replace_files(table, [file], [AddAction(other.name, file.size, {}, 0, False, stats)], {}, data_change=False)
    return other


def test_a_column_that_is_renamed_in_a_file_without_checksum(lake: Lake, stored: Path) -> None:
    """A compaction would write nulls in place of its values; a name that is not UTF-8 is no error of Parquet."""
    _commit(lake, "c")
    other = _as_other_engines_write(lake, stored)
    content = other.read_bytes()
    other.write_bytes(content.replace(b"action_type", b"action_typf"))
    with pytest.raises(CorruptionError, match=rf"^{other} is damaged \(it has 50 of 50 rows and no action_type\)"):
        compact(lake, 2)
    other.write_bytes(content.replace(b"action_type", b"action_typ\xe5"))
    with pytest.raises(CorruptionError, match=f"^{other} is damaged "):
        read_file(str(other))


def test_nothing_takes_damage_over(lake: Lake, stored: Path, tmp_path: Path) -> None:
    """Neither a compaction, a copy, a rebuild nor a refresh, nor scores that are only shown."""
    warehouse, snapshot = tmp_path / "warehouse.duckdb", take_snapshot(lake)
    derive(snapshot, load_policy("default"), _AS_OF, tmp_path / "other.duckdb")
    later = _commit(lake, "c")
    version, newer = lake.table("events").version(), take_snapshot(lake)

    def refresh() -> None:
        with open_draft(tmp_path / "other.duckdb") as draft:
            draft.refresh(newer, load_policy("default"), _AS_OF)

    readers: list[Callable[[], object]] = [
        lambda: compact(lake, 2),
        lambda: copy_lake(lake, str(tmp_path / "copy")),
        lambda: derive(newer, load_policy("default"), _AS_OF, warehouse),
        lambda: scores(newer, load_policy("default"), _AS_OF),
        refresh,
    ]
    size = later.stat().st_size
    footer = int.from_bytes(later.read_bytes()[-8:-4], "little")
    for position in (size // 4, size - footer // 2):
        for read in readers:
            with _flipped(later, position, 3), pytest.raises(CorruptionError, match=f"{later} is damaged"):
                read()
    assert lake.table("events").version() == version
    for read in readers[1:]:
        read()
    assert stored.exists()


def test_verify_names_a_damaged_file(lake: Lake, stored: Path) -> None:
    """Its other checks would see values that were never written, or blame the index."""
    settings = Settings(data_dir=Path(lake.root).parent)
    assert all(check.passed is not False for check in verify(settings))
    with (
        _flipped(stored, stored.stat().st_size // 4, 0),
        pytest.raises(CorruptionError, match=r"\.parquet is damaged \(.*: restore this file from a copy"),
    ):
        next(verify(settings))


def test_a_file_is_in_memory_once(tmp_path: Path) -> None:
    """In Arrow's memory, not in Python's, too: a merge reads files of up to 128 MiB."""
    size = 20 << 20
    [action] = write_file(str(tmp_path), pa.table({"value": [np.random.default_rng(1).bytes(size)], "n": [1]}), "a")
    tracemalloc.start()
    try:
        read_file(str(tmp_path / action.path), ["n"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < size


def test_memory_is_that_of_a_row_group(tmp_path: Path) -> None:
    """Of dead letters, a record of which may take 128 MiB: a file may have many, and no checksum."""
    size, used, path = 20 << 20, pa.default_memory_pool(), tmp_path / "a.parquet"
    pq.write_table(pa.table({"value": [bytes(size)] * 8}), path, row_group_size=1)
    measured = pa.proxy_memory_pool(used)
    pa.set_memory_pool(measured)
    try:
        require_intact(str(path))
    finally:
        pa.set_memory_pool(used)
    assert size <= measured.max_memory() < 4 * size
