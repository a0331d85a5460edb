"""A refresh leaves the rows that a rebuild would, whatever happened since (`incremental-equals-rebuild`)."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.lake.tables import Snapshot
from pipelines.reputation import database_file, draft_file, user_rows
from pipelines.reputation import derive as derive_module
from pipelines.reputation import histories as histories_module
from pipelines.reputation.base import base_folder, published_base
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.policy import Policy
from pipelines.reputation.scopes import is_scope_table
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.warehouse import Warehouse
from tests.reputation import policies
from tests.reputation.history import DAY, NOW, Event, at, snapshot_of, stored_schema
from tests.reputation.merges import Pair, merges, merges_table, stored
from tests.reputation.policies import EVENTS, Table, policy
from tests.reputation.strategies import FEWER, ONE, histories
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import share

TABLES = (
    "reputation",
    "user_days",
    "user_reasons",
    "user_levels",
    "status_periods",
    "trends_daily",
    "trends_scores",
    "trends_reasons",
    "trends_levels",
    "day_sums",
    "day_scores",
)
SOME = ("time_starts", "user_ratings_given", "rating_priors", "rater_weights")
"""Tables that only some policies have."""
MOMENTS = [NOW + shift for shift in (-DAY, -1, 0, 1, DAY // 2, DAY, 7 * DAY - 1, 30 * DAY, 31 * DAY)]


def lake(
    folder: Path, commits: Sequence[Sequence[Event]], *, compacted: int = 0, pairs: Sequence[Pair] = ()
) -> Snapshot:
    """Return the snapshot after these commits, versions 1, 2, ..., and merges; the first few files are compacted."""
    batches = [[on(event, number) for event in events] for number, events in enumerate(commits, start=1)]
    merged = [[event for batch in batches[:compacted] for event in batch], *batches[compacted:]]
    rows = [{"batch_id": f"batch-{number}", "version": number} for number in range(1, len(commits) + 1)]
    table = pa.Table.from_pylist(rows, stored_schema("commits"))
    folder = folder / f"{len(commits)}-{compacted}"
    others = {"commits": table} | ({"merged_users": merges_table(stored(pairs))} if pairs else {})
    return snapshot_of(folder, *(merged if compacted else batches), version=len(commits), **others)


def on(event: Event, version: int) -> Event:
    return Event(event.event_id, event.user_id, event.action_type, event.t, event.metadata, f"batch-{version}")


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of every table of a warehouse, in a fixed order."""
    with Warehouse(path) as warehouse:
        sums = ("reputation_sums",) if warehouse.info.decayed_to else ()
        others = (name for name in warehouse.tables() if is_scope_table(name) or name in SOME)
        tables = (*TABLES, *sums, *others)
        return {table: sorted(warehouse.sql(f"FROM {table}").rows(), key=repr) for table in tables}


def rebuilt(folder: Path, snapshot: Snapshot, rules: Policy, as_of: int) -> dict[str, list[tuple[object, ...]]]:
    derive(snapshot, rules, at(as_of), folder / "rebuilt" / "warehouse.duckdb")
    return rows(folder / "rebuilt" / "warehouse.duckdb")


@contextmanager
def scratch() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


def split(events: list[Event]) -> st.SearchStrategy[list[list[Event]]]:
    """Return four commits, at least two of them with events, in any order of arrival."""
    places = st.lists(st.integers(0, 3), min_size=len(events), max_size=len(events)).filter(lambda p: len({*p}) > 1)
    return places.map(lambda chosen: [[e for e, c in zip(events, chosen, strict=True) if c == n] for n in range(4)])


@st.composite
def stories(
    draw: st.DrawFn, events: st.SearchStrategy[list[Event]], moments: Sequence[int] = MOMENTS
) -> list[tuple[list[Event], int]]:
    """Return commits, each with the as_of of the refresh after it; as_of never decreases."""
    commits = draw(events.flatmap(split))
    chosen = sorted(draw(st.lists(st.sampled_from(moments), min_size=4, max_size=4)))
    return list(zip(commits, chosen, strict=True))


def assert_refreshes_equal_rebuilds(
    story: list[tuple[list[Event], int]], rules: Policy, pairs: Sequence[Pair] = (), first: int = 0
) -> None:
    """Refresh after each of four commits, publish after the last three of them, and compare at the end.

    The third refresh is beside the first publication.

    Histories of more than two events are in files, and the thread merges those of more than four; so it is with rows of
    changed users. If half of the users changed, the first publication begins a new base in a thread, which the second
    uses, and the third writes one itself. Before each refresh after the one with number `first`, one more of the pairs
    is merged, and before the last one all.
    """
    with scratch() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(histories_module, "_MEMORY_ROWS", 2)
        patched.setattr(histories_module, "_FOREGROUND_MERGE_ROWS", 4)
        patched.setattr(user_rows, "_MEMORY_ROWS", 2)
        patched.setattr(user_rows, "_FOREGROUND_MERGE_ROWS", 8)
        patched.setattr(draft_file, "_FOLD_THRESHOLD", 0.5)
        patched.setattr(derive_module, "_REBUILD_THRESHOLD", 0.8)
        commits: list[list[Event]] = []
        path = folder / "warehouse.duckdb"
        publication: Future[None] | None = None
        with open_draft(path) as draft:
            for number, (events, as_of) in enumerate(story):
                commits.append(events)
                known = pairs[: max(0, number - first)] if number < len(story) - 1 else pairs
                snapshot = lake(folder / "lake", commits, compacted=number // 2, pairs=known)
                derived = draft.refresh(snapshot, rules, at(as_of))
                if publication is not None:
                    publication.result(PATIENCE_SECONDS)
                if draft._file._folding is not None:
                    wait_for("the new base", draft._file._folding.is_done)
                if number % 2:
                    draft.tables.write_changes()
                if number in {1, 2}:
                    publication = draft.start_publication()
                if number == 2:
                    draft.discard()
            draft.publish()
        assert rows(path) == rebuilt(folder, snapshot, rules, as_of)
        with Warehouse(path) as warehouse:
            counted = warehouse.sql(statement("count_users_and_events")).row(0)
        assert (derived.users, derived.events, derived.counted) == counted


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS)), policies.whole_policies(), st.just([]) | merges(), st.integers(-1, 2))
def test_any_policy(story: list[tuple[list[Event], int]], rules: Policy, pairs: list[Pair], first: int) -> None:
    """Commits, late events, suspensions, retractions, corrections and day changes, under any rules.

    In half of the examples accounts are merged between two refreshes, in chains and in cycles.
    """
    assert_refreshes_equal_rebuilds(story, rules, pairs, first)


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS)), policies.scopes(), st.sampled_from([{}, {"Done": {"half_life_days": "30"}}]))
def test_scopes(story: list[tuple[list[Event], int]], scopes: Table, actions: Table) -> None:
    """The tables of scopes, of sums where points decay, after corrections that move events between values."""
    assert_refreshes_equal_rebuilds(story, policy(scopes=scopes, actions=actions))


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS)), policies.time_points(), st.sampled_from([(30,), (1, 7)]))
def test_points_from_time(story: list[tuple[list[Event], int]], time: Table, windows: tuple[int, ...]) -> None:
    """Midnights pass, first events arrive late or are retracted, and days without events change their trends."""
    assert_refreshes_equal_rebuilds(story, policy(time=time, windows_days=windows))


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS)), policies.raters(), policies.everything(), merges(), st.integers(-1, 2))
def test_raters(
    story: list[tuple[list[Event], int]], table: Table, others: Table, pairs: list[Pair], first: int
) -> None:
    """Weights of raters, whatever else the policy has, and seeds whose accounts are merged."""
    assert_refreshes_equal_rebuilds(story, policy(**policies.allowed((others | {"raters": table},))[0]), pairs, first)


@pytest.mark.slow
@ONE
@given(stories(histories(*EVENTS)), policies.versioned_policies())
def test_any_versions(story: list[tuple[list[Event], int]], rules: Policy) -> None:
    """The policy changes between two refreshes."""
    assert_refreshes_equal_rebuilds(story, rules)


@pytest.mark.slow
def test_a_merge_of_a_user_whom_rules_name(tmp_path: Path) -> None:
    """Events of others that name the user meet other conditions, and have other numbers (`incremental-equals-rebuild`).

    No feature of the policy but these reads the key, so nothing else finds these events.
    """
    words, named = {"from": "rater_id", "map": {"rita": 1, "rob": 2}}, {"rater_id": "rob", "ride_id": "rob"}
    rules = policy(actions={"Done": {"where": {"ride_id": "rita"}}, "Tipped": {"points": words, "rating": words}})
    events = [Event(f"e{n}", f"u{n}", action, NOW - DAY, named) for n, action in enumerate(["Done", "Tipped"])]
    others = [Event(f"o{n}", f"other-{n}", "Done", NOW - DAY) for n in range(9)]
    path = tmp_path / "warehouse.duckdb"
    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, [[*events, *others]]), rules, at(NOW))
        merged = lake(tmp_path, [[*events, *others], []], pairs=[("rob", "rita")])
        assert draft.refresh(merged, rules, at(NOW)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, merged, rules, NOW)


def rides() -> st.SearchStrategy[list[Event]]:
    """Return ratings and completions of few rides by three users, and their retractions and corrections."""
    ids = [f"e{number}" for number in range(8)]
    body = st.tuples(
        st.sampled_from(("ann", "bob", "cid")),
        st.sampled_from(("Done", "Rated", "Rated", "Retracted", "Corrected")),
        st.sampled_from(MOMENTS[:6]),
        st.fixed_dictionaries({"ride_id": st.sampled_from(("r1", "r2")), "target_event_id": st.sampled_from(ids)}),
    )
    rated = {"rating": "5"}
    bodies = st.lists(body, min_size=len(ids), max_size=len(ids))
    return bodies.map(lambda rows: [Event(i, u, a, t, rated | m) for i, (u, a, t, m) in zip(ids, rows, strict=True)])


GATE = {"a": {"actions": ("Rated",), "by": ("Done",), "key": "ride_id"}}


@pytest.mark.slow
@FEWER
@given(stories(rides()))
def test_completions_affect_other_users(story: list[tuple[list[Event], int]]) -> None:
    """Another user's completion, its retraction or correction is in another commit than the rating."""
    assert_refreshes_equal_rebuilds(story, policy(completion=GATE))


def ride(event_id: str, user_id: str, action_type: str, ride_id: str, target: str = "") -> Event:
    metadata = {"ride_id": ride_id, "rating": "5", "target_event_id": target}
    return Event(event_id, user_id, action_type, NOW - 9 * DAY, metadata)


RATED, DONE = ride("e1", "ann", "Rated", "r1"), ride("e2", "bob", "Done", "r1")


_DIVIDED: dict[str, tuple[list[Event], list[Event]]] = {
    "completed later": ([RATED], [DONE]),
    "rated later": ([DONE], [RATED]),
    "one more of the rated": ([RATED, DONE], [ride("e3", "ann", "Rated", "r2")]),
    "completion withdrawn": ([RATED, DONE], [ride("e3", "bob", "Retracted", "", "e2")]),
    "completion corrected": (
        [RATED, ride("e2", "bob", "Done", "r2")],
        [ride("e3", "bob", "Corrected", "r1", "e2")],
    ),
    "completion that was corrected before it came": (
        [RATED, ride("e3", "bob", "Corrected", "r1", "e2")],
        [ride("e2", "bob", "Done", "r2")],
    ),
    "correction withdrawn": (
        [RATED, ride("e2", "bob", "Done", "r2"), ride("e3", "bob", "Corrected", "r1", "e2")],
        [ride("e4", "bob", "Retracted", "", "e3")],
    ),
}
"""Events before the newest commit, and in it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", share([*_DIVIDED], 2))
def test_a_completion_and_its_event_in_different_commits(name: str) -> None:
    """One user's event decides whether another's counts, and only one of the two is in the newest commit."""
    before, after = _DIVIDED[name]
    others = [ride("e8", "dan", "Rated", "r8"), ride("e9", "eve", "Done", "r9")]
    assert_refreshes_equal_rebuilds([([*before, *others], NOW), (after, NOW)], policy(completion=GATE))


@pytest.mark.slow
def test_a_base_written_beside_refreshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who change while a thread writes it are changes to it; it is published later, and the old one is removed.

    Each step has the rows of a rebuild (`incremental-equals-rebuild`).
    """
    monkeypatch.setattr(draft_file, "_FOLD_THRESHOLD", 0.3)
    path, rules = tmp_path / "warehouse.duckdb", policy()
    commits = [[Event(f"e{n}", f"user-{n}", "Done", NOW - 40 * DAY) for n in range(10)]]
    bases: list[str | None] = []
    with open_draft(path) as draft:
        for number, users in enumerate([range(10), range(5), range(4, 6), (9,)]):
            commits.append([Event(f"n{number}-{n}", f"user-{n}", "Done", NOW - DAY) for n in users])
            draft.refresh(lake(tmp_path, commits), rules, at(NOW + number))
            draft.start_publication().result(PATIENCE_SECONDS)
            bases.append(published_base(path))
            assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), rules, NOW + number)
            if draft._file._folding is not None:
                wait_for("the new base", draft._file._folding.is_done)
        assert draft.tables.changed_share() == 0.3
    assert [base and base.partition("-")[0] for base in bases] == ["00000001", "00000001", "00000002", "00000002"]
    assert [file.name for file in base_folder(path).glob("*.duckdb")] == bases[-1:]
    with open_draft(path) as draft:
        assert draft.refresh(lake(tmp_path, commits), rules, at(NOW + 9)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), rules, NOW + 9)


ANN, BOB = (Event(f"e{n}", user, "Done", NOW - 40 * DAY) for n, user in enumerate(("ann", "bob")))
NEWS = Event("e2", "ann", "Done", NOW - 1)


@pytest.mark.slow
def test_only_affected_users_are_recomputed(tmp_path: Path) -> None:
    """A refresh recomputes the user of a new event, returns the changed users, and publishes the rows of a rebuild."""
    path = tmp_path / "warehouse.duckdb"
    derive(lake(tmp_path, [[ANN, BOB]]), policy(), at(NOW), path)
    with open_draft(path) as draft:
        derived = draft.refresh(lake(tmp_path, [[ANN, BOB], [NEWS]]), policy(), at(NOW))
        draft.publish()
    assert (derived.rebuild_reason, derived.affected_users, derived.users, derived.events) == (None, 1, 2, 3)
    assert derived.changed_users is not None
    assert derived.changed_users.to_list() == ["ann"]
    with Warehouse(path) as warehouse:
        assert warehouse.reputation("ann")["last_30_days_score"].to_list() == [3]


@pytest.mark.slow
def test_a_merge_without_a_commit(tmp_path: Path) -> None:
    """It affects both accounts and those whom a rule compares by the former user_id; that one has no row any more."""
    raters = {"a": {"actions": ("Rated",), "keep": "first", "per": "rater_id"}}
    rated = [Event(f"r-{r}", "cid", "Rated", NOW - DAY, {"rating": "4", "rater_id": r}) for r in ("ann", "bob")]
    others = [Event(f"o{n}", f"user-{n}", "Done", NOW - DAY) for n in range(20)]
    path, commits, rules = tmp_path / "warehouse.duckdb", [[ANN, BOB, *rated, *others]], policy(once=raters)
    derive(lake(tmp_path, commits), rules, at(NOW), path)
    merged = lake(tmp_path / "merged", commits, pairs=[("ann", "bob")])
    with open_draft(path) as draft:
        derived = draft.refresh(merged, rules, at(NOW))
        draft.publish()
        assert draft.refresh(merged, rules, at(NOW)).affected_users == 0
    assert (derived.rebuild_reason, derived.affected_users, derived.users) == (None, 3, 22)
    assert derived.changed_users is not None
    assert sorted(derived.changed_users.to_list()) == ["ann", "bob", "cid"]
    assert rows(path) == rebuilt(tmp_path, merged, rules, NOW)
    with Warehouse(path) as warehouse:
        counted = dict(warehouse.reputation().select("user_id", "all_time_events").rows())
        assert (counted["bob"], counted["cid"], "ann" in counted) == (2, 1, False)
        assert warehouse.explain("ann").equals(warehouse.explain("bob"))
        assert warehouse.explain("ann")["event_id"].to_list() == ["e0", "e1"]


@pytest.mark.slow
def test_a_ride_that_names_a_former_user_id(tmp_path: Path) -> None:
    """A completion rule compares resolved values, in a refresh, in a rebuild and in an explanation alike."""
    path, rules = tmp_path / "warehouse.duckdb", policy(completion=GATE)
    commits = [
        [ride("e1", "dan", "Rated", "bob"), ride("e2", "old eve", "Done", "ann"), ride("e3", "eve", "Done", "x")]
    ]
    snapshots = [lake(tmp_path / str(n), commits, pairs=(("ann", "bob"), ("old eve", "eve"))[:n]) for n in range(3)]
    with open_draft(path) as draft:
        derived = [draft.refresh(snapshot, rules, at(NOW)) for snapshot in snapshots]
        draft.publish()
    assert [each.rebuild_reason is None for each in derived] == [False, True, True]
    assert rows(path) == rebuilt(tmp_path, snapshots[-1], rules, NOW)
    with Warehouse(path) as warehouse:
        explained = warehouse.explain("dan")
        assert explained["reason"].to_list() == ["granted"]
        assert explained["score"].to_list()[-1] == warehouse.reputation("dan")["all_time_score"].item() > 0


@pytest.mark.slow
def test_a_window_moves_without_a_commit(tmp_path: Path) -> None:
    """An event that leaves the last 30 days affects its user alone."""
    path, snapshot = tmp_path / "warehouse.duckdb", lake(tmp_path, [[ANN, NEWS]])
    derive(snapshot, policy(), at(NOW), path)
    with open_draft(path) as draft:
        assert draft.refresh(snapshot, policy(), at(NOW + DAY)).affected_users == 0
        derived = draft.refresh(snapshot, policy(), at(NOW - 1 + 30 * DAY + 1))
    assert (derived.rebuild_reason, derived.affected_users) == (None, 1)


@pytest.mark.slow
def test_a_draft_that_fails_leaves_the_published_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the draft is discarded; the next refresh starts from the published warehouse."""
    path, later = tmp_path / "warehouse.duckdb", lake(tmp_path, [[ANN, BOB], [NEWS]])
    derive(lake(tmp_path, [[ANN, BOB]]), policy(), at(NOW), path)
    with open_draft(path) as draft:
        with monkeypatch.context() as broken:
            broken.setattr(derive_module, "replace_rows", None)
            with pytest.raises(TypeError):
                draft.refresh(later, policy(), at(NOW))
        assert draft.refresh(later, policy(), at(NOW)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, later, policy(), NOW)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"no database" * 999), Path.unlink])
def test_histories_are_a_cache(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A missing or damaged file is rebuilt from the lake."""
    path, commits = tmp_path / "warehouse.duckdb", [[ANN, BOB], [NEWS]]
    derive(lake(tmp_path, commits[:1]), policy(), at(NOW), path)
    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
    damage(tmp_path / "histories" / "manifest.json")
    with open_draft(path) as draft:
        assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_a_restored_lake_causes_a_rebuild(tmp_path: Path) -> None:
    """The same version with another history, as after restoring a backup, is not refreshed from."""
    path, snapshot = tmp_path / "warehouse.duckdb", lake(tmp_path, [[ANN], [BOB]])
    derive(snapshot, policy(), at(NOW), path)
    other = pa.Table.from_pylist([{"batch_id": "other", "version": 2}], stored_schema("commits"))
    restored = snapshot_of(tmp_path / "restored", [ANN], version=2, commits=other)
    with open_draft(path) as draft:
        for back in (lake(tmp_path, [[ANN]]), restored):
            assert (
                draft.refresh(back, policy(), at(NOW)).rebuild_reason
                == "the lake does not continue the warehouse's history"
            )
            draft.discard()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "as_of", "why"),
    [
        (policy(windows_days=(7,)), NOW, "the policy, its decay epoch, the SQL or the lake changed"),
        (policy(), NOW - 1, "as_of is before the warehouse's, 2024-03-01T00:00:00+00:00"),
        (policy(), NOW, None),
    ],
)
def test_a_rebuild_where_a_refresh_is_impossible(tmp_path: Path, rules: Policy, as_of: int, why: str | None) -> None:
    """Other rules or an earlier as_of cause a rebuild, with its reason."""
    path, snapshot = tmp_path / "warehouse.duckdb", lake(tmp_path, [[ANN, BOB, NEWS]])
    with open_draft(path) as draft:
        assert draft.refresh(snapshot, policy(), at(NOW)).rebuild_reason == "there is no warehouse to continue from"
        assert draft.refresh(snapshot, rules, at(as_of)).rebuild_reason == why
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, snapshot, rules, as_of)


def test_one_draft_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a second writer names the process that holds the warehouse."""
    monkeypatch.setattr(database_file, "_LOCK_SECONDS", 0.1)
    path = tmp_path / "warehouse.duckdb"
    message = f"process {os.getpid()} has held .* it keeps warehouse.duckdb up to date"
    with open_draft(path), pytest.raises(UsageError, match=message), open_draft(path):
        pass


PENALTIES = policy(windows_days=(7,), actions={"Tipped": {"points": -3, "penalties_expire_after_days": 30}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action_type", "age", "affected"), [("Done", 7 * DAY, [0, 1, 0]), ("Tipped", 30 * DAY, [1, 0, 0])]
)
def test_an_event_at_the_edge(tmp_path: Path, action_type: str, age: int, affected: list[int]) -> None:
    """The clock alone moves a window's start, or an expiry, past an event, in steps of a microsecond.

    An event at its start is still in the window; a penalty of its expiry age has expired. The user is affected in
    exactly that step, and after each step the row is that of a rebuild.
    """
    path, snapshot = tmp_path / "warehouse.duckdb", lake(tmp_path, [[Event("e0", "ann", action_type, NOW), BOB]])
    computed: list[int] = []
    with open_draft(path) as draft:
        draft.refresh(snapshot, PENALTIES, at(NOW + age - 1))
        for as_of in (NOW + age, NOW + age + 1, NOW + age + 2):
            computed.append(draft.refresh(snapshot, PENALTIES, at(as_of)).affected_users)
            refreshed = sorted(draft.connection.sql("FROM reputation").fetchall(), key=repr)
            assert refreshed == rebuilt(tmp_path, snapshot, PENALTIES, as_of)["reputation"]
    assert computed == affected


def _heavy() -> list[Event]:
    """Return four events of hal, whom the test's limit of three makes a heavy user, and one of bob."""
    return [*(Event(f"h{n}", "hal", "Done", NOW - 40 * DAY + n) for n in range(4)), BOB]


@pytest.mark.slow
def test_heavy_users_are_deferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others do not wait for them; after further commits, the next full refresh has the rows of a rebuild."""
    monkeypatch.setattr(derive_module, "HEAVY_USER_EVENTS", 3)
    path, commits = tmp_path / "warehouse.duckdb", [_heavy()]
    score = "SELECT all_time_events FROM reputation WHERE user_id = '{}'"

    def counted(user_id: str) -> int:
        return one_row(draft.connection.execute(score.format(user_id)))[0]

    with open_draft(path) as draft:
        assert draft.refresh_light_users(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is not None
        for number, users in enumerate([("hal",), ("bob", "hal"), ("bob",)]):
            commits.append([Event(f"n{number}-{user}", user, "Done", NOW - DAY) for user in users])
            derived = draft.refresh_light_users(lake(tmp_path, commits), policy(), at(NOW + number))
            assert derived.affected_users == users.count("bob")
            assert (counted("hal"), draft.deferred_users()) == (4, 1)
        assert counted("bob") == 3
        with pytest.raises(UsageError, match="are deferred"):
            draft.publish()
        assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW + 9)).affected_users == 1
        assert (counted("hal"), draft.deferred_users()) == (6, 0)
        draft.publish()
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW + 9)


@pytest.mark.slow
def test_related_users_are_read_by_key(tmp_path: Path) -> None:
    """Of a user with very many completed rides, the refresh of another user reads one ride, not all."""
    done = [Event(f"d{n}", "bob", "Done", NOW - 9 * DAY + n, {"ride_id": f"r{n}"}) for n in range(50)]
    others = [ride(f"o{n}", f"user-{n}", "Rated", f"r{n}") for n in range(50)]
    path, rules = tmp_path / "warehouse.duckdb", policy(completion=GATE)
    commits = [[*done, *others], [ride("e1", "ann", "Rated", "r7")]]
    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, commits[:1]), rules, at(NOW))
        assert draft.refresh(lake(tmp_path, commits), rules, at(NOW)).affected_users == 1
        loaded = draft.connection.execute("SELECT event_id FROM affected_event ORDER BY ALL").fetchall()
        draft.publish()
    assert loaded == [("d7",), ("e1",)]
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), rules, NOW)
