"""The application transactions of a table are those that the library finds one by one, at little cost."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from pipelines.errors import CorruptionError, TransientError
from pipelines.lake import log_files, transactions
from pipelines.lake.checkpoints import checkpoints
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.tables import Lake, erasures_done, stored_id, table_id
from pipelines.lake.transactions import transactions as transactions_of

_NAMES = ["ingest:a:0", 'ingest:a "quoted" \u2028 topic\x85:1', "erasures", "last:a:0", "never"]


def _commit(handle: DeltaTable, numbers: dict[str, int]) -> None:
    commit_actions(handle, [], numbers)
    handle.update_incremental()


def _require_same(handle: DeltaTable) -> None:
    found = transactions_of(handle)
    assert {name: found.get(name) for name in _NAMES} == {name: handle.transaction_version(name) for name in _NAMES}


@pytest.mark.slow
def test_handles_of_every_kind_have_what_the_library_finds(lake: Lake) -> None:
    """Over checkpoints, a shortened log, numbers that go down, and handles that follow, lag behind or go back."""
    chance = random.Random(1)  # noqa: S311 - a fixed history
    writer, follower, lagging, back = (lake.table("events") for _ in range(4))
    for step in range(90):
        _commit(writer, {name: chance.randrange(-1, 100) for name in _NAMES[:-1] if chance.random() < 0.1})
        follower.update_incremental()
        if chance.random() < 0.1:
            lagging.update_incremental()
        for handle in (writer, follower, lagging, lake.table("events")):
            _require_same(handle)
        if step == 60:
            assert remove_old_entries(writer, retained=20) > 0
            lagging.update_incremental()
    back.load_as_version(85)
    _require_same(back)
    back.load_as_version(70)
    _require_same(back)


@pytest.mark.slow
def test_a_handle_reads_each_entry_and_checkpoint_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither more names, nor names that the table never had, nor older entries and checkpoints cost a commit more."""
    read: list[str] = []

    def counted(reads: Callable[..., object]) -> Callable[..., object]:
        def call(location: str, *rest: object) -> object:
            read.append(location)
            return reads(location, *rest)

        return call

    writer = lake.table("events")
    for number in range(45):
        _commit(writer, {"ingest:a:0": number})
    monkeypatch.setattr(transactions, "read_entry", counted(transactions.read_entry))
    monkeypatch.setattr(transactions, "read_checkpoint", counted(transactions.read_checkpoint))
    handle = lake.table("events")
    assert (erasures_done(handle), *map(transactions_of(handle).get, _NAMES)) == (0, 44, *[None] * 4)
    log = f"{lake.folder('events')}/_delta_log"
    assert sorted(read) == [log, *(f"{log}/{version:020}.json" for version in range(41, 46))]
    for number in range(45, 60):
        read.clear()
        _commit(writer, {"ingest:a:0": number})
        handle.update_incremental()
        assert (erasures_done(handle), *map(transactions_of(handle).get, _NAMES)) == (0, number, *[None] * 4)
        assert read == [f"{log}/{handle.version():020}.json"]


@pytest.mark.slow
def test_the_time_between_checkpoints_grows_with_the_root_of_their_size(lake: Lake) -> None:
    """So what a commit costs grows no faster than that: 12,500 files are 22 versions, of which every 20th is asked."""
    handle = lake.table("events")
    files = [
        AddAction(f"{number}.parquet", 1, {}, 0, data_change=True, stats=json.dumps({"numRecords": 1}))
        for number in range(12_500)
    ]
    commit_actions(handle, files, {})
    handle.update_incremental()
    for number in range(80):
        _commit(handle, {"x": number})
    names = Path(lake.folder("events"), "_delta_log").glob("*.parquet")
    assert sorted(int(name.name[:20]) for name in names) == [20, 60]


def test_a_log_that_starts_later_is_a_temporary_error(lake: Lake) -> None:
    """A handle whose version the log no longer has has never read the numbers: none are made up."""
    behind, writer = lake.table("events"), lake.table("events")
    for number in range(25):
        _commit(writer, {"x": number})
    assert remove_old_entries(writer, retained=2) > 0
    with pytest.raises(TransientError, match=r"no longer has version 0, since later commits have shortened it"):
        transactions_of(behind)
    behind.update_incremental()
    assert transactions_of(behind) == {"x": 24}


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_torn_checkpoint_costs_no_number(lake: Lake, damage: str) -> None:
    """It is a copy of entries, and set aside, also below a handle that was open before."""
    handle = lake.table("events")
    for number in range(21):
        _commit(handle, {"x": number})
    checkpoint = Path(lake.folder("events"), "_delta_log", f"{20:020}.checkpoint.parquet")
    size = checkpoint.stat().st_size
    checkpoint.write_bytes(checkpoint.read_bytes()[: size // 2] if damage == "cut" else b"\xff" * size)
    assert stored_id(lake) is None
    assert transactions_of(handle) == {"x": 20}
    assert not checkpoint.exists()
    assert stored_id(lake) == table_id(handle)


_NO_ENTRIES: dict[str, Callable[[str], str]] = {
    "a page": lambda _: "<html>login</html>",
    "nothing": lambda _: "",
    "a part": lambda text: text.rstrip("\n").rpartition("\n")[0],
    "a number": lambda _: "5",
}


@pytest.mark.parametrize("damage", _NO_ENTRIES)
def test_an_entry_that_is_none_gives_no_numbers(lake: Lake, damage: str) -> None:
    """Numbers without those of an entry would be older ones: what was read would be read again."""
    handle = lake.table("events")
    _commit(handle, {"x": 1})
    transactions_of(handle)
    _commit(handle, {"x": 2, "y": 3})
    entry = Path(lake.entry_path("events", 2))
    entry.write_text(_NO_ENTRIES[damage](entry.read_text()))
    with pytest.raises(CorruptionError, match=rf"the entry \S+{entry.name} of a log is torn or not one"):
        transactions_of(handle)


def test_a_log_without_an_entry_is_named(lake: Lake) -> None:
    """Where no checkpoint replaces it, a retry would not help."""
    handle = lake.table("events")
    _commit(handle, {"x": 1})
    Path(lake.entry_path("events", 0)).unlink()
    with pytest.raises(CorruptionError, match=r"has not every entry up to version 1"):
        transactions_of(handle)


def test_a_log_that_is_gone_is_missing(lake: Lake) -> None:
    """A loop then says that its lake is gone."""
    handle = lake.table("events")
    rmtree(lake.root)
    with pytest.raises(FileNotFoundError):
        transactions_of(handle)


@pytest.mark.parametrize("action", [{"txn": None}, {"txn": None, "add": None, "remove": None}])
def test_null_members_are_none(lake: Lake, action: dict[str, None]) -> None:
    """Other engines write every member of each action."""
    handle = lake.table("events")
    _commit(handle, {"x": 1})
    entry = Path(lake.entry_path("events", 2))
    entry.write_text(f'{json.dumps(action)}\n{{"txn": {{"appId": "x", "version": 2}}, "remove": null}}\n')
    handle.update_incremental()
    assert transactions_of(handle) == {"x": 2}


@pytest.mark.parametrize("name", ["ingest:foo", "ingest:", "ingest:a:b:x", "ingest:q:99999999999", "other:a:1"])
def test_names_of_others_are_no_checkpoints(name: str) -> None:
    """Other engines choose the names of their transactions."""
    assert checkpoints({name: 7, "ingest:a:b:2": 3}) == {("a:b", 2): 3}


def test_numbers_are_forgotten_with_their_handle(lake: Lake) -> None:
    """A process opens many handles over time."""
    before = len(transactions._seen)
    for _ in range(5):
        transactions_of(lake.table("events"))
    assert len(transactions._seen) == before


@pytest.mark.parametrize("commits", [0, 5, 45])
def test_the_stored_id_is_that_of_the_table(lake: Lake, commits: int) -> None:
    """From the first entry, or from a checkpoint once there is one."""
    handle = lake.table("events")
    for number in range(commits):
        _commit(handle, {"x": number})
    if commits == 45:
        log_files.remove_old_entries(handle, retained=2)
    assert stored_id(lake) == table_id(lake.table("events"))
