"""Tests of local lakes, run on an object store: the log fences there, too (`atomic`, `fenced`)."""

# ruff: noqa: F401 - pytest collects the imported tests

import pytest

from pipelines.errors import CorruptionError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.files import open_file, read_file
from pipelines.lake.stores import read_chunks, resolve_store
from pipelines.lake.tables import Lake, create_lake, data_files
from pipelines.reputation.lake_views import open_lake_views
from tests.lake.builders import commit, make_events
from tests.lake.test_commit import (
    test_a_commit_publishes_rows_checkpoint_and_record_together,
    test_a_concurrent_commit_of_another_topic_partition_forces_a_retry,
    test_a_concurrent_compaction_forces_a_retry,
    test_a_lost_response_is_recognised,
    test_a_snapshot_is_one_version_with_its_records,
    test_concurrent_appends_all_succeed,
    test_concurrent_completion_of_the_records_is_harmless,
    test_two_ingesters_on_one_checkpoint_are_fenced,
)
from tests.lake.test_transactions import (
    test_a_log_that_starts_later_is_a_temporary_error,
    test_numbers_are_forgotten_with_their_handle,
    test_the_stored_id_is_that_of_the_table,
)
from tests.lake.test_upkeep import (
    filled,
    test_a_compaction_that_comes_second_gives_up,
    test_a_reader_of_an_old_snapshot_continues,
    test_a_stale_compaction_cannot_commit,
    test_concurrent_compactions_neither_double_nor_lose_rows,
    test_ingest_beside_a_compaction_continues,
    test_vacuum_removes_what_was_replaced_before_the_retention,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["la ke", "Zürich", "env=prod"])
def test_a_lake_may_have_any_name(uri: str, name: str) -> None:
    """The library writes it with URL escapes, which the other readers of a lake must not take for the name."""
    lake = create_lake(f"{uri}/{name}")
    for number in range(2):
        commit(lake, lake.table("events"), f"b{number}", make_events([f"e{number}"], first_offset=number))
    with open_lake_views(take_snapshot(lake)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (2,)


def test_a_damaged_object_is_no_outage(lake: Lake) -> None:
    """Whether its checksum or the library says so, which has one kind of error for damage and an outage."""
    commit(lake, lake.table("events"), "b1", make_events([f"e{number}" for number in range(50)]))
    [file] = data_files(lake.table("events"))
    [content] = read_chunks(file)
    for damaged in (file, f"{lake.folder('events')}/without-checksum.parquet"):
        store, path = resolve_store(damaged)
        with store.open_output_stream(path, compression=None) as stream:
            stream.write(content[:4] + b"\xff" * 8 + content[12:])
        with pytest.raises(CorruptionError, match=f"^{damaged} is damaged "):
            read_file(damaged)


def test_an_object_is_read_in_parts_without_all_of_it(lake: Lake) -> None:
    """Not even to compare its checksum: the store compares its own."""
    commit(lake, lake.table("events"), "b1", make_events(["e"]))
    [file] = data_files(lake.table("events"))
    other = f"{lake.folder('events')}/other.00000000.parquet"
    store, path = resolve_store(other)
    with store.open_output_stream(path, compression=None) as stream:
        stream.write(b"".join(read_chunks(file)))
    with open_file(other) as opened:
        assert opened.metadata.num_rows == 1
