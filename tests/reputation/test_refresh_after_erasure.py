"""After an erasure, a refresh removes the erased users and recomputes the users who depended on them (`erasable`)."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from uuid import uuid4

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.commit import append_file
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erasure import erase_users
from pipelines.lake.tables import Lake, create_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.erase import all_names
from pipelines.reputation import draft_file
from pipelines.reputation import histories as histories_module
from pipelines.reputation.base import base_folder
from pipelines.reputation.database_file import log_file
from pipelines.reputation.derive import DerivationResult, Draft, open_draft
from pipelines.reputation.draft_file import DraftFile
from pipelines.reputation.histories import Histories, delete_histories, histories_folder
from pipelines.reputation.policy import Policy
from pipelines.settings import ContractSettings, Settings
from tests.lake.builders import commit
from tests.reputation import policies
from tests.reputation.history import DAY, NOW, Event, at, events_table
from tests.reputation.merges import Pair, merges_table, stored
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import ONE, histories
from tests.reputation.test_incremental import GATE, MOMENTS, rebuilt, ride, rides, rows, split

_AFTER = Literal["publish", "continue", "crash"]


@dataclass(frozen=True)
class Turn:
    """Events that are committed, accounts that are merged, users who are erased, and what follows the refresh."""

    events: list[Event]
    erased: frozenset[str]
    as_of: int
    after: _AFTER
    compacted: bool
    pair: Pair | None


@dataclass
class Place:
    """A lake and a warehouse in a folder."""

    folder: Path
    personal_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.lake: Lake = create_lake(self.folder / "lake")
        self.erased: set[str] = set()
        self.commits = self.merges = 0

    @property
    def warehouse(self) -> Path:
        return self.folder / "warehouse.duckdb"

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self.folder, contract=ContractSettings(personal_keys=self.personal_keys))

    def commit(self, events: Sequence[Event]) -> None:
        """Commit the events of users who are not erased, without the names of those who are, as ingest does."""
        if remaining := [event for event in events if event.user_id not in self.erased]:
            self.commits += 1
            stored = events_table(remaining).drop(["batch_id"])
            stored = open_tombstones(self.lake, self.settings).replace_names(stored).rows
            commit(self.lake, self.lake.table("events"), f"batch-{self.commits}", stored)

    def merge(self, pair: Pair, t: int | None = None) -> None:
        """Merge accounts, later than all others or at a time, unless one was erased: the command refuses that."""
        if not self.erased & {*pair}:
            self.merges += 1
            (merge,) = stored([pair], NOW + self.merges if t is None else t)
            row = merges_table([replace(merge, merge_id=f"m{self.merges}")])
            append_file(self.lake, "merged_users", row, uuid4().hex)

    def erase(self, *user_ids: str) -> None:
        names = all_names(self.settings, user_ids)
        self.erased |= set(names)
        erase_users(self.lake, open_tombstones(self.lake, self.settings), names)

    def refresh(self, draft: Draft, rules: Policy, as_of: int = NOW) -> DerivationResult:
        return draft.refresh(take_snapshot(self.lake), rules, at(as_of))

    def assert_rebuilt(self, rules: Policy, as_of: int = NOW) -> None:
        """Assert that the published warehouse has the rows of a rebuild, and that no file has an erased user."""
        with TemporaryDirectory() as other:
            assert rows(self.warehouse) == rebuilt(Path(other), take_snapshot(self.lake), rules, as_of)
        vacuum(self.lake, 0)
        assert holding(self.folder, self.erased) == {}


def holding(folder: Path, user_ids: Collection[str]) -> dict[str, str]:
    """Return the files that have a user_id among their bytes, decoded if they are Parquet, or in a row of a table."""
    texts = {path: _text(path) for path in folder.rglob("*") if path.is_file()}
    return {str(path): user_id for path, text in texts.items() for user_id in user_ids if user_id.encode() in text}


def _text(path: Path) -> bytes:
    text = path.read_bytes()
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        text += str((file.metadata.to_dict(), file.read().to_pylist())).encode()
    if path.suffix == ".duckdb":
        text += _rows_of(path)
    return text


def _rows_of(path: Path) -> bytes:
    """Return the rows of a database as text, read from a copy: this process may have the file open."""
    with TemporaryDirectory() as folder:
        for file in filter(Path.exists, (path, log_file(path))):
            shutil.copy(file, folder)
        with duckdb.connect(f"{folder}/{path.name}", read_only=True) as connection:
            tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            rows = (connection.execute(f'FROM "{schema}"."{name}"').fetchall() for schema, name in tables)
            return b"".join(str(found).encode() for found in rows)


@contextmanager
def place(personal_keys: tuple[str, ...] = ()) -> Iterator[Place]:
    with TemporaryDirectory() as folder:
        yield Place(Path(folder), personal_keys)


def _named(event: Event) -> Event:
    """Return an event whose user_id cannot occur among other bytes."""
    return replace(event, user_id=_name(event.user_id))


def _name(user_id: str) -> str:
    return f"<user {user_id!r}>"


@st.composite
def turns(draw: st.DrawFn, events: st.SearchStrategy[list[Event]]) -> list[Turn]:
    """Return four commits, each followed by a merge and an erasure of some users, or of none; as_of never decreases."""
    commits = [list(map(_named, batch)) for batch in draw(events.flatmap(split))]
    users = sorted({event.user_id for batch in commits for event in batch}) or ["<unknown>"]
    moments = sorted(draw(st.lists(st.sampled_from(MOMENTS), min_size=4, max_size=4)))
    erased = st.frozensets(st.sampled_from(users), max_size=1)
    after = st.sampled_from(("publish", "continue", "crash"))
    pair = st.none() | st.tuples(st.sampled_from(users), st.sampled_from(users))
    return [
        Turn(batch, draw(erased), as_of, draw(after), draw(st.booleans()), draw(pair))
        for batch, as_of in zip(commits, moments, strict=True)
    ]


def assert_refreshes_equal_rebuilds(story: list[Turn], rules: Policy, personal_keys: tuple[str, ...] = ()) -> None:
    """Commit, merge, erase and refresh in turn; publish, continue or discard the draft; compare at the end."""
    with place(personal_keys) as here, open_draft(here.warehouse) as draft:
        for turn in story:
            here.commit(turn.events)
            if turn.compacted:
                here.refresh(draft, rules, turn.as_of)
                compact(here.lake, 2)
            if turn.pair:
                here.merge(turn.pair)
            if turn.erased:
                here.erase(*turn.erased)
            here.refresh(draft, rules, turn.as_of)
            if turn.after == "publish":
                draft.publish()
                here.assert_rebuilt(rules, turn.as_of)
            if turn.after == "crash":
                draft.discard()
        here.refresh(draft, rules, story[-1].as_of)
        draft.publish()
        draft.discard()
        here.assert_rebuilt(rules, story[-1].as_of)


@pytest.mark.slow
@ONE
@given(turns(histories(*EVENTS)), policies.whole_policies())
def test_any_policy(story: list[Turn], rules: Policy) -> None:
    """Under any rules a refresh after an erasure leaves the rows of a rebuild (`incremental-equals-rebuild`)."""
    assert_refreshes_equal_rebuilds(story, rules)


@pytest.mark.slow
@ONE
@given(turns(rides()))
def test_completions_of_erased_users(story: list[Turn]) -> None:
    """Erased completions, their retractions and corrections affect others (`incremental-equals-rebuild`)."""
    assert_refreshes_equal_rebuilds(story, policy(completion=GATE))


@st.composite
def _ratings(draw: st.DrawFn) -> list[Event]:
    """Return ratings of three users by each other, and retractions, over four days."""
    found: list[Event] = []
    for place in range(draw(st.integers(4, 12))):
        user, rater = draw(st.sampled_from("abc")), draw(st.sampled_from("abcd"))
        given = {"rating": str(draw(st.integers(-10, 10))), "rater_id": _name(rater)}
        withdrawn = {"target_event_id": f"e{draw(st.integers(0, 9))}"}
        action, metadata = draw(st.sampled_from([("Rated", given), ("Rated", given), ("Retracted", withdrawn)]))
        time = NOW - draw(st.integers(0, 7)) * DAY // 2 - place
        found.append(Event(f"e{place}", user, action, time, metadata))
    return found


@pytest.mark.slow
@ONE
@given(_ratings().flatmap(lambda events: turns(st.just(events))))
def test_weights_of_raters_who_are_erased(story: list[Turn]) -> None:
    """Their names in ratings of others become pseudonyms, on any day (`incremental-equals-rebuild`)."""
    story = [replace(turn, pair=None) for turn in story]
    assert_refreshes_equal_rebuilds(story, policy(raters={"weight": "trust", "seeds": _name("d")}), ("rater_id",))


_ANN, _BOB, _CID = (f"user-{name}-of-the-test" for name in ("ann", "bob", "cid"))
_RIDES = [
    ride("e1", _ANN, "Rated", "r1"),
    ride("e2", _BOB, "Done", "r1"),
    ride("e3", _CID, "Rated", "r3"),
    ride("e4", _CID, "Done", "r3"),
]


_BY_ANN = {"rating": "5", "rater_id": _ANN}
_RATED = [(3, _CID), (1, _BOB), (1, _CID)]


def _publish_first(here: Place, rules: Policy, events: Sequence[Event] = _RIDES) -> None:
    """Commit events, and publish a warehouse with histories."""
    here.commit(events)
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, rules)
        here.refresh(draft, rules)
        draft.publish()
    folders = {str(Path(path).parent) for path in holding(here.folder, [_BOB])}
    assert folders >= {str(base_folder(here.warehouse)), str(histories_folder(here.warehouse))}


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """Return an empty lake without a warehouse."""
    return Place(tmp_path)


def _count_rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives an item whenever the histories are built from all events."""
    built: list[str] = []
    reset = Histories._reset

    def counted(*arguments: object) -> None:
        built.append("histories")
        reset(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Histories, "_reset", counted)
    return built


@pytest.mark.slow
def test_only_dependent_users_are_recomputed(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob is erased, ann's rating loses its completion, cid is not recomputed; nothing is rebuilt."""
    rules = policy(completion=GATE)
    _publish_first(here, rules)
    built = _count_rebuilds(monkeypatch)
    here.erase(_BOB)
    with open_draft(here.warehouse) as draft:
        derived = here.refresh(draft, rules)
        computed = draft.connection.execute("SELECT user_id FROM affected_user ORDER BY ALL").fetchall()
        draft.publish()
    assert (derived.rebuild_reason, derived.affected_users, derived.users) == (None, 2, 2)
    assert derived.changed_users is not None
    assert sorted(derived.changed_users) == [_ANN, _BOB]
    assert computed == [(_ANN,), (_BOB,)]
    assert built == []
    here.assert_rebuilt(rules)


@pytest.mark.slow
@pytest.mark.parametrize("remaining", [True, False])
def test_weights_of_the_newest_day(here: Place, *, remaining: bool) -> None:
    """Bob's ratings of the newest day are erased; other users were rated on it, or it is no longer a day with ratings.

    Either way the weights are those of a rebuild (`incremental-equals-rebuild`).
    """
    seeds = {"weight": "trust", "seeds": _ANN}
    rules = policy(raters=seeds, measures={"mean": {"formula": "mean", "digits": 2}})
    rated = [Event(f"r{n}-{user}", user, "Rated", NOW - n * DAY, _BY_ANN) for n, user in _RATED]
    _publish_first(here, rules, rated if remaining else rated[:-1])
    here.erase(_BOB)
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, rules)
        draft.publish()
    here.assert_rebuilt(rules)


@pytest.mark.slow
def test_an_erasure_without_events_copies_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The erasure of a user without events does not copy the files."""
    _publish_first(here, policy())
    here.erase("unknown")
    monkeypatch.setattr(histories_module, "without_rows", _killed)
    monkeypatch.setattr(draft_file, "write_base", _killed)
    with open_draft(here.warehouse) as draft:
        assert here.refresh(draft, policy()).rebuild_reason is None
        draft.publish()
    here.assert_rebuilt(policy())


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["histories", "draft"])
def test_dependent_users_are_found_without_the_cache(here: Place, lost: str) -> None:
    """The erased events are read from the lake: the cache may be lost, or ahead of the warehouse."""
    rules = policy(completion=GATE)
    _publish_first(here, rules)
    here.erase(_BOB)
    with open_draft(here.warehouse) as draft:
        if lost == "draft":
            here.refresh(draft, rules)
            draft.discard()
        else:
            delete_histories(histories_folder(here.warehouse))
        assert here.refresh(draft, rules).rebuild_reason is None
        draft.publish()
    here.assert_rebuilt(rules)


@pytest.mark.slow
def test_a_warehouse_from_before_the_vacuum_is_rebuilt(here: Place) -> None:
    """The erased events are on record as long as the replaced files; an older warehouse is rebuilt."""
    _publish_first(here, policy())
    here.erase(_BOB)
    vacuum(here.lake, 0)
    with open_draft(here.warehouse) as draft:
        assert (
            here.refresh(draft, policy()).rebuild_reason == "the events that an erasure removed are no longer on record"
        )
        draft.publish()
    here.assert_rebuilt(policy())


@pytest.mark.slow
def test_a_cache_from_before_the_vacuum_is_rebuilt(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache may be older than the warehouse, which has been rebuilt since."""
    _publish_first(here, policy())
    cache, before = histories_folder(here.warehouse), here.folder / "before"
    shutil.copytree(cache, before)
    here.erase(_BOB)
    vacuum(here.lake, 0)
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, policy())
        draft.publish()
        draft.discard()
        shutil.rmtree(cache, ignore_errors=True)
        before.rename(cache)
        built = _count_rebuilds(monkeypatch)
        here.commit([Event("e9", _ANN, "Done", NOW - 1)])
        assert here.refresh(draft, policy()).rebuild_reason is None
        draft.publish()
    assert built == ["histories"]
    here.assert_rebuilt(policy())


@pytest.mark.slow
def test_a_crash_while_the_cache_is_copied(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old cache stays, and the next refresh copies it without the users; files of the crash are removed."""
    _publish_first(here, policy())
    here.erase(_BOB)
    with open_draft(here.warehouse) as draft, monkeypatch.context() as patch:
        patch.setattr(histories_module, "replace_durably", _killed)
        with pytest.raises(KeyboardInterrupt):
            here.refresh(draft, policy())
    with open_draft(here.warehouse) as draft:
        assert here.refresh(draft, policy()).rebuild_reason is None
        draft.publish()
    here.assert_rebuilt(policy())


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_restored_lake_causes_a_rebuild(here: Place, tmp_path: Path) -> None:
    """A copy from before the erasure contains the user: the warehouse is rebuilt from it."""
    copy = Place(tmp_path / "copy")
    for each in (here, copy):
        _publish_first(each, policy())
    here.erase(_BOB)
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, policy())
        draft.publish()
        restored = replace(take_snapshot(copy.lake), lake_id=take_snapshot(here.lake).lake_id)
        reason = draft.refresh(replace(restored, version=take_snapshot(here.lake).version), policy(), at(NOW))
        assert reason.rebuild_reason == "the events that an erasure removed are no longer on record"


@pytest.mark.slow
def test_no_byte_remains_in_large_files(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of users, some are erased after several refreshes: no block, used or free, contains their ids.

    Values are stored uncompressed, so that a search of the files' bytes finds them before the erasure.
    """
    open_file = DraftFile._open

    def uncompressed(draft: DraftFile, file: Path) -> duckdb.DuckDBPyConnection:
        connection = open_file(draft, file)
        connection.execute("SET force_compression = 'uncompressed'")
        return connection

    monkeypatch.setattr(DraftFile, "_open", uncompressed)
    users = [f"user-{number:05}-of-the-test" for number in range(5_000)]
    for day in range(3):
        here.commit([Event(f"{user}/{day}", user, "Done", NOW - (9 - day) * DAY) for user in users[day::2]])
        with open_draft(here.warehouse) as draft:
            here.refresh(draft, policy())
            draft.publish()
    folders, erased = [base_folder(here.warehouse), histories_folder(here.warehouse)], users[::100]
    assert [user for user in erased if _bytes_with(folders, user) != folders] == []
    here.erase(*erased)
    with open_draft(here.warehouse) as draft:
        assert here.refresh(draft, policy()).rebuild_reason is None
        draft.publish()
    assert [user for user in erased if _bytes_with([here.warehouse, *folders], user)] == []
    here.assert_rebuilt(policy())


def _bytes_with(paths: Sequence[Path], user_id: str) -> list[Path]:
    """Return the files, and folders with a file, that contain the bytes of a user_id."""
    return [path for path in paths if any(user_id.encode() in file.read_bytes() for file in _files_of(path))]


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.iterdir())
