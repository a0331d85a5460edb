"""After a withdrawal, a refresh recomputes the users of its events and those who depend on them."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.upkeep import compact
from pipelines.lake.withdrawal import BatchTopic, withdraw_batches
from pipelines.reputation.derive import open_draft
from pipelines.reputation.policy import Policy
from tests.reputation.history import Event
from tests.reputation.merges import Pair, merges
from tests.reputation.policies import policy
from tests.reputation.strategies import ONE
from tests.reputation.test_incremental import DONE, GATE, MOMENTS, RATED, rebuilt, ride, rides, rows, split
from tests.reputation.test_refresh_after_erasure import Place
from tests.share import share


def _withdraw(here: Place, *numbers: int) -> None:
    chosen = [BatchTopic(f"batch-{number}", "topic-id", "topic") for number in numbers]
    assert withdraw_batches(here.lake, lambda: chosen, "wrong")


def _assert_rebuilt(here: Place, rules: Policy, as_of: int) -> None:
    with TemporaryDirectory() as other:
        assert rows(here.warehouse) == rebuilt(Path(other), take_snapshot(here.lake), rules, as_of)


@dataclass(frozen=True)
class Turn:
    """What is committed, the commit that is withdrawn then, if any, whether the warehouse is published, and merges."""

    events: list[Event]
    withdrawn: int | None
    as_of: int
    published: bool
    pairs: list[Pair]


@st.composite
def turns(draw: st.DrawFn, events: st.SearchStrategy[list[Event]]) -> list[Turn]:
    """Return four commits, each followed by the withdrawal of one of them, or none; as_of never decreases."""
    commits = draw(events.flatmap(split))
    moments = sorted(draw(st.lists(st.sampled_from(MOMENTS), min_size=4, max_size=4)))
    order = draw(st.permutations(range(1, 5)))
    chosen = [number if number <= turn else None for turn, number in enumerate(order, start=1)]
    return [
        Turn(batch, draw(st.sampled_from((number, None))), as_of, draw(st.booleans()), draw(merges(max_size=1)))
        for batch, number, as_of in zip(commits, chosen, moments, strict=True)
    ]


@pytest.mark.slow
@ONE
@given(turns(rides()))
def test_any_story(story: list[Turn]) -> None:
    """Ratings, completions, retractions and corrections, also of merged accounts (`incremental-equals-rebuild`)."""
    rules = policy(completion=GATE)
    with TemporaryDirectory() as folder:
        here = Place(Path(folder))
        with open_draft(here.warehouse) as draft:
            for number, turn in enumerate(story, start=1):
                here.commits = number - 1
                here.commit(turn.events)
                for pair in turn.pairs:
                    here.merge(pair)
                if turn.withdrawn and story[turn.withdrawn - 1].events:
                    here.refresh(draft, rules, turn.as_of)
                    _withdraw(here, turn.withdrawn)
                here.refresh(draft, rules, turn.as_of)
                if turn.published:
                    draft.publish()
                    _assert_rebuilt(here, rules, turn.as_of)
            draft.publish()
            _assert_rebuilt(here, rules, story[-1].as_of)


_RETRACTED, _CORRECTED = ride("e3", "bob", "Retracted", "", "e2"), ride("e3", "bob", "Corrected", "r9", "e2")


_WITHDRAWALS: dict[str, tuple[list[Event], list[Event], list[Event]]] = {
    "completion": ([RATED], [DONE], []),
    "retraction": ([RATED, DONE], [_RETRACTED], []),
    "correction": ([RATED, DONE], [_CORRECTED], []),
    "loaded again": ([RATED, _RETRACTED], [DONE], [DONE]),
    "under another user": ([RATED], [DONE], [replace(DONE, user_id="cid")]),
    "everything": ([], [RATED, DONE], []),
}
"""Events of the first commit, of the one that is withdrawn, and of a later one."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seen"),
    share([(name, bool(turn % 2) == seen) for turn, name in enumerate(_WITHDRAWALS) for seen in (True, False)], 2),
    ids=lambda value: value if isinstance(value, str) else "refreshed between" if value else "at once",
)
def test_others_are_affected(tmp_path: Path, name: str, *, seen: bool) -> None:
    """A rating counts by another user's completion: both change when one goes, also if its id returns."""
    first, withdrawn, again = _WITHDRAWALS[name]
    here, rules = Place(tmp_path), policy(completion=GATE)
    here.commit([*first, ride("e8", "eve", "Done", "r7"), ride("e9", "eve", "Rated", "r7")])
    here.commit(withdrawn)
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, rules)
        here.refresh(draft, rules)
        compact(here.lake, 2)
        _withdraw(here, 2)
        if seen:
            assert here.refresh(draft, rules).rebuild_reason is None
        here.commit(again)
        assert here.refresh(draft, rules).rebuild_reason is None
        draft.publish()
    here.assert_rebuilt(rules)


@pytest.mark.slow
def test_events_of_a_merged_account(tmp_path: Path) -> None:
    """They leave the person's score, which the warehouse has under the current user_id."""
    here, rules = Place(tmp_path), policy(completion=GATE)
    here.commit([ride("e1", "bob", "Rated", "r1"), ride("e2", "cid", "Rated", "r2"), ride("e3", "bob", "Done", "r1")])
    here.commit([ride("e4", "ann", "Rated", "r1"), ride("e5", "ann", "Done", "r2")])
    here.merge(("ann", "bob"))
    with open_draft(here.warehouse) as draft:
        here.refresh(draft, rules)
        _withdraw(here, 2)
        assert here.refresh(draft, rules).rebuild_reason is None
        draft.publish()
    here.assert_rebuilt(rules)
