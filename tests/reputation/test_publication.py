"""Publishing a warehouse beside refreshes: the copy has the rows of the moment at which it was started (`atomic`)."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Semaphore
from types import ModuleType
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from pipelines.errors import is_transient
from pipelines.lake.tables import Snapshot
from pipelines.reputation import database_file, draft_tables, user_rows
from pipelines.reputation import derive as derive_module
from pipelines.reputation import histories as histories_module
from pipelines.reputation.database_file import checkpoint
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.unwritten import Unwritten
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import DAY, NOW, Event, at, stored_schema
from tests.reputation.policies import policy
from tests.reputation.test_incremental import lake, rebuilt, rows
from tests.reputation.test_priors import LEARNED
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_BLOCK_BYTES = 4096
_ALL = 1_000_000
_FIRST = [Event(f"e{n}", f"user-{n}", "Done", NOW - n - 1) for n in range(40)]


@dataclass
class Copier:
    """Copies a file in small blocks, each when the test allows it."""

    allowed: Semaphore = field(default_factory=lambda: Semaphore(0))
    found: list[bytes] = field(default_factory=list[bytes])
    """The file at the beginning of each copy."""
    copied_bytes: int = 0

    def copy(self, file: Path, target: Path) -> None:
        """Do what `copyfile` does."""
        self.found.append(file.read_bytes())
        with file.open("rb") as reading, target.open("wb") as writing:
            while block := self._next_block(reading.read):
                writing.write(block)
                self.copied_bytes += len(block)

    def _next_block(self, read: Callable[[int], bytes]) -> bytes:
        assert self.allowed.acquire(timeout=PATIENCE_SECONDS)
        return read(_BLOCK_BYTES)

    def finish(self) -> None:
        """Allow everything."""
        self.allowed.release(_ALL)


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copier]:
    """Return what copies every published warehouse in this test."""
    copier = Copier()
    monkeypatch.setattr(database_file, "copyfile", copier.copy)
    yield copier
    copier.finish()


@contextmanager
def refreshed(path: Path) -> Iterator[Draft]:
    """Yield a draft of the first commit."""
    with open_draft(path) as draft:
        draft.refresh(lake(path.parent, [_FIRST]), policy(), at(NOW))
        yield draft


def _next(number: int) -> list[Event]:
    """Return a commit that changes and adds users."""
    return [Event(f"n{number}-{n}", f"user-{number + n}", "Done", NOW - n - 1) for n in range(30)]


@pytest.mark.slow
def test_a_copy_beside_refreshes_is_the_file_of_the_checkpoint(tmp_path: Path, copier: Copier) -> None:
    """Byte for byte, with refreshes between its blocks: DuckDB writes to its file in a checkpoint only.

    Publication relies on it, so it has to be true of every release of DuckDB.
    """
    path, commits = tmp_path / "warehouse.duckdb", [_FIRST]
    with refreshed(path) as draft:
        publication = draft.start_publication()
        wait_for("the copy to begin", lambda: copier.found)
        blocks = len(copier.found[0]) // _BLOCK_BYTES // 6
        for number in range(5):
            commits.append(_next(number))
            assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW + number)).rebuild_reason is None
            draft.tables.write_changes()
            copier.allowed.release(blocks)
            part = (number + 1) * blocks * _BLOCK_BYTES
            wait_for("its next part", lambda part=part: copier.copied_bytes == part)
        assert not publication.done()
        copier.finish()
        publication.result(PATIENCE_SECONDS)
        assert path.read_bytes() == copier.found[0]
        assert rows(path) == rebuilt(tmp_path, lake(tmp_path, [_FIRST]), policy(), NOW)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW + 4)


@pytest.mark.slow
def test_a_copy_beside_large_transactions_has_the_rows_of_the_checkpoint(tmp_path: Path, copier: Copier) -> None:
    """Transactions that DuckDB writes into free blocks of its file, before they are committed, leave all others."""
    path, numbers = tmp_path / "warehouse.duckdb", "SELECT i, hash(i) AS h FROM range({}, {}) AS numbers(i)"
    with refreshed(path) as draft:
        draft.connection.execute(f"CREATE TABLE dropped AS {numbers.format(0, 300_000)}")
        draft.connection.execute(f"CREATE TABLE numbers AS {numbers.format(0, 300_000)}")
        draft.connection.execute("CHECKPOINT")
        draft.connection.execute("DROP TABLE dropped")
        publication = draft.start_publication()
        wait_for("the copy to begin", lambda: copier.found)
        draft.connection.execute(f"INSERT INTO numbers {numbers.format(300_000, 900_000)}")
        draft.connection.execute("DELETE FROM numbers WHERE i % 2 = 0")
        draft.connection.execute(f"CREATE TABLE others AS {numbers.format(0, 300_000)}")
        draft.connection.execute("DROP TABLE others")
        assert path.with_name("warehouse.duckdb.draft").read_bytes() != copier.found[0]
        copier.finish()
        publication.result(PATIENCE_SECONDS)
    with duckdb.connect(path, read_only=True) as copy:
        found = copy.execute("SELECT count(*), count(DISTINCT h), sum(i) FROM numbers").fetchall()
        tables = copy.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    assert found == [(300_000, 300_000, 300_000 * 299_999 // 2)]
    assert ("others",) not in tables


@pytest.mark.slow
def test_one_copy_at_a_time(tmp_path: Path, copier: Copier) -> None:
    """The next publication waits for the one in progress, and its file replaces that one's."""
    path, commits = tmp_path / "warehouse.duckdb", [_FIRST, _next(0)]
    with refreshed(path) as draft, ThreadPoolExecutor(1) as thread:
        first = draft.start_publication()
        wait_for("the copy to begin", lambda: copier.found)
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        second = thread.submit(draft.publish)
        copier.allowed.release(1)
        wait_for("a block", lambda: copier.copied_bytes)
        assert (first.done(), second.done(), len(copier.found)) == (False, False, 1)
        copier.finish()
        second.result(PATIENCE_SECONDS)
        assert first.done()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_an_erasure_waits_for_the_copy(tmp_path: Path, copier: Copier) -> None:
    """A rebuild without an erased user begins when the copy with the user is published, and replaces it (`erasable`).

    Afterwards no file has the user's name: neither a copy nor a free block of the warehouse.
    """
    path = tmp_path / "data" / "warehouse.duckdb"
    without = replace(lake(tmp_path / "later", [_FIRST[1:], []]), lake_id="another erasure")
    with open_draft(path) as draft, ThreadPoolExecutor(1) as thread:
        draft.refresh(lake(tmp_path, [_FIRST[1:]]), policy(), at(NOW))
        draft.refresh(lake(tmp_path, [_FIRST[1:], _FIRST[:1]]), policy(), at(NOW))
        first = draft.start_publication()
        wait_for("the copy to begin", lambda: copier.found)
        assert b"user-0" in copier.found[0]
        rebuilding = thread.submit(draft.refresh, without, policy(), at(NOW))
        copier.allowed.release(1)
        wait_for("a block", lambda: copier.copied_bytes)
        assert not rebuilding.done()
        copier.finish()
        assert (
            rebuilding.result(PATIENCE_SECONDS).rebuild_reason
            == "the policy, its decay epoch, the SQL or the lake changed"
        )
        assert first.done()
        draft.publish()
        assert _files_with(path.parent, b"user-0") == []
    with Warehouse(path) as warehouse:
        assert "user-0" not in warehouse.reputation()["user_id"].to_list()
        assert warehouse.reputation().height == len(_FIRST) - 1


def _files_with(folder: Path, name: bytes) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and name in file.read_bytes()]


@pytest.mark.slow
def test_a_copy_that_fails_leaves_the_published_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the result, nothing is left beside the warehouse, and the next publication succeeds."""
    path, commits = tmp_path / "data" / "warehouse.duckdb", [_FIRST, _next(0)]

    def fail(_file: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, commits[:1]), policy(), at(NOW))
        draft.publish()
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        with monkeypatch.context() as patch:
            patch.setattr(database_file, "copyfile", fail)
            assert isinstance(draft.start_publication().exception(PATIENCE_SECONDS), OSError)
        assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits[:1]), policy(), NOW)
        assert not path.with_name("warehouse.duckdb.next").exists()
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_leaving_completes_a_publication(tmp_path: Path, copier: Copier) -> None:
    """A started publication is complete when the draft is closed; what a kill left is removed first."""
    path = tmp_path / "warehouse.duckdb"
    partial = path.with_name("warehouse.duckdb.next")
    partial.write_bytes(b"half of a copy")
    with refreshed(path) as draft:
        assert not partial.exists()
        draft.start_publication()
        copier.finish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, [_FIRST]), policy(), NOW)
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write", "_write_rows"])
def test_refreshes_beside_a_publication_are_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Neither their rows, nor their moment, nor their trends; and no refresh waits for it."""
    path, commits, going_on = tmp_path / "warehouse.duckdb", [_FIRST, _next(0)], threading.Event()
    write = getattr(Unwritten, step)

    def wait_and_write(*arguments: Any) -> None:
        assert going_on.wait(PATIENCE_SECONDS)
        write(*arguments)

    with refreshed(path) as draft:
        draft.publish()
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        with monkeypatch.context() as patch:
            patch.setattr(Unwritten, step, wait_and_write)
            publication = draft.start_publication()
            for number in range(1, 4):
                commits.append(_next(number))
                assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW + number)).rebuild_reason is None
            assert not publication.done()
            going_on.set()
            publication.result(PATIENCE_SECONDS)
        assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits[:2]), policy(), NOW)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW + 3)


@pytest.mark.slow
def test_new_priors_wait_for_a_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh writes them to the file, and what is published beside it has those of its own moment."""
    path, going_on, arrived = tmp_path / "warehouse.duckdb", threading.Event(), threading.Event()
    rules, commits = policy(measures=LEARNED), [[_rating(0, 5)], [_rating(1, 4)], [_rating(2, 1)]]
    write, load = Unwritten.write, derive_module.load_affected_events

    def wait_and_write(*arguments: Any) -> None:
        assert going_on.wait(PATIENCE_SECONDS)
        write(*arguments)

    def load_and_tell(*arguments: Any) -> Any:
        loaded = load(*arguments)
        arrived.set()
        return loaded

    with open_draft(path) as draft, ThreadPoolExecutor(1) as thread:
        for end in (1, 2):
            draft.refresh(lake(tmp_path, commits[:end]), rules, at(NOW))
        with monkeypatch.context() as patch:
            patch.setattr(Unwritten, "write", wait_and_write)
            patch.setattr(derive_module, "load_affected_events", load_and_tell)
            publication = draft.start_publication()
            refreshing = thread.submit(draft.refresh, lake(tmp_path, commits), rules, at(NOW))
            wait_for("the refresh to load events", arrived.is_set)
            assert not wait([refreshing], 0.2).done
            going_on.set()
            publication.result(PATIENCE_SECONDS)
        assert refreshing.result(PATIENCE_SECONDS).rebuild_reason is None
        assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits[:2]), rules, NOW)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), rules, NOW)


def _rating(number: int, stars: int) -> Event:
    return Event(f"r{number}", f"user-{number}", "Rated", NOW - 9 * DAY + number, {"rating": str(stars)})


@pytest.mark.slow
@pytest.mark.parametrize("step", [Draft.start_publication, Draft.publish])
def test_a_full_disk_while_rows_are_written_discards_the_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[[Draft], "Future[None] | None"]
) -> None:
    """DuckDB takes it for fatal, and refuses the file from then on; a retry begins with the published warehouse.

    Any document may differ from what was served of the discarded draft.
    """
    path, commits = tmp_path / "warehouse.duckdb", [_FIRST, _next(0)]

    def fail(*_: object) -> None:
        raise duckdb.FatalException("No space left on device")

    with refreshed(path) as draft:
        draft.publish()
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        with monkeypatch.context() as patch:
            patch.setattr(Unwritten, "write", fail)
            with pytest.raises(duckdb.FatalException, match="No space left") as raised:
                (step(draft) or Future()).result(PATIENCE_SECONDS)
        assert is_transient(raised.value)
        derived = draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        assert (derived.rebuild_reason, derived.changed_users) == (None, None)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_a_draft_that_duckdb_refuses_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fatal error of a reader's write is met by all later statements: a retry begins with the published warehouse."""
    path, commits = tmp_path / "warehouse.duckdb", [_FIRST, _next(0)]
    with refreshed(path) as draft:
        draft.publish()
        refused, read = draft.tables.connection, derive_module.read_commits

        def read_unless_refused(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
            if connection is refused:
                raise duckdb.FatalException("database has been invalidated")
            read(connection, snapshot)

        monkeypatch.setattr(derive_module, "read_commits", read_unless_refused)
        with pytest.raises(duckdb.FatalException, match="invalidated"):
            draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "storing"), [(histories_module, "new_segment"), (draft_tables, "write_base_rows")])
def test_a_refresh_that_fails_holds_up_no_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, storing: str
) -> None:
    """It discards the draft, so it waits for the publication, whose checkpoint waits for open queries."""
    path, commits, failing = tmp_path / "warehouse.duckdb", [_FIRST, _next(0)], threading.Event()
    write = Unwritten.write

    def wait_and_write(*arguments: Any) -> None:
        assert failing.wait(PATIENCE_SECONDS)
        write(*arguments)

    def fail(*arguments: Any) -> None:
        assert next(next(argument for argument in arguments if isinstance(argument, Iterator)))
        failing.set()
        raise OSError(28, "No space left on device")

    with refreshed(path) as draft, ThreadPoolExecutor(1) as thread:
        with monkeypatch.context() as patch:
            for changed in (histories_module, user_rows):
                patch.setattr(changed, "CHUNK_ROWS", 5)
            patch.setattr(histories_module, "_MEMORY_ROWS", 5)
            patch.setattr(Unwritten, "write", wait_and_write)
            patch.setattr(module, storing, fail)
            publication = draft.start_publication()
            refreshing = thread.submit(draft.refresh, lake(tmp_path, commits), policy(), at(NOW))
            assert isinstance(refreshing.exception(PATIENCE_SECONDS), OSError)
            publication.result(PATIENCE_SECONDS)
        assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits[:1]), policy(), NOW)
        assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_the_feed_in_a_publication_is_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshes beside it record changes that its rows do not have."""
    path, feed, going_on = tmp_path / "warehouse.duckdb", ["then.parquet"], threading.Event()
    for name in ("then.parquet", "later.parquet"):
        pq.write_table(stored_schema("score_changes").empty_table(), tmp_path / name)
    write = Unwritten.write

    def wait_and_write(*arguments: Any) -> None:
        assert going_on.wait(PATIENCE_SECONDS)
        write(*arguments)

    def with_newest_feed(snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, files={**snapshot.files, "score_changes": (str(tmp_path / feed[-1]),)})

    with refreshed(path) as draft:
        monkeypatch.setattr(derive_module, "_complete", with_newest_feed)
        monkeypatch.setattr(Unwritten, "write", wait_and_write)
        publication = draft.start_publication()
        feed.append("later.parquet")
        going_on.set()
        publication.result(PATIENCE_SECONDS)
    with duckdb.connect(path, read_only=True) as published:
        ((view,),) = published.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'score_changes'").fetchall()
    assert "then.parquet" in view
    assert "later.parquet" not in view


@pytest.mark.slow
def test_what_is_noted_for_a_publication_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the users who changed, not by the refreshes since the last publication."""
    monkeypatch.setattr(draft_tables, "_MANY_ROWS", 50)
    path, commits = tmp_path / "warehouse.duckdb", [_FIRST]
    with refreshed(path) as draft:
        for number in range(1, 8):
            commits.append([replace(event, event_id=f"{number}-{event.event_id}") for event in _FIRST])
            assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
        noted = draft.tables._unwritten, draft.tables._newer
        assert all(0 < rows.rows().height <= 2 * len(_FIRST) + 50 for rows in noted)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


def test_a_query_that_is_left_open_fails_a_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a wait without an end, it is an error that is tried again, with a new draft."""
    monkeypatch.setattr(database_file, "_STATEMENT_SECONDS", 0.1)
    with duckdb.connect(tmp_path / "file.duckdb") as connection, connection.cursor() as writer:
        connection.execute("CREATE TABLE numbers AS FROM range(1_000_000)")
        with connection.sql("FROM numbers").to_arrow_reader(10) as left_open:
            assert next(left_open).num_rows == 10
            writer.execute("CREATE OR REPLACE TABLE numbers AS FROM range(5)")
            with pytest.raises(duckdb.TransactionException) as raised:
                checkpoint(writer)
        assert is_transient(raised.value)
        checkpoint(writer)
