"""An erasure reads what it touches: files of the users, and no others (`erasable`)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines.contract.digest import Digests
from pipelines.contract.schema import REJECTED
from pipelines.lake import erasure, files, removal, user_files
from pipelines.lake.commit import append
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erased_events import removals_since
from pipelines.lake.erasure import count_remaining_rows, erase_users
from pipelines.lake.index import DedupIndex, forget_erased, open_index
from pipelines.lake.index_check import compare_indexes
from pipelines.lake.runs import Runs
from pipelines.lake.tables import Lake, create_lake, data_files
from pipelines.lake.tokens import contain_any, tokenize_bytes
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.lake.upkeep import compact, vacuum
from pipelines.lake.user_files import find_files, list_users
from pipelines.settings import Settings
from tests.lake.builders import commit, make_events, read_rows

_USERS = st.integers(0, 6).map("user {}'\"é".format)
_BATCHES = st.lists(st.lists(_USERS, min_size=1, max_size=12), min_size=1, max_size=5)


def _events(users: list[str], first: int) -> pa.Table:
    """Return an event for each user, numbered from `first` on, three hours apart."""
    events = make_events([f"e{first + n}" for n in range(len(users))], first_offset=first)
    at = events.schema.get_field_index("user_id")
    return events.set_column(at, "user_id", pa.array(users))


def _fill(lake: Lake, batches: list[list[str]]) -> None:
    first = 0
    for number, users in enumerate(batches):
        commit(lake, lake.table("events"), f"b{number}", _events(users, first))
        first += len(users)


def _tombstones(lake: Lake, folder: Path) -> Tombstones:
    return open_tombstones(lake, Settings(data_dir=folder))


@contextmanager
def _opened(folder: Path, lake: Lake) -> Iterator[DedupIndex]:
    index = open_index(folder, lake, lake.table("events"))
    try:
        yield index
    finally:
        index.close()


def _assert_exact(folder: Path, lake: Lake, slots: int) -> None:
    """Assert that each index has exactly the lake's events, as `karmalake verify` compares them."""
    snapshot = take_snapshot(lake)
    commits = pa.concat_tables(map(files.read_file, snapshot.files["commits"]))
    versions = dict(zip(commits["batch_id"].to_pylist(), commits["version"].to_pylist(), strict=True))
    compared = compare_indexes(folder, lake, lake.table("events"), versions)
    assert [(each.missing, each.extra) for each in compared] == [(0, 0)] * slots


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives an item for each reset of an index."""
    made: list[str] = []
    reset = DedupIndex._reset

    def counted(index: DedupIndex) -> None:
        made.append(index.folder.name)
        reset(index)

    monkeypatch.setattr(DedupIndex, "_reset", counted)
    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each file of `events` that an erasure reads whole."""
    paths: list[str] = []
    read = removal.read_rows

    def counted(name: str, path: str, columns: list[str] | None = None) -> pa.Table:
        if columns is None and name == "events":
            paths.append(Path(path).name)
        return read(name, path, columns)

    monkeypatch.setattr(removal, "read_rows", counted)
    return paths


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES, erased=st.sets(_USERS, max_size=3), before=st.sets(_USERS, max_size=2), merged=st.booleans())
def test_equals_an_erasure_that_reads_everything(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[str]],
    erased: set[str],
    before: set[str],
    merged: bool,
) -> None:
    """For any lake, erasing by filters leaves exactly the rows and ids that a filter over all rows leaves (`once`)."""
    folder = tmp_path_factory.mktemp("erasure")
    lake = create_lake(folder / "lake")
    _fill(lake, batches)
    erase_users(lake, _tombstones(lake, folder), before)
    with _opened(folder / "index", lake), _opened(folder / "index", lake):
        pass  # two slots
    if merged:
        compact(lake, 2)
    expected = [row for row in read_rows(lake) if row["user_id"] not in erased]
    removed = erase_users(lake, _tombstones(lake, folder), erased).events
    assert read_rows(lake) == expected
    assert removed == sum(user in erased - before for users in batches for user in users)
    forget_erased(folder / "index", lake, lake.table("events"))
    _assert_exact(folder / "index", lake, 2)
    assert count_remaining_rows(lake, _tombstones(lake, folder)).events == 0


@pytest.mark.slow
def test_only_files_of_the_users_are_read_and_each_once(lake: Lake, tmp_path: Path, opened: list[str]) -> None:
    """Of twenty files, the two that hold the users are read whole, each once, and only those are replaced."""
    _fill(lake, [[f"u{n}"] for n in range(18)] + [["a", "b"], ["a", "u1"]])
    before = set(data_files(lake.table("events")))
    assert erase_users(lake, _tombstones(lake, tmp_path), ["a", "b", "nobody"]).events == 3
    replaced = {Path(path).name for path in before - set(data_files(lake.table("events")))}
    assert sorted(opened) == sorted(replaced)
    assert len(opened) == len(set(opened)) == 2


@pytest.mark.slow
def test_filters_exclude_row_groups(lake: Lake) -> None:
    """Of twenty files with a row group each, DuckDB scans those of the user, and a few false positives at most."""
    _fill(lake, [[f"u{n}", f"w{n}"] for n in range(20)])
    paths = list(data_files(lake.table("events")))
    with duckdb.connect() as connection:
        profiled = connection.execute(
            f"EXPLAIN ANALYZE {user_files._FILES_WITH.format(column='user_id')}",
            {"paths": paths, "wanted": ["u3", "v1"]},
        ).fetchall()
    found = re.search(r"Row Groups Scanned: (\d+) / (\d+)", profiled[0][1])
    assert found
    scanned, of = map(int, found.groups())
    assert 1 <= scanned <= 10
    assert of == len(paths)


def test_files_without_filters_are_read_until_compaction(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of an earlier release have no filter: their users are found; a compaction writes filters."""
    with monkeypatch.context() as patch:
        patch.setattr(files, "_BLOOM_COLUMN", "none")
        _fill(lake, [["a", "b"], ["c"], ["a"]])
    paths = list(data_files(lake.table("events")))
    assert not any(map(_has_filter, paths))
    assert len(find_files(paths, ["a", "c"])) == 3
    assert set(list_users(paths)) == {"a", "b", "c"}
    compact(lake, 2)
    assert all(map(_has_filter, data_files(lake.table("events"))))


def _has_filter(path: str) -> bool:
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    return any(column.path_in_schema == "user_id" and column.bloom_filter_offset is not None for column in columns)


@pytest.mark.slow
def test_users_known_by_tombstones_only_are_erased(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill before the commit, erasing another user removes the rows of the first too (`erasable`)."""
    _fill(lake, [["a", "b"], ["c"], ["a"]])
    with monkeypatch.context() as patch:
        patch.setattr(removal, "replace_files", _kill)
        with pytest.raises(KeyboardInterrupt):
            erase_users(lake, _tombstones(lake, tmp_path), ["a"])
    assert count_remaining_rows(lake, _tombstones(lake, tmp_path)).events == 2
    assert erase_users(lake, _tombstones(lake, tmp_path), ["b"]).events == 3
    assert [row["user_id"] for row in read_rows(lake)] == ["c"]


def _kill(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_orphaned_conflicts_are_removed_also_after_a_kill(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conflict of another user under an erased event_id is removed, by the erasure or by the one after a kill."""
    _fill(lake, [["a", "b"], ["c"]])
    append(lake, "conflicts", _events(["b", "b"], 0), "b0")  # under the event_ids of a and b
    take_snapshot(lake)
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_conflict_search", _kill)
        with pytest.raises(KeyboardInterrupt):
            erase_users(lake, _tombstones(lake, tmp_path), ["a"])
    assert count_remaining_rows(lake, _tombstones(lake, tmp_path)).conflicts == 1
    assert erase_users(lake, _tombstones(lake, tmp_path), ["nobody"]).conflicts == 1
    assert [row["event_id"] for row in read_rows(lake, "conflicts")] == ["e1"]
    append(lake, "conflicts", _events(["a"], 2), "b1")
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "take_snapshot", _kill)  # the event_ids of all events are not read now
        assert erase_users(lake, _tombstones(lake, tmp_path), ["c"]).conflicts == 1


@pytest.mark.slow
def test_no_index_is_rebuilt(lake: Lake, tmp_path: Path, rebuilds: list[str]) -> None:
    """A closed index, an open one, and one that is behind lose exactly the erased ids, before and after catching up.

    An id may be used again after the erasure: then it is known.
    """
    folder = tmp_path / "index"
    _fill(lake, [["a", "b", "a"]])
    with _opened(folder, lake), _opened(folder, lake), _opened(folder, lake):
        pass
    commit(lake, lake.table("events"), "b1", _events(["a", "c"], 3))
    rebuilds.clear()
    with _opened(folder, lake) as slot_0:
        with _opened(folder, lake):
            pass  # slot-1 has both batches, slot-2 has one
        erase_users(lake, _tombstones(lake, tmp_path), ["a"])
        _assert_exact(folder, lake, 3)  # before any index has removed them
        forget_erased(folder, lake, lake.table("events"))
        _assert_exact(folder, lake, 3)
        assert [len(slot_0.runs.runs), sum(map(len, slot_0.runs.runs))] == [
            1,
            5,
        ]  # it is in use, so it removes them next
        commit(lake, lake.table("events"), "b2", _events(["d"], 5).set_column(0, "event_id", pa.array(["e0"])))
        slot_0.catch_up(lake.table("events"))
        with _opened(folder, lake) as slot_1, _opened(folder, lake) as slot_2:
            assert [sum(map(len, slot.runs.runs)) for slot in (slot_0, slot_1, slot_2)] == [3, 3, 3]
            _assert_exact(folder, lake, 3)
    assert rebuilds == []


def test_an_index_is_rebuilt_if_the_ids_are_vacuumed(lake: Lake, tmp_path: Path, rebuilds: list[str]) -> None:
    """The file of the ids stays as long as the replaced files; an older index is rebuilt, exactly."""
    folder = tmp_path / "index"
    _fill(lake, [["a", "b"], ["a", "c"]])
    with _opened(folder, lake) as index:
        version = index.version
        erase_users(lake, _tombstones(lake, tmp_path), ["a"])
        events = lake.table("events")
        vacuum(lake, 24)
        removals = removals_since(lake, version, events.version())
        assert [sorted(each.removed["event_id"].to_pylist()) for each in removals] == [["e0", "e2"]]
        assert vacuum(lake, 0)
        with pytest.raises(FileNotFoundError):
            list(removals_since(lake, version, events.version()))
        _assert_exact(folder, lake, 0)
        rebuilds.clear()
        index.catch_up(events)
        assert rebuilds == ["slot-0"]
        _assert_exact(folder, lake, 1)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.sets(st.integers(0, 40), min_size=1), max_size=4), removed=st.sets(st.integers(0, 40)))
def test_removing_ids_from_runs(
    tmp_path_factory: pytest.TempPathFactory, runs: list[set[int]], removed: set[int]
) -> None:
    """Runs keep exactly the other ids with their payloads; the same high word does not confuse ids."""
    folder = tmp_path_factory.mktemp("runs")
    held = Runs(folder)
    for number, ids in enumerate(runs):
        held.add(_digests(ids, payload=number))
    held.wait_for_merges()
    held.remove(_digests(removed, payload=99))
    held.flush()
    found = [triple for run in held.runs for triple in run.words.T.tolist()]
    kept = [[at // 8, at % 8, number] for number, ids in enumerate(runs) for at in ids - removed]
    assert sorted(found) == sorted(kept)
    assert all(run.words.T.tolist() == sorted(run.words.T.tolist(), key=lambda word: word[:2]) for run in held.runs)
    held.remove_replaced_files()
    held.close()
    assert len(list(folder.glob("*.run"))) == len(held.runs)


def _digests(ids: set[int], payload: int) -> Digests:
    words = np.array([[at // 8, at % 8, payload] for at in sorted(ids)], np.uint64).reshape(-1, 3)
    return Digests(*np.ascontiguousarray(words.T))


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    letters=st.lists(
        st.fixed_dictionaries(
            {
                "key": st.none() | st.sampled_from([b"a", b"jane", b"b"]),
                "value": st.none() | st.binary(max_size=4).map(b"\xff%bjane".__mod__) | st.just(b"\xff \x04jane..?"),
                "headers": st.lists(
                    st.sampled_from([{"key": "jane", "value": b""}, {"key": "x", "value": b"b \xc3\xa9"}])
                ),
                "detail": st.none() | st.sampled_from(["no jane here", "nothing", "é"]),
            }
        ),
        max_size=6,
    ),
    users=st.sets(st.sampled_from(["jane", "é", "b", "nobody"]), max_size=3),
)
def test_a_letter_with_a_token_contains_it(letters: list[dict[str, object]], users: set[str]) -> None:
    """Skipping dead letters that do not contain a user_id skips none that has it as a token."""
    columns = [REJECTED.field(name) for name in ("key", "value", "headers", "detail")]
    rows = pa.Table.from_pylist(letters, pa.schema(columns))
    suspects = contain_any(rows, users).to_pylist()
    for letter, suspected in zip(rows.to_pylist(), suspects, strict=True):
        headers = [text for header in letter["headers"] for text in (header["key"].encode(), header["value"])]
        texts = [letter["key"], letter["value"], (letter["detail"] or "").encode(), *headers]
        tokens = {token for text in texts for token in tokenize_bytes(text or b"")}
        assert suspected or not tokens & {user.encode() for user in users}


def test_letters_of_users_known_by_name_are_searched_only_if_they_contain_it(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of a hundred undecodable letters contain the name, one as a word: two are searched, and it is removed."""
    searched: list[int] = []
    mentions = Tombstones.mentions_erased
    counted = lambda self, letter: searched.append(1) or mentions(self, letter)  # noqa: E731
    values = [b"\xff %d" % n for n in range(98)] + [b"\xff jane", b"\xff jane-2"]
    places = {"topic_id": "t", "topic": "t", "topic_partition": 0, "offset": 0}
    rows = [places | {"value": value, "headers": [], "reason": "undecodable", "detail": ""} for value in values]
    append(lake, "dead_letters", pa.Table.from_pylist(rows, REJECTED), "b0")
    monkeypatch.setattr(Tombstones, "mentions_erased", counted)
    assert erase_users(lake, _tombstones(lake, tmp_path), ["jane"]).dead_letters == 1
    assert len(searched) == 2
    tombstones = _tombstones(lake, tmp_path)
    assert erase_users(lake, tombstones, [], tombstones.digests).dead_letters == 0
    assert len(searched) == 2 + 99  # named by tombstones, all are searched


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """A missing file raises OSError, as reading it does: no user is taken to have no rows."""
    with pytest.raises(OSError, match=r"missing\.parquet"):
        find_files([str(tmp_path / "missing.parquet")], ["a"])
    with pytest.raises(OSError, match=r"missing\.parquet"):
        list(list_users([str(tmp_path / "missing.parquet")]))
