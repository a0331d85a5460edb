"""Trends change by differences: they are those of a rebuild, and read no user who did not change."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation import derive as derive_module
from pipelines.reputation import draft_file
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.fold import Fold
from pipelines.reputation.policy import Policy
from pipelines.reputation.user_rows import StoredRows
from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_tables import score_trends
from tests.reputation import policies
from tests.reputation.history import DAY, NOW, Event, at
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import ONE, histories
from tests.reputation.test_incremental import lake, rebuilt, rows, scratch, stories
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_MANY = 200
_SHARES = {"p10": Fraction(1, 10), "p25": Fraction(1, 4), "median": Fraction(1, 2), "p75": Fraction(3, 4)}
_SHARES |= {"p90": Fraction(9, 10)}


@dataclass
class Folds:
    """New bases of a draft, each complete for it when the test says so."""

    draft: Draft
    are_done: bool = False

    def publish(self, *, begin: bool) -> None:
        """Publish; a new base is begun, unless one is being written."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_file, "_FOLD_THRESHOLD", -1.0 if begin else 1.0)
            self.draft.start_publication().result(PATIENCE_SECONDS)
        self.are_done = False

    def end(self) -> None:
        """Let the base be complete, if one was begun: the next publication continues with it."""
        if self.draft._file._folding is not None:
            self.are_done = True
            wait_for("the new base", self.draft._file._folding.is_done)


@contextmanager
def held_folds(path: Path) -> Generator[Folds]:
    """Yield a draft whose new bases wait for the test."""
    is_done = Fold.is_done
    with pytest.MonkeyPatch.context() as patch, open_draft(path) as draft:
        folds = Folds(draft)
        patch.setattr(Fold, "is_done", lambda fold: folds.are_done and is_done(fold))
        patch.setattr(derive_module, "_REBUILD_THRESHOLD", 1.0)
        yield folds


@pytest.mark.slow
@ONE
@given(
    stories(histories(*EVENTS)),
    policies.whole_policies() | policies.time_points().map(lambda time: policy(time=time)),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=4, max_size=4),
)
def test_folds_in_between(
    story: list[tuple[list[Event], int]], rules: Policy, turns: list[tuple[bool, bool, bool, bool]]
) -> None:
    """Publications while a base is written and after it, and SQL over the draft (`incremental-equals-rebuild`)."""
    commits: list[list[Event]] = []
    with scratch() as folder:
        path = folder / "warehouse.duckdb"
        with held_folds(path) as folds:
            for (events, as_of), (ends, writes, publishes, begins) in zip(story, turns, strict=True):
                commits.append(events)
                snapshot = lake(folder / "lake", commits)
                folds.draft.refresh(snapshot, rules, at(as_of))
                if ends:
                    folds.end()
                if writes:
                    folds.draft.tables.write_changes()
                if publishes:
                    folds.publish(begin=begins)
            folds.publish(begin=False)
            assert rows(path) == rebuilt(folder, snapshot, rules, as_of)


@pytest.mark.slow
def test_a_change_that_is_taken_back_beside_a_fold(tmp_path: Path) -> None:
    """It is published while the base is written, and is no difference to that base when this is adopted."""
    path, days = tmp_path / "warehouse.duckdb", [NOW - number * DAY - 1 for number in range(4)]
    commits = [[Event(f"e{number}", "ann", "Done", t) for number, t in enumerate(days)]]
    with held_folds(path) as folds:

        def refresh(*events: Event) -> None:
            commits.append([*events])
            derived = folds.draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
            assert derived.rebuild_reason is None or len(commits) == 2

        def assert_published() -> None:
            assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)

        refresh()
        refresh(Event("n1", "bob", "Done", days[2]))
        folds.publish(begin=True)
        before = rows(path)
        refresh(Event("n2", "ann", "Done", days[3] - 1), Event("n3", "bob", "Rated", days[3], {"rating": "5"}))
        folds.publish(begin=False)
        assert_published()
        assert all(rows(path)[name] != before[name] for name in ("trends_daily", "trends_scores", "trends_reasons"))
        target = {"target_event_id": "n2"}, {"target_event_id": "n3"}
        refresh(*(Event(f"r{n}", user, "Retracted", NOW - 1, target[n]) for n, user in enumerate(("ann", "bob"))))
        folds.end()
        folds.publish(begin=False)
        assert_published()
        assert rows(path)["day_scores"] != before["day_scores"]
        refresh(Event("n4", "bob", "Done", days[1]))
        folds.publish(begin=False)
        assert_published()


@pytest.mark.slow
def test_a_publication_reads_only_users_who_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although others have events on the days that changed."""
    path, found = tmp_path / "warehouse.duckdb", list[int]()
    rows_of = StoredRows.rows_of
    commits = [[Event(f"e{number}", f"user-{number}", "Done", NOW - number // 10 * DAY - 1) for number in range(_MANY)]]

    def counted(stored: StoredRows, table: str, users: np.ndarray) -> pa.Table:
        found.append(len(users))
        return rows_of(stored, table, users)

    with open_draft(path) as draft:
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        draft.publish()
        commits.append([Event(f"n{number}", f"user-{number}", "Done", NOW - 2 * DAY) for number in (1, 50)])
        assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
        with monkeypatch.context() as patch:
            patch.setattr(StoredRows, "rows_of", counted)
            draft.start_publication().result(PATIENCE_SECONDS)
    assert set(found) == {2}
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@pytest.mark.slow
def test_differences_that_cancel_leave_no_row(tmp_path: Path) -> None:
    """What changed since the base stays small, however often the same users change."""
    path, commits = tmp_path / "warehouse.duckdb", [[Event("e0", "ann", "Done", NOW - 2 * DAY)]]
    with open_draft(path) as draft, pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_file, "_FOLD_THRESHOLD", 1.0)
        patch.setattr(derive_module, "_REBUILD_THRESHOLD", 1.0)
        draft.refresh(lake(tmp_path, commits), policy(), at(NOW))
        for number in range(1, 6):
            commits.append([Event(f"e{number}", "ann", "Done", NOW - number)])
            assert draft.refresh(lake(tmp_path, commits), policy(), at(NOW)).rebuild_reason is None
            draft.publish()
    with Warehouse(path) as warehouse:
        changed = warehouse.sql("FROM warehouse.changed.day_scores").rows()
        assert [row[1:] for row in changed] == [(18, 1)]
    assert rows(path) == rebuilt(tmp_path, lake(tmp_path, commits), policy(), NOW)


@given(st.dictionaries(st.integers(-9, 99), st.integers(1, 60), min_size=1))
def test_quantiles_are_exact(users: dict[int, int]) -> None:
    """The lowest score that a share of the users has reached: for any numbers, also where floats would round."""
    with duckdb.connect() as connection:
        values = ", ".join(f"(DATE '2026-01-01', {score}, {number})" for score, number in users.items())
        query = score_trends(f"(VALUES {values}) AS day_scores(day, score, users)")
        (found,) = connection.sql(query).pl().to_dicts()
    ordered = sorted(score for score, number in users.items() for _ in range(number))
    expected = {name: ordered[ceil(share * len(ordered)) - 1] for name, share in _SHARES.items()}
    assert found == expected | {
        "day": found["day"],
        "active_users": len(ordered),
        "minimum": ordered[0],
        "maximum": ordered[-1],
    }
