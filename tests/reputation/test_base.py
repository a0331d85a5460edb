"""A base and the changes to it: which files exist, readers while they are replaced, and what a failure leaves."""

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import pytest

from pipelines.errors import UsageError, is_transient
from pipelines.reputation import derive as derive_module
from pipelines.reputation import draft_file, warehouse_file
from pipelines.reputation import export as export_module
from pipelines.reputation import fold as fold_module
from pipelines.reputation.base import base_folder, published_base
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import DAY, NOW, Event, at
from tests.reputation.policies import policy
from tests.reputation.test_incremental import lake, rebuilt, rows
from tests.reputation.test_refresh_after_erasure import Place, holding
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.slow
_USERS = 10
_FIRST = [Event(f"e{n}", f"user-{n}", "Done", NOW - 40 * DAY) for n in range(_USERS)]
_LONG_QUERY = "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b, range(1000000) AS c WHERE a.range = -1"


class Story:
    """A draft, and the commits that it was refreshed to."""

    def __init__(self, folder: Path, draft: Draft) -> None:
        self.folder, self.draft, self.path = folder, draft, draft.path
        self.commits: list[list[Event]] = []
        self.commit(_FIRST)
        self.commit([])  # a refresh, which writes the rows beside the base

    def commit(self, events: list[Event]) -> None:
        self.commits.append(events)
        self.draft.refresh(lake(self.folder, self.commits), policy(), at(NOW))

    def change(self, *numbers: int) -> None:
        """Commit an event of each of these users."""
        count = len(self.commits)
        self.commit([Event(f"n{count}-{n}", f"user-{n}", "Done", NOW - 1) for n in numbers])

    def publish_new_base(self, *numbers: int) -> None:
        """Change users, and publish with a new base."""
        self.change(*numbers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
            self.draft.publish()

    def publish_and_fold(self) -> None:
        """Publish changes, and write a new base in a thread."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
            self.draft.start_publication().result(PATIENCE_SECONDS)
        assert self.draft._file._folding is not None

    def wait_for_the_fold(self) -> None:
        assert self.draft._file._folding is not None
        wait_for("the new base", self.draft._file._folding.is_done)

    def assert_published(self) -> None:
        """Assert that the published rows are those of a rebuild, and that one base exists."""
        assert rows(self.path) == rebuilt(self.folder, lake(self.folder, self.commits), policy(), NOW)
        assert bases(self.path) == [published_base(self.path)]


def bases(path: Path) -> list[str]:
    return sorted(file.name for file in base_folder(path).glob("*.duckdb"))


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """Yield a draft that is not yet published; only a test that says so writes a new base."""
    with pytest.MonkeyPatch.context() as patch, open_draft(tmp_path / "data" / "warehouse.duckdb") as draft:
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 1.0)
        patch.setattr(derive_module, "_REBUILD_THRESHOLD", 1.0)
        yield Story(tmp_path, draft)


@contextmanager
def before_once(module: Any, name: str, act: Callable[[], object]) -> Iterator[None]:
    """Act before the first call of a module's function."""
    function, acts = getattr(module, name), [act]

    def acting(*arguments: object) -> object:
        while acts:
            acts.pop()()
        return function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, acting)
        yield


def test_a_reader_keeps_the_base_that_it_opened(story: Story) -> None:
    """Its rows stay the same while a thread writes a new base, and after the old one is removed (`atomic`)."""
    story.change(1)
    story.draft.publish()
    before = rows(story.path)
    with Warehouse(story.path) as reader:
        story.change(2)
        story.publish_and_fold()
        story.wait_for_the_fold()
        story.change(3)
        story.draft.publish()
        story.assert_published()
        found = {table: sorted(reader.sql(f"FROM {table}").rows(), key=repr) for table in before}
        assert found == before
        assert reader.refresh()
        assert sorted(reader.sql("FROM reputation").rows(), key=repr) == rows(story.path)["reputation"] != found


def test_a_reader_that_opens_while_the_base_is_replaced(story: Story) -> None:
    """The base of the file that it opened may be removed before it opens that: it opens the newer file (`atomic`)."""
    story.draft.publish()
    with (
        before_once(warehouse_file, "attach_base", lambda: story.publish_new_base(1)),
        Warehouse(story.path) as reader,
    ):
        assert reader.info.lake_version == 3
        assert sorted(reader.sql("FROM reputation").rows(), key=repr) == rows(story.path)["reputation"]
    story.assert_published()


def test_many_refreshes_beside_a_fold(story: Story) -> None:
    """Users who changed in several of them keep their rows in the new base, and in later refreshes."""
    story.change(1)
    story.publish_and_fold()
    story.change(*range(_USERS))
    for number in (8, 3, 5):
        story.change(number)
    story.wait_for_the_fold()
    story.draft.publish()
    story.assert_published()
    story.change(*range(0, _USERS, 2))
    story.draft.publish()
    story.assert_published()


def test_an_export_beside_publications(story: Story) -> None:
    """It has the rows of the moment at which it began, although their base is removed meanwhile (`atomic`)."""
    story.change(1)
    story.draft.publish()
    before, file = rows(story.path), story.folder / "exported.duckdb"
    with before_once(export_module, "write_base", lambda: story.publish_new_base(2)):
        export_warehouse(story.path, file)
    assert rows(file) == before != rows(story.path)
    story.assert_published()


@pytest.mark.parametrize("step", ["write_base", "write_rows_beside"])
def test_a_fold_on_a_full_disk(story: Story, caplog: pytest.LogCaptureFixture, step: str) -> None:
    """Nothing remains of it, publications continue on the old base, and a later one tries again."""
    function = getattr(fold_module, step)

    def fill(*arguments: object) -> None:
        function(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    story.change(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_module, step, fill)
        story.publish_and_fold()
        story.wait_for_the_fold()
    assert bases(story.path) == [published_base(story.path)]
    story.change(2)
    story.draft.publish()
    assert "no new base of the warehouse was written" in caplog.text
    story.assert_published()
    story.publish_and_fold()
    story.wait_for_the_fold()
    story.draft.publish()
    story.assert_published()
    assert story.draft.tables.changed_share() == 0.0


def test_a_fold_that_is_interrupted_leaves_nothing(story: Story) -> None:
    """Leaving the draft ends the thread, whatever it computes; the published warehouse keeps its base."""

    def write_and_continue(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
        write_base(connection, base)
        connection.execute(_LONG_QUERY)

    write_base = fold_module.write_base
    story.change(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_module, "write_base", write_and_continue)
        story.publish_and_fold()
        wait_for("the new base", lambda: len(bases(story.path)) == 2)
        story.draft.discard()
    story.assert_published()
    story.change(2)
    story.draft.publish()
    story.assert_published()


def test_few_changes_are_published(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a warehouse is refreshed, at most the threshold's share of the users is in the changes."""
    monkeypatch.setattr(draft_file, "_FOLD_THRESHOLD", 0.3)
    shares: list[float] = []
    for number in range(_USERS):
        story.change(number)
        story.draft.publish()
        shares.append(story.draft.tables.changed_share())
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.0] * 2 + [0.1, 0.2])
    story.assert_published()


@pytest.mark.parametrize("folding", ["in progress", "complete"])
def test_an_erasure_beside_a_fold(tmp_path: Path, folding: str) -> None:
    """The base that a thread wrote from rows with the erased user is not used, and removed (`erasable`)."""

    def write_and_continue(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
        write_base(connection, base)
        if folding == "in progress":
            connection.execute(_LONG_QUERY)

    here, write_base = Place(tmp_path), fold_module.write_base
    users = [f"<user-{n}-of-the-test>" for n in range(8)]
    here.commit([Event(f"e{n}", user, "Done", NOW - 1) for n, user in enumerate(users)])
    with open_draft(here.warehouse) as draft, pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
        patch.setattr(derive_module, "_REBUILD_THRESHOLD", 1.0)
        patch.setattr(fold_module, "write_base", write_and_continue)
        here.refresh(draft, policy())
        here.commit([Event("n1", users[0], "Done", NOW - 1)])
        here.refresh(draft, policy())
        draft.start_publication().result(PATIENCE_SECONDS)
        assert draft._file._folding is not None
        wait_for("the new base", lambda: len(bases(here.warehouse)) == 2)
        if folding == "complete":
            wait_for("the end of the thread", draft._file._folding.is_done)
        here.erase(users[0], users[1])
        assert here.refresh(draft, policy()).rebuild_reason is None
        assert holding(base_folder(here.warehouse), users[:2])
        draft.start_publication().result(PATIENCE_SECONDS)
        here.assert_rebuilt(policy())
        assert bases(here.warehouse) == [published_base(here.warehouse)]


def test_changes_fit_only_their_base(story: Story) -> None:
    """A warehouse.duckdb from another folder finds no base, although one of the same number exists."""
    story.change(1)
    story.draft.publish()
    other = story.folder / "other" / "warehouse.duckdb"
    with open_draft(other) as draft:
        draft.refresh(lake(story.folder, [_FIRST]), policy(), at(NOW))
        draft.publish()
    shutil.copy(story.path, other)
    with pytest.raises(UsageError, match=r"cannot be opened: .*`karmalake rebuild`"):
        Warehouse(other)
    with open_draft(other) as draft:
        reason = draft.refresh(lake(story.folder, story.commits), policy(), at(NOW)).rebuild_reason
        assert reason == "the published warehouse is damaged, or from another version of karmalake"
        draft.publish()
    assert rows(other) == rows(story.path)
    assert bases(other) == [published_base(other)]


def test_rows_beside_a_base_are_only_a_cache(story: Story) -> None:
    """Without them the next refresh reads the base, and writes them again."""
    story.change(1)
    story.draft.publish()
    story.draft.discard()
    files = [file for file in base_folder(story.path).iterdir() if file.stat().st_size]
    beside = sorted(file for file in files if file.suffix != ".duckdb")
    assert {file.suffix for file in beside} == {".rows", ".users", ".checksums"}
    for file in beside[::2]:
        file.unlink()
    story.change(1, 2)
    story.draft.publish()
    assert set(beside) < set(base_folder(story.path).iterdir())
    story.assert_published()


def test_a_warehouse_of_the_format_before_bases(story: Story) -> None:
    """A release before bases may have replaced the file: a refresh says so, rebuilds, and removes what is left."""
    story.draft.publish()
    story.draft.discard()
    story.path.unlink()
    with duckdb.connect(story.path) as older:
        older.execute("CREATE TABLE snapshot_info AS SELECT 2 AS format, '0.1.0' AS karmalake_version")
    with pytest.raises(UsageError, match="in an older format: run `karmalake refresh`"):
        Warehouse(story.path)
    derived = story.draft.refresh(lake(story.folder, story.commits), policy(), at(NOW))
    assert derived.rebuild_reason == "the published warehouse has format 2, written by karmalake 0.1.0"
    story.draft.publish()
    story.assert_published()


def test_a_fold_that_cannot_begin_fails_no_publication(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    """It is optional: the publication is complete, and a later one begins another."""
    story.change(1)
    failing = [OSError(errno.EIO, "Input/output error"), duckdb.IOException("no"), UsageError("no base")]
    for number, error in enumerate(failing, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_file, "_FOLD_THRESHOLD", 0.0)
            patch.setattr(fold_module, "attach", Mock(side_effect=error))
            story.draft.start_publication().result(PATIENCE_SECONDS)
        assert caplog.text.count("a later publication tries again") == number - 1
        story.assert_published()
        story.change(number)
    story.publish_and_fold()
    story.wait_for_the_fold()
    story.draft.publish()
    story.assert_published()


@pytest.mark.parametrize("removed", ["base/*.duckdb", "base/*", "warehouse.duckdb*", "*"])
def test_a_draft_whose_files_were_removed_is_rebuilt(story: Story, removed: str) -> None:
    """They are derived files: the next refresh rebuilds, and what is published can be read."""
    story.change(1)
    story.draft.publish()
    for file in [file for file in story.path.parent.glob(removed) if file.is_file() and file.suffix != ".lock"]:
        file.unlink()
    with suppress(FileNotFoundError):  # of the draft, by a publication that began before the next refresh
        story.draft.start_publication().result(PATIENCE_SECONDS)
    story.change(2)
    story.draft.publish()
    story.assert_published()


def test_an_error_of_the_machine_stays_one(story: Story) -> None:
    """A process at its limit of open files may succeed later; a file that is damaged or lost needs a rebuild."""
    story.draft.publish()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(duckdb.IOException, match="Too many open files") as raised:
            warehouse_file.attach(story.path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert is_transient(raised.value)
    damaged = story.folder / "damaged.duckdb"
    damaged.write_bytes(story.path.read_bytes()[:9_000])
    with pytest.raises(UsageError, match=r"cannot be opened: .*`karmalake rebuild`"):
        warehouse_file.attach(damaged)
