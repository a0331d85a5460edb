"""Histories compared with a list of all events: every look-up, after any syncs, merges and restarts."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake import kept_files
from pipelines.lake.merges import Merges
from pipelines.lake.tables import Snapshot
from pipelines.reputation import histories as module
from pipelines.reputation.histories import Histories, delete_if_outdated, last_batch, read_commits
from pipelines.reputation.policy.tables import load_tables
from pipelines.reputation.related_events import define_completions
from tests.reputation.history import NOW, Event, at
from tests.reputation.policies import policy
from tests.reputation.test_incremental import GATE, lake

_USERS = ("ann", "bob", "cid", "dan", "eve")
_BODIES = st.tuples(
    st.sampled_from(_USERS),
    st.sampled_from(("Done", "Rated", "Retracted", "Corrected")),
    st.integers(NOW - 9, NOW + 9),
    st.fixed_dictionaries({"ride_id": st.sampled_from(("r1", "r2")), "target_event_id": st.integers(0, 20).map(str)}),
)
_BATCHES = st.lists(st.lists(_BODIES, max_size=8), min_size=1, max_size=8)
_ENDS = st.lists(st.sampled_from(("stays open", "closed", "killed")), min_size=8, max_size=8)
_SIZES = st.tuples(st.sampled_from((0, 3, 100)), st.sampled_from((0, 5, 100)))
_GATED = policy(completion=GATE)
_KEYS = frozenset({"ride_id", "target_event_id"})


@contextmanager
def _connected() -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """Yield a connection with a policy whose ratings need a completed ride, and what its links depend on."""
    with duckdb.connect() as connection:
        load_tables(connection, _GATED.at(at(NOW)))
        yield connection, define_completions(connection, _GATED.at(at(NOW)))


@contextmanager
def _folder(sizes: tuple[int, int]) -> Iterator[Path]:
    """Yield an empty folder; sizes: the events above which a segment is in files, and is merged in the thread."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_MEMORY_ROWS", sizes[0])
        patched.setattr(module, "_FOREGROUND_MERGE_ROWS", sizes[1])
        yield Path(folder)


def _commits(batches: list[list[tuple[str, str, int, dict[str, str]]]]) -> list[list[Event]]:
    numbers = iter(range(1000))
    return [[Event(str(next(numbers)), *body) for body in batch] for batch in batches]


def _hashes(connection: duckdb.DuckDBPyConnection, users: Iterable[str]) -> np.ndarray:
    found = connection.execute("SELECT hash(unnest(CAST(? AS VARCHAR[])))", [list(users)]).fetchall()
    return np.unique(np.array([value for (value,) in found], np.uint64))


def _ids(events: pa.Table) -> list[str]:
    return sorted(events["event_id"].to_pylist())


@pytest.mark.slow
@settings(deadline=None)
@given(_BATCHES, _ENDS, _SIZES, st.integers(0, 4))
def test_every_look_up_equals_a_scan(
    batches: list[list[tuple[str, str, int, dict[str, str]]]], ends: list[str], sizes: tuple[int, int], compacted: int
) -> None:
    """Whether rows are in memory, in files or merged in the thread; a killed process loses no event."""
    commits = _commits(batches)
    with _folder(sizes) as folder, _connected() as (connection, links):
        store = Histories(folder / "histories")
        for number, end in zip(range(1, len(commits) + 1), ends, strict=False):
            snapshot = lake(folder / "lake", commits[:number], compacted=min(compacted, number))
            read_commits(connection, snapshot)
            store.sync(connection, snapshot, links, _KEYS)
            _assert_equals_a_scan(connection, store, commits[:number])
            if end != "stays open":
                store = _reopened(store, folder / "histories", end)
        store.close()


def _reopened(store: Histories, folder: Path, end: str) -> Histories:
    """Close the histories, or leave them as a kill would: what was not written to files is lost."""
    if end == "closed":
        store.close()
    else:
        store._merges.close()
    return Histories(folder)


def _assert_equals_a_scan(connection: duckdb.DuckDBPyConnection, store: Histories, commits: list[list[Event]]) -> None:
    events = [(event, version) for version, batch in enumerate(commits, 1) for event in batch]
    some = _hashes(connection, _USERS[:2])
    counts = [sum(event.user_id == user for event, _ in events) for user in _USERS]
    by_user = [int(store.count_of(_hashes(connection, [user]))[0]) for user in _USERS]
    assert by_user == counts
    assert _ids(store.events_of(some)) == sorted(event.event_id for event, _ in events if event.user_id in _USERS[:2])
    for after in range(len(commits) + 1):
        new = [e for e, version in events if e.t < NOW and (version > after or e.t >= NOW - 3)]
        assert _ids(store.events_after(after, NOW - 3, NOW)) == sorted(event.event_id for event in new)
        users = store.changed_users(after, [(NOW - 3, NOW)], NOW)
        assert users.tolist() == _hashes(connection, {event.user_id for event in new}).tolist()
    ids = [str(number) for number in range(0, len(events), 3)]
    named = store.events_with_ids(some, pa.array(ids, pa.large_string()))
    assert _ids(named) == sorted(e.event_id for e, _ in events if e.user_id in _USERS[:2] and e.event_id in ids)
    _assert_links_equal_a_scan(connection, store, [event for event, _ in events])


def _assert_links_equal_a_scan(connection: duckdb.DuckDBPyConnection, store: Histories, events: list[Event]) -> None:
    """Events are found by the ride that they name and, if they withdraw another event, by that event."""
    for kind, actions in {"gated": {"Rated", "Corrected"}, "completing": {"Done", "Corrected"}}.items():
        for ride_id in ("r1", "r2"):
            links = _hashed_links(connection, kind, ride_id)
            expected = [e for e in events if e.action_type in actions and e.metadata["ride_id"] == ride_id]
            assert _ids(store.events_linked(links)) == sorted(event.event_id for event in expected)
            users = _hashes(connection, {event.user_id for event in expected})
            assert store.users_linked(links).tolist() == users.tolist()
    for target in ("0", "5"):
        links = _hashed_links(connection, "event", target)
        withdrawing = [e for e in events if e.action_type in {"Retracted", "Corrected"}]
        expected = [e.event_id for e in withdrawing if e.metadata["target_event_id"] == target]
        assert _ids(store.events_linked(links)) == sorted(expected)


def _hashed_links(connection: duckdb.DuckDBPyConnection, kind: str, value: str) -> np.ndarray:
    return np.array(connection.execute("SELECT hash(?, ?)", [kind, value]).fetchall()[0], np.uint64)


def _synced(
    folder: Path, commits: list[list[Event]], links: str | None = None, keys: frozenset[str] = _KEYS
) -> Histories:
    store = Histories(folder / "histories")
    with _connected() as (connection, own_links):
        snapshot = lake(folder, commits)
        read_commits(connection, snapshot)
        store.sync(connection, snapshot, own_links if links is None else links, keys)
    return store


@pytest.mark.slow
@settings(deadline=None)
@given(_BATCHES, _SIZES, st.sets(st.sampled_from(_USERS)), st.booleans())
def test_removed_users_leave_nothing(
    batches: list[list[tuple[str, str, int, dict[str, str]]]], sizes: tuple[int, int], erased: set[str], reopened: bool
) -> None:
    """Look-ups find exactly the events of the others, and no file contains a removed user_id (`erasable`)."""
    commits = _commits([[(f"{user}-user", *rest) for user, *rest in batch] for batch in batches])
    removed = sorted(f"{user}-user" for user in erased)
    with _folder(sizes) as folder, _connected() as (connection, links):
        store = Histories(folder / "histories")
        for number in range(1, len(commits) + 1):
            snapshot = lake(folder / "lake", commits[:number])
            read_commits(connection, snapshot)
            store.sync(connection, snapshot, links, _KEYS)
        ids = [event.event_id for batch in commits for event in batch if event.user_id in removed]
        store.remove(pa.array(ids, pa.large_string()), _hashes(connection, removed))
        if reopened:
            store.close()
            store = Histories(folder / "histories")
        remaining = [event for batch in commits for event in batch if event.user_id not in removed]
        users = _hashes(connection, {event.user_id for batch in commits for event in batch})
        assert _ids(store.events_of(users)) == sorted(event.event_id for event in remaining)
        assert (
            store.changed_users(0, [], NOW + 99).tolist()
            == _hashes(connection, {e.user_id for e in remaining}).tolist()
        )
        _assert_links_equal_a_scan(connection, store, remaining)
        store.close()
        contents = [file.read_bytes() for file in (folder / "histories").iterdir()]
        assert not [user for user in removed for content in contents if user.encode() in content]


_COMMITS = [[Event(f"{n}-{m}", "ann", "Done", NOW - m, {"ride_id": "r1"}) for m in range(3)] for n in range(4)]


def test_commits_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of later snapshots only new files are read; after a compaction, and with another lake, all are."""
    sources: list[tuple[str, ...]] = []
    stored_rows = module.stored_rows

    def noted(connection: duckdb.DuckDBPyConnection, table: str, snapshot: Snapshot) -> str:
        sources.append(snapshot.files[table])
        return stored_rows(connection, table, snapshot)

    monkeypatch.setattr(module, "stored_rows", noted)
    first, second = (lake(tmp_path / name, _COMMITS) for name in ("first", "second"))
    (a,), (b,) = first.files["commits"], second.files["commits"]
    with duckdb.connect() as connection:
        for files in ((a,), (a,), (a, b), (b,)):
            read_commits(connection, replace(first, files={"commits": files}))
    assert sources == [(a,), (b,), (b,)]


def test_other_links_rebuild_the_store(tmp_path: Path) -> None:
    """Links that were computed for another policy are not used."""
    _synced(tmp_path, _COMMITS).close()
    store = _synced(tmp_path, _COMMITS, links="")
    assert [segment.links.shape for segment in store.segments] == [(2, 0)]
    store.close()


@pytest.mark.parametrize(
    ("keys", "held"),
    [({"rating"}, [("rating", "5")]), ({"rating", "none"}, [("rating", "5")]), (set[str](), [("rating", "5")])],
)
def test_only_metadata_at_the_keys_of_the_policy_are_held(tmp_path: Path, keys: set[str], held: object) -> None:
    """A policy that reads fewer keys continues with them, one that reads another key rebuilds the store."""
    texts = {"rating": "5", "text": "very long", "city": "berlin"}
    commits = [[Event(f"{n}", "ann", "Done", NOW, texts) for n in range(3)]]
    store = _synced(tmp_path, commits, keys=frozenset({"rating"}))
    store.close()
    continued = _synced(tmp_path, [*commits, [Event("3", "ann", "Done", NOW, texts)]], keys=frozenset(keys))
    with duckdb.connect() as connection:
        assert continued.events_of(_hashes(connection, ["ann"]))["metadata"].to_pylist() == [held] * 4
    was_rebuilt = continued.segments[0].name != store.segments[0].name
    assert was_rebuilt == (not keys <= {"rating"})
    continued.close()
    assert all(b"very long" not in file.read_bytes() for file in (tmp_path / "histories").iterdir())


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x"), lambda file: file.unlink()])
@pytest.mark.parametrize("suffix", [".events", ".users", ".times", ".links", "manifest.json"])
def test_a_damaged_store_is_rebuilt(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    """A missing or short file costs a rebuild, never an event."""
    _synced(tmp_path, _COMMITS).close()
    (file,) = (file for file in (tmp_path / "histories").iterdir() if file.name.endswith(suffix))
    damage(file)
    store = _synced(tmp_path, _COMMITS)
    assert sum(map(len, store.segments)) == 12
    store.close()


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_no_bit_that_flips_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Small files are compared at each start, large ones if they were not for a day (`incremental-equals-rebuild`)."""
    monkeypatch.setattr(kept_files, "_SMALL_BYTES", size)
    _synced(tmp_path, _COMMITS).close()
    shutil.copytree(tmp_path / "histories", tmp_path / "intact")
    some = np.random.default_rng(1)
    for _ in range(30):
        shutil.rmtree(tmp_path / "histories")
        shutil.copytree(tmp_path / "intact", tmp_path / "histories")
        file = some.choice(sorted((tmp_path / "histories").iterdir()))
        content = bytearray(file.read_bytes())
        content[some.integers(len(content))] ^= 1 << some.integers(8)
        file.write_bytes(content)
        os.utime(file, (0, 0))
        store = Histories(tmp_path / "histories")
        assert not store.segments
        store.close()


@pytest.mark.parametrize("foreground_rows", [0, 1000])
def test_a_merge_takes_no_damage_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, foreground_rows: int
) -> None:
    """A segment that has changed since the start leads to a rebuild, whichever thread merges it with a newer one."""
    monkeypatch.setattr(module, "_MEMORY_ROWS", 0)
    monkeypatch.setattr(module, "_FOREGROUND_MERGE_ROWS", foreground_rows)
    commits = [[Event(f"{version}-{n}", f"u{n}", "Done", NOW - 1) for n in range(6)] for version in range(3)]
    store = Histories(tmp_path / "histories")
    with _connected() as (connection, links):
        for number in range(1, 4):
            snapshot = lake(tmp_path / "lake", commits[:number])
            read_commits(connection, snapshot)
            store.sync(connection, snapshot, links, _KEYS)
            if number == 1:
                file = next((tmp_path / "histories").glob("*.events"))
                with file.open("r+b") as written:
                    written.seek(file.read_bytes().index(b"0-3"))
                    written.write(b"9")
        store._merges.thread.submit(int).result()  # after the merge in progress
        store.sync(connection, snapshot, links, _KEYS)
        ids = _ids(store.events_of(_hashes(connection, [f"u{n}" for n in range(6)])))
    store.close()
    assert "has changed on disk" in caplog.text
    assert ids == sorted(event.event_id for batch in commits for event in batch)


def test_files_that_a_crash_left_are_removed(tmp_path: Path) -> None:
    """The folder holds the manifest and the files that it names."""
    store = _synced(tmp_path, _COMMITS)
    store.close()
    (tmp_path / "histories" / "00000099.events").write_bytes(b"left")
    Histories(tmp_path / "histories").close()
    named = {file.name for segment in store.segments for file in segment.files()}
    assert {file.name for file in (tmp_path / "histories").iterdir()} == named | {"manifest.json"}


def test_a_full_disk_at_the_end_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not stored is read from the lake again; the error is not raised."""
    store = _synced(tmp_path, _COMMITS)
    with monkeypatch.context() as patched:
        patched.setattr(module, "store_segment", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        store.close()
    assert "were not saved: [Errno 28] No space left" in caplog.text
    store = _synced(tmp_path, _COMMITS)
    assert sum(map(len, store.segments)) == 12
    store.close()


@pytest.mark.parametrize(("lake_id", "remains"), [("", True), ("other", False)])
def test_histories_of_another_lake_are_deleted(tmp_path: Path, lake_id: str, *, remains: bool) -> None:
    """They may contain users who have been erased (`erasable`)."""
    _synced(tmp_path, _COMMITS).close()
    delete_if_outdated(tmp_path / "histories", replace(lake(tmp_path, _COMMITS), lake_id=lake_id))
    assert (tmp_path / "histories").exists() is remains


@pytest.mark.slow
def test_few_segments_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many commits a look-up searches few segments, and the events of each are ordered by user."""
    monkeypatch.setattr(module, "_MEMORY_ROWS", 10)
    users = [f"user-{number % 7}" for number in range(64)]
    commits = [[Event(str(number), user, "Done", NOW - number)] for number, user in enumerate(users)]
    store = Histories(tmp_path / "histories")
    with _connected() as (connection, links):
        for number in range(8, 65, 8):
            snapshot = lake(tmp_path / "lake", commits[:number])
            read_commits(connection, snapshot)
            store.sync(connection, snapshot, links, _KEYS)
    assert len(store.segments) <= 4
    for segment in store.segments:
        assert (np.diff(segment.users.astype(object)) >= 0).all()
        assert segment.take(np.arange(len(segment)), ["user_hash"])["user_hash"].to_pylist() == segment.users.tolist()
    store.close()


def test_a_merge_that_fails_changes_nothing() -> None:
    """The error reaches the next caller, and the pieces are as before."""
    pieces = [[1], [2]]
    merges = Merges(lambda *_: [], lambda *_: 1 / 0, 0, pieces)  # type: ignore[arg-type,return-value]
    merges.merge_due()
    with pytest.raises(ZeroDivisionError):
        merges.finish()
    assert merges.pieces == pieces
    merges.close()


@pytest.mark.parametrize(("version", "batch"), [(0, None), (1, "a"), (4, "b"), (20_000, "b"), (20_001, "c")])
def test_the_last_batch_is_found_at_any_distance(version: int, batch: str | None) -> None:
    """The newest one up to a version, also after more versions without a batch than are looked at first."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TEMP TABLE committed AS FROM (VALUES ('c', 20001), ('a', 1), ('b', 4)) AS t (batch_id, version)"
        )
        assert last_batch(connection, version) == batch
