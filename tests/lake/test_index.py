"""The dedup index is exact, and only a cache of the lake (`once`)."""

import errno
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.boundary import file_lock
from pipelines.contract.digest import Digests
from pipelines.errors import ConfigurationError
from pipelines.lake import index as index_module
from pipelines.lake import runs as runs_module
from pipelines.lake.copying import copy_lake
from pipelines.lake.index import CONFLICT, DUPLICATE, NEW, DedupIndex, open_index
from pipelines.lake.manifest import manifest_text, read_manifest
from pipelines.lake.runs import Runs
from pipelines.lake.table_files import list_files
from pipelines.lake.tables import ERASURES_DONE, Lake
from pipelines.lake.upkeep import compact, replace_files
from tests.commands import Started
from tests.lake.builders import commit, make_events
from tests.services.process import ended

_IDS = st.tuples(st.integers(0, 12).map(str), st.sampled_from(["p", "q"]))
_BATCHES = st.lists(st.lists(_IDS, max_size=25), max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES)
def test_index_agrees_with_a_dict(
    lake: Lake, tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str]]]
) -> None:
    """For any batches, with repetitions within and between them, each event's kind is that found with a dict."""
    first_payload: dict[str, str] = {}
    with _opened(tmp_path_factory.mktemp("index"), lake) as index:
        for batch in batches:
            classification = index.classify(_table(batch))
            assert classification.kinds.tolist() == [_expected_kind(first_payload, *event) for event in batch]
            index.extend(classification.new, index.version)
            assert sum(len(run.digests) for run in index.runs.runs) == len(first_payload)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES)
def test_ids_with_equal_high_words_are_distinguished(
    lake: Lake, tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str]]]
) -> None:
    """If all ids had the same high word, the low word would distinguish them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "digest", _colliding_digest)
        test_index_agrees_with_a_dict.hypothesis.inner_test(lake, tmp_path_factory, batches)  # type: ignore[attr-defined]


def test_classify_alone_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    """Only extend adds digests: a batch that was classified and not committed is new the next time."""
    events = _table([("a", "p"), ("b", "p"), ("a", "p"), ("b", "q")])
    with _opened(tmp_path, lake) as index:
        for _ in range(2):
            assert index.classify(events).kinds.tolist() == [NEW, NEW, DUPLICATE, CONFLICT]


def test_runs_are_merged_geometrically(lake: Lake, tmp_path: Path) -> None:
    """After many batches a look-up reads few runs, and the folder holds no other files."""
    with _opened(tmp_path, lake) as index:
        for batch in range(100):
            index.extend(index.classify(make_events(f"{batch}-{n}" for n in range(10))).new, index.version)
        sizes = [len(run.digests) for run in index.runs.runs]
        assert sum(sizes) == 1_000
        assert all(older >= 2 * newer for older, newer in pairwise(sizes))
    assert {path.name for path in index.folder.glob("*.run")} == {run.path.name for run in index.runs.runs}


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES)
def test_merging_beside_ingest_does_not_change_the_classification(
    lake: Lake, tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str]]]
) -> None:
    """If the thread does every merge, each event's kind is still that found with a dict (`once`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "_FOREGROUND_MERGE_ROWS", 0)
        test_index_agrees_with_a_dict.hypothesis.inner_test(lake, tmp_path_factory, batches)  # type: ignore[attr-defined]


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES)
def test_filters_do_not_change_the_classification(
    lake: Lake, tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str]]]
) -> None:
    """If every run has a filter, each event's kind is still that found with a dict (`once`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "_FILTER_ROWS", 1)
        test_index_agrees_with_a_dict.hypothesis.inner_test(lake, tmp_path_factory, batches)  # type: ignore[attr-defined]


@pytest.mark.parametrize("filter_rows", [1, 100_000])
def test_no_bit_that_flips_changes_a_classification(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filter_rows: int
) -> None:
    """In any file, between two starts or while the index is open: it is rebuilt, and no known event is new (`once`)."""
    monkeypatch.setattr(runs_module, "_FILTER_ROWS", filter_rows)
    for number in range(3):
        commit(lake, lake.table("events"), f"b{number}", _numbered(number * 200, 100))
        with _opened(tmp_path / "index", lake):
            pass
    shutil.copytree(tmp_path / "index", tmp_path / "intact")
    some, expected = np.random.default_rng(1), [DUPLICATE] * 100 + [NEW] * 100
    for number in range(60):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "intact", tmp_path / "index")
        file = some.choice([path for path in (tmp_path / "index" / "slot-0").iterdir() if path.name != "lock"])
        is_open = number % 2 and file.suffix == ".run" and filter_rows == 1
        if not is_open:
            _flip(file, some)
        with _opened(tmp_path / "index", lake) as index:
            if is_open:
                _flip(file, some)
            for first in (0, 200, 400):
                found = index.classify_at(lake.table("events"), _numbered(first, 200))
                assert found.kinds.tolist() == expected


def test_a_merge_takes_no_damage_over(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that has changed on disk is not merged with a newer one: the index is rebuilt from the lake."""
    monkeypatch.setattr(runs_module, "_FILTER_ROWS", 1)
    events = lake.table("events")
    commit(lake, events, "b0", _numbered(0, 100))
    with _opened(tmp_path, lake) as index:
        new = index.classify(_numbered(100, 100)).new
        [run] = index.folder.glob("*.run")
        _flip(run, np.random.default_rng(1))
        record = commit(lake, events, "b1", _numbered(100, 100))
        index.extend(new, record.version)
        assert not index.runs.runs
        assert caplog.messages == [f"the index in {index.folder} is rebuilt from the lake: a run has changed on disk"]
        assert index.classify_at(events, _numbered(0, 200)).kinds.tolist() == [DUPLICATE] * 200


def _numbered(first: int, count: int) -> pa.Table:
    return make_events((f"e{n}" for n in range(first, first + count)), first_offset=first)


def _flip(file: Path, some: np.random.Generator) -> None:
    """Flip a bit of a file in place: what has it mapped sees that."""
    with file.open("r+b") as written:
        position = int(some.integers(file.stat().st_size))
        written.seek(position)
        [byte] = written.read(1)
        written.seek(position)
        written.write(bytes([byte ^ 1 << int(some.integers(8))]))


def test_a_large_run_has_a_filter_beside_it(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs have none; filters of runs that were merged are removed with them."""
    monkeypatch.setattr(runs_module, "_FILTER_ROWS", 10)
    with _opened(tmp_path, lake) as index:
        for size in (9, 3, 30, 2):
            index.extend(index.classify(make_events(f"{size}-{n}" for n in range(size))).new, index.version)
        assert [(len(run), run.filtered is not None) for run in index.runs.runs] == [(42, True), (2, False)]
    assert [path.stem for path in index.folder.glob("*.filter")] == [index.runs.runs[0].path.stem]


def test_no_batch_waits_for_a_large_merge(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread merges, batches are classified and added; closing uses the merged run."""
    go_on = threading.Event()
    merge = Runs._merge_durably
    monkeypatch.setattr(runs_module, "_FOREGROUND_MERGE_ROWS", 0)
    monkeypatch.setattr(Runs, "_merge_durably", lambda *runs: go_on.wait(60) and merge(*runs))
    with _opened(tmp_path, lake) as index:
        for batch in range(5):
            index.extend(index.classify(make_events([f"{batch}-a", f"{batch}-b"])).new, index.version)
        assert [len(run) for run in index.runs.runs] == [2] * 5
        assert index.classify(make_events(["0-a", "4-b", "5-a"])).kinds.tolist() == [DUPLICATE, DUPLICATE, NEW]
        go_on.set()
    runs = json.loads((index.folder / "manifest.json").read_text())["runs"]
    assert [rows for _, rows, _ in runs] == [4, 2, 2, 2]
    assert {path.name for path in index.folder.glob("*.run")} == {name for name, *_ in runs}


def test_a_folder_is_reopened(lake: Lake, tmp_path: Path) -> None:
    """The next process loads the manifest, with the same key and runs."""
    commit(lake, lake.table("events"), "b1", make_events(["a", "b"]))
    with _opened(tmp_path, lake) as index:
        key, runs = index.key, [run.path for run in index.runs.runs]
    with _opened(tmp_path, lake) as reopened:
        assert (reopened.key, [run.path for run in reopened.runs.runs], reopened.version) == (key, runs, 1)
        assert reopened.classify(make_events(["b", "c"])).kinds.tolist()[1] == NEW


def test_commits_of_others_are_read_from_the_log(lake: Lake, tmp_path: Path) -> None:
    """Files added since are read, whichever process committed them; a compaction adds none."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    with _opened(tmp_path, lake) as index:
        key = index.key
        for n in range(3):
            commit(lake, handle, f"c{n}", make_events([f"c{n}"], first_offset=n + 1))
        compact(lake, 2)
        handle.update_incremental()
        index.catch_up(handle)
        assert index.key == key
        assert index.version == handle.version()
        assert _known(index) == {"a", "c0", "c1", "c2"}
        assert sum(len(run.digests) for run in index.runs.runs) == 4


def test_a_deleted_folder_costs_nothing_but_time(lake: Lake, tmp_path: Path) -> None:
    """Without its files the index is rebuilt from the lake."""
    commit(lake, lake.table("events"), "b1", make_events(["a", "b"]))
    with _opened(tmp_path, lake):
        pass
    for path in (tmp_path / "slot-0").iterdir():
        path.unlink()
    with _opened(tmp_path, lake) as index:
        assert _known(index) == {"a", "b"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").write_bytes(b""),
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:40]),
        lambda folder: (folder / "manifest.json").write_text('{"format": 0}'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("\N{NULL}" * 300),
        lambda folder: _change_manifest(folder, identity="of another lake"),
        lambda folder: _change_manifest(folder, runs=[["gone.run", 2, 0]]),
        lambda folder: _damage_key(folder / "manifest.json"),
        lambda folder: next(folder.glob("*.run")).write_bytes(b""),
        lambda folder: next(folder.glob("*.run")).write_bytes(b"\0" * 24),
    ],
    ids=[
        "empty",
        "torn",
        "other format",
        "not an object",
        "zeros",
        "other lake",
        "missing run",
        "another key",
        "empty run",
        "short run",
    ],
)
def test_a_damaged_folder_is_rebuilt(lake: Lake, tmp_path: Path, damage: object) -> None:
    """Whatever is damaged, the whole index is rebuilt from the lake."""
    commit(lake, lake.table("events"), "b1", make_events(["a", "b"]))
    with _opened(tmp_path, lake):
        pass
    assert callable(damage)
    damage(tmp_path / "slot-0")
    with _opened(tmp_path, lake) as index:
        assert _known(index) == {"a", "b"}
        assert index.version == 1


def test_an_older_copy_of_the_lake_leads_to_a_rebuild(lake: Lake, tmp_path: Path) -> None:
    """Events of a commit that the lake has lost (a torn log, a restored backup) are new again, not duplicates."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    with _opened(tmp_path, lake) as index:
        commit(lake, handle, "b2", make_events(["b"], first_offset=1))
        index.catch_up(handle)
        assert _known(index) == {"a", "b"}
    Path(lake.entry_path("events", 2)).unlink()
    with _opened(tmp_path, lake) as index:
        assert _known(index) == {"a"}


@pytest.mark.parametrize("at", ["the version of the index", "a later version"])
def test_a_restored_lake_with_another_history_leads_to_a_rebuild(lake: Lake, tmp_path: Path, at: str) -> None:
    """A lake restored from a copy reaches the index's version with other events: none is lost, none doubled."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    copy_lake(lake, str(tmp_path / "copy"))
    with _opened(tmp_path, lake) as index:
        commit(lake, handle, "b2", make_events(["b"], first_offset=1))
        index.catch_up(handle)
    shutil.rmtree(lake.root)
    shutil.move(tmp_path / "copy", lake.root)
    handle = lake.table("events")
    commit(lake, handle, "c2", make_events(["c"], first_offset=1))
    if at == "a later version":
        commit(lake, handle, "c3", make_events(["c0"], first_offset=2))
    with _opened(tmp_path, lake) as index:
        assert _known(index) == {"a", "c"} | ({"c0"} if at == "a later version" else set())
        assert index.version == handle.version()


@pytest.mark.parametrize("commits", [1, 3], ids=["up to its version", "past its version"])
def test_the_index_of_another_process_is_rebuilt_for_a_restored_lake(lake: Lake, tmp_path: Path, commits: int) -> None:
    """The second process was ended during the restore, and the lake grew without it (`once`)."""
    commit(lake, lake.table("events"), "b1", make_events(["a"]))
    copy_lake(lake, str(tmp_path / "copy"))
    commit(lake, lake.table("events"), "b2", make_events(["b"], first_offset=1))
    with _opened(tmp_path, lake) as first, _opened(tmp_path, lake) as second:
        assert _known(first) == _known(second) == {"a", "b"}
    new_ids = _restore_and_commit(lake, tmp_path / "copy", commits)
    with _opened(tmp_path, lake) as first:
        assert _known(first) == {"a"} | new_ids
    with _opened(tmp_path, lake) as first, _opened(tmp_path, lake) as second:
        assert [first.folder.name, second.folder.name] == ["slot-0", "slot-1"]
        assert _known(first) == _known(second) == {"a"} | new_ids


def test_open_indexes_are_rebuilt_for_a_restored_lake(lake: Lake, tmp_path: Path) -> None:
    """Each of two processes that continue beside the restore notices another history at its next commit (`once`)."""
    commit(lake, lake.table("events"), "b1", make_events(["a"]))
    copy_lake(lake, str(tmp_path / "copy"))
    commit(lake, lake.table("events"), "b2", make_events(["b"], first_offset=1))
    with _opened(tmp_path, lake) as first, _opened(tmp_path, lake) as second:
        new_ids = _restore_and_commit(lake, tmp_path / "copy", 3)
        for index in (first, second):
            index.catch_up(lake.table("events"))
            assert _known(index) == {"a"} | new_ids


def test_an_erasure_beside_an_open_index_leads_to_a_rebuild(lake: Lake, tmp_path: Path) -> None:
    """After an erasure by an earlier release, which did not keep the event_ids, it has a new key (`erasable`)."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    commit(lake, handle, "b2", make_events(["b"], first_offset=1))
    with _opened(tmp_path, lake) as index:
        key = index.key
        *_, newest = list_files(handle)
        replace_files(handle, [newest], [], {ERASURES_DONE: 1}, data_change=True)
        index.catch_up(lake.table("events"))
        assert index.key != key
        assert len(_known(index)) == 1


def test_a_log_that_starts_later_leads_to_a_rebuild(lake: Lake, tmp_path: Path) -> None:
    """If the log no longer has the entries since, all files of the newest version are read."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    with _opened(tmp_path, lake) as index:
        commit(lake, handle, "b2", make_events(["b"], first_offset=1))
        handle.create_checkpoint()
        Path(lake.entry_path("events", 2)).unlink()
        index.catch_up(lake.table("events"))
        assert _known(index) == {"a", "b"}


def test_files_that_vacuum_removed_lead_to_a_rebuild(lake: Lake, tmp_path: Path) -> None:
    """If a file that the log names no longer exists, all files of the newest version are read."""
    handle = lake.table("events")
    commit(lake, handle, "b0", make_events(["z"]))
    with _opened(tmp_path, lake) as index:
        for n in range(3):
            commit(lake, handle, f"c{n}", make_events([f"c{n}"], first_offset=n + 1))
        before = set(handle.file_uris())
        compact(lake, 2)
        handle.update_incremental()
        for path in before - set(handle.file_uris()):
            Path(path).unlink()
        index.catch_up(handle)
        assert _known(index) == {"z", "c0", "c1", "c2"}


def test_a_run_that_no_manifest_names_is_ignored(lake: Lake, tmp_path: Path) -> None:
    """A crash in extend leaves the previous manifest: missing ids come from the lake, the unnamed file is removed."""
    handle = lake.table("events")
    commit(lake, handle, "b1", make_events(["a"]))
    with _opened(tmp_path, lake):
        pass
    commit(lake, handle, "b2", make_events(["b"], first_offset=1))
    stray = tmp_path / "slot-0" / "99999999.run"
    stray.write_bytes(b"\0" * 24)
    stray.with_suffix(".filter").touch()
    with _opened(tmp_path, lake) as index:
        assert _known(index) == {"a", "b"}
    assert not stray.exists()
    assert not stray.with_suffix(".filter").exists()


def test_each_process_has_a_slot_of_its_own(lake: Lake, tmp_path: Path) -> None:
    """A second process takes the next free slot; a slot is free again once its index is closed."""
    commit(lake, lake.table("events"), "b1", make_events(["a"]))
    with _opened(tmp_path, lake) as first:
        with _opened(tmp_path, lake) as second:
            assert [first.folder.name, second.folder.name] == ["slot-0", "slot-1"]
            assert _known(first) == _known(second) == {"a"}
        with _opened(tmp_path, lake) as third:
            assert third.folder.name == "slot-1"
    with _opened(tmp_path, lake) as fourth:
        assert fourth.folder.name == "slot-0"


@pytest.mark.slow
def test_a_dead_process_releases_its_slot(lake: Lake, tmp_path: Path) -> None:
    """After SIGKILL its slot is free."""
    script = (
        "import sys; from pathlib import Path; from pipelines.lake.index import open_index;"
        "from pipelines.lake.tables import Lake; lake = Lake(Path(sys.argv[1]));"
        "print(open_index(Path(sys.argv[2]), lake, lake.table('events')).folder.name, flush=True); input()"
    )
    command = ["-c", script, lake.root, str(tmp_path)]
    with ended(Started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "slot-0"
        with _opened(tmp_path, lake) as beside:
            assert beside.folder.name == "slot-1"
        process.kill()
    with _opened(tmp_path, lake) as index:
        assert index.folder.name == "slot-0"


def test_a_file_system_without_locks_is_refused(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks two processes could share an index: that is an error, not an endless search for a free slot."""
    monkeypatch.setattr(file_lock.fcntl, "flock", _raise(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(ConfigurationError, match=r"slot-0/lock cannot be locked \(.*No locks available\)"):
        open_index(tmp_path, lake, lake.table("events"))


def test_an_index_that_cannot_be_opened_releases_its_slot(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in catch_up leaves no lock behind, so the process can retry."""
    with monkeypatch.context() as patch:
        patch.setattr(DedupIndex, "catch_up", _raise(OSError("the disk was unavailable")))
        with pytest.raises(OSError, match="the disk was unavailable"):
            open_index(tmp_path, lake, lake.table("events"))
    with _opened(tmp_path, lake) as index:
        assert index.folder.name == "slot-0"


def _raise(error: Exception) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


@contextmanager
def _opened(root: Path, lake: Lake) -> Iterator[DedupIndex]:
    with closing(open_index(root, lake, lake.table("events"))) as index:
        yield index


def _restore_and_commit(lake: Lake, copy: Path, commits: int) -> set[str]:
    """Replace a lake by its copy, and commit other events; return their ids."""
    shutil.rmtree(lake.root)
    shutil.move(copy, lake.root)
    handle = lake.table("events")
    for number in range(commits):
        commit(lake, handle, f"c{number}", make_events([f"c{number}"], first_offset=number + 1))
    return {f"c{number}" for number in range(commits)}


def _known(index: DedupIndex) -> set[str]:
    """Return which of the test ids the index has."""
    ids = ["a", "b", "c", "z", "c0", "c1", "c2", "c3"]
    kinds = index.classify(make_events(ids)).kinds
    return {event_id for event_id, kind in zip(ids, kinds, strict=True) if kind != NEW}


def _table(batch: list[tuple[str, str]]) -> pa.Table:
    tables = [make_events([event_id], payload=payload) for event_id, payload in batch]
    return pa.concat_tables(tables) if tables else make_events([])


def _expected_kind(first_payload: dict[str, str], event_id: str, payload: str) -> int:
    if event_id not in first_payload:
        first_payload[event_id] = payload
        return NEW
    return DUPLICATE if first_payload[event_id] == payload else CONFLICT


def _colliding_digest(events: pa.Table, key: bytes) -> Digests:
    words = [
        np.array([hash((key, name, str(row))) & (2**64 - 1) for row in events[name].to_pylist()], np.uint64)
        for name in ("event_id", "action_type")
    ]
    return Digests(np.full(len(events), 2**63 + 5, np.uint64), *words)


def _change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(manifest_text(read_manifest(path) | changes))


def _damage_key(path: Path) -> None:
    """Change a digit, as a disk may: with another key, no digest would be found, and each known event be new."""
    before, digit, after = re.split(r'(?<="key": ")([0-9a-f])', path.read_text())
    path.write_text(f"{before}{int(digit, 16) ^ 1:x}{after}")
