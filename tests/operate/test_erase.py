"""Erasure: a user is removed from everything, stays removed, and other data is unchanged (`erasable`)."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.operate.erase as whole
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import TransientError, UsageError
from pipelines.lake import erasure, removal, tombstones
from pipelines.lake.commit import CommitRecord
from pipelines.lake.erasure import ErasureCounts, erase_users
from pipelines.lake.runs import Runs
from pipelines.lake.tables import TABLES, open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase
from pipelines.operate.verify import verify, verify_erased
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.serving.read import read_leaderboard, read_reputation
from pipelines.settings import Settings
from tests.draining import NOON, assert_verified, contents, drain_all, query, send, valid_records, with_ingest
from tests.lake.builders import orphan_files
from tests.share import share

_USER = "user-who-leaves"


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake, a warehouse and documents of eight users, one of whom is erased."""
    redis = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    bus = with_ingest(settings.model_copy(update={"redis": redis}), max_batch_records=60)
    send(bus, [*valid_records(range(100)), *_of_user()])
    drain_all(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    return bus


def _of_user() -> list[Record]:
    """Return 12 events, 2 conflicts and 3 dead letters of the user, whose id is in key, value or both.

    One dead letter is of another user.
    """
    key = _USER.encode()
    events = [_value(event_id=f"mine-{n}") for n in range(12)]
    conflicts = [_value(event_id=f"mine-{n}", action_type="Other") for n in range(2)]
    late = _value(event_id="late", event_time=NOON.replace(year=2099))
    letters = [Record(key, b"\xff", [], 0), Record(None, late, [], 0), Record(key, late, [], 0)]
    letters.append(Record(b"u-1", b"\xff", [], 0))
    return [*(Record(key, value) for value in [*events, *events[:4], *conflicts]), *letters]


def _value(**fields: Any) -> bytes:
    row = {"event_id": "e", "user_id": _USER, "action_type": "A", "event_time": NOON, "metadata": [("note", _USER)]}
    return encode(pa.Table.from_pylist([row | fields], EVENT))[0].as_py()


def _events_of_others(bus: Settings) -> list[tuple[Any, ...]]:
    return [row for row in contents(bus)["events"] if row[1] != _USER]


def _assert_gone(bus: Settings) -> None:
    """Assert that neither a file of the data folder nor Redis holds the user, and that all checks pass."""
    vacuum(open_lake(bus.lake_root), 0)
    assert [path for path in bus.data_dir.rglob("*") if path.is_file() and _holds_user(path)] == []
    assert read_reputation(_USER, bus) is None
    assert _USER not in [place.user_id for place in read_leaderboard("all_time", settings=bus)]
    assert [check for check in verify(bus) if check.passed is False] == []
    found = audit(bus)
    assert (found.lost, found.duplicated) == (0, 0)


def _holds_user(path: Path) -> bool:
    if path.suffix == ".parquet":
        return _USER in str(pq.ParquetFile(path).read().to_pylist())
    return _USER.encode() in path.read_bytes()


def test_erasing_removes_one_user_completely(bus: Settings) -> None:
    """Rows, bytes, documents and leaderboard entries go, other users keep theirs, and resending changes nothing."""
    assert any(_holds_user(path) for path in Path(bus.lake_root).rglob("*.parquet"))
    before = _events_of_others(bus)
    documents = [read_reputation(f"u-{n}", bus) for n in range(7)]
    done = erase(bus, [_USER])
    assert done.rows == ErasureCounts(events=12, dead_letters=3, conflicts=2)
    assert done.published
    assert done.published.deleted == 1
    assert contents(bus)["events"] == _events_of_others(bus) == before
    assert [_without_stamp(read_reputation(f"u-{n}", bus)) for n in range(7)] == list(map(_without_stamp, documents))
    _assert_gone(bus)
    send(bus, valid_records(range(100)))
    assert sum(record.total("duplicates") for record in drain_all(bus)) == 100
    assert erase(bus, [_USER]).rows == ErasureCounts(0, 0, 0)


def _without_stamp(document: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (document or {}).items() if name not in {"as_of", "lake_version"}}


def test_an_erased_user_stays_erased(bus: Settings) -> None:
    """Resent, replayed or new records of the user are dropped and counted, and stored nowhere (`nothing-lost`)."""
    erase(bus, [_USER])
    send(bus, [*_of_user(), Record(_USER.encode(), _value(event_id="brand-new"))])
    records = drain_all(bus)
    assert sum(record.total("erased") for record in records) == 22
    assert sum(record.total("read") for record in records) == 23
    refresh_warehouse(bus)
    publish_warehouse(bus)
    _assert_gone(bus)
    assert sum(partition.erased for partition in audit(bus).partitions) == 43


def test_a_batch_read_before_an_erasure_drops_the_user(bus: Settings) -> None:
    """A batch that is read before an erasure and committed after it restores no row of the user (`fenced`)."""
    send(bus, [Record(_USER.encode(), _value(event_id=f"new-{n}")) for n in range(5)])
    with open_ingest(bus) as ingest:
        erase(bus, [_USER])
        records: list[CommitRecord] = []
        drain(ingest, records.append)
        assert sum(record.total("erased") for record in records) == 5
        assert sum(record.total("accepted") for record in records) == 0
        send(bus, valid_records(range(100, 110)))
        drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*) FROM events") == [(110,)]
    refresh_warehouse(bus)
    _assert_gone(bus)


class KilledError(Exception):
    pass


# Steps that leave another state of the lake, index, warehouse or documents; the crash matrix kills at each step that
# writes to the lake or the index. A run takes a third of them, another each day.
_STEPS = [
    (tombstones, "append_file", 1, "after"),
    (erasure, "append_file", 1, "after"),
    (removal, "replace_files", 1, "before"),
    (removal, "replace_files", 1, "after"),
    (removal, "replace_files", 3, "before"),
    (whole, "forget_erased", 1, "before"),
    (Runs, "remove", 1, "after"),
    (whole, "refresh_draft", 1, "before"),
    (whole, "publish_warehouse", 1, "before"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "step", "call", "when"), share(_STEPS, 3))
def test_a_kill_at_a_step(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, module: ModuleType | type, step: str, call: int, when: str
) -> None:
    """The lake is consistent after the kill, ingest continues, and erasing again completes the erasure (`atomic`)."""
    with monkeypatch.context() as patch:
        patch.setattr(module, step, killing(getattr(module, step), call, when))
        with pytest.raises(KilledError):
            erase(bus, [_USER])
    assert_verified(bus)
    send(bus, valid_records(range(100, 105)))
    drain_all(bus)
    assert_verified(bus)
    erase(bus, [_USER])
    assert verify_erased(bus).passed
    assert len(contents(bus)["events"]) == len(_events_of_others(bus)) == 105
    _assert_gone(bus)


def killing(function: Callable[..., Any], call: int, when: str) -> Callable[..., Any]:
    calls: list[int] = []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if when == "before" and len(calls) == call:
            raise KilledError
        answer = function(*arguments, **named)
        if when == "after" and len(calls) == call:
            raise KilledError
        return answer

    return killed


def test_an_unfinished_erasure_is_reported(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification reports the remaining rows with advice; erasing another user also finishes it."""
    with monkeypatch.context() as patch:
        patch.setattr(removal, "replace_files", killing(removal.replace_files, 1, "before"))
        with pytest.raises(KilledError):
            erase(bus, [_USER])
    assert "'events': 12" in verify_erased(bus).evidence
    assert erase(bus, ["nobody"]).rows.events == 12
    _assert_gone(bus)


def test_beside_a_compaction(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files merged between read and commit are read again: no row is duplicated, lost or left."""
    lake, replace = open_lake(bus.lake_root), removal.replace_files

    def compact_between(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(removal, "replace_files", replace)
        assert compact(lake, 2)
        replace(*arguments, **named)

    monkeypatch.setattr(removal, "replace_files", compact_between)
    before = _events_of_others(bus)
    assert erase(bus, [_USER]).rows == ErasureCounts(12, 3, 2)
    assert contents(bus)["events"] == before
    _assert_gone(bus)


def test_an_erasure_that_is_always_overtaken_gives_up(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails with a message, and its tombstone has no effect."""

    def never(*_: object, **__: object) -> None:
        raise erasure.CommitFailedError("overtaken")

    lake = open_lake(bus.lake_root)
    monkeypatch.setattr(removal, "replace_files", never)
    with pytest.raises(TransientError, match="erase again"):
        erase_users(lake, open_tombstones(lake, bus), [_USER])
    assert orphan_files(lake) == []
    assert_verified(bus)


def test_without_a_lake(settings: Settings) -> None:
    """Without a lake the erasure is refused."""
    with pytest.raises(UsageError, match="there is no lake"):
        erase(settings, [_USER])


def test_every_table_is_considered() -> None:
    """A new table must be added here: tables with user data are erased from."""
    holding = {name for name, schema in TABLES.items() if {"user_id", "value"} & set(schema.names)}
    assert holding | {"named_by_others"} == {field.name for field in fields(ErasureCounts)}
