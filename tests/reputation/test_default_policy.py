"""The default policy: the SQL against the naive implementation, and against known numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation.policy_file import load_policy
from tests.reputation.agreement import assert_agreement, by_sql
from tests.reputation.history import NOW, Event
from tests.reputation.strategies import histories

DEFAULT = load_policy("default")
ACTIONS = (*DEFAULT.versions[0].actions, "AccountSuspended", "AccountReinstated", "RatingRetracted")


@pytest.mark.slow
@given(histories(*ACTIONS))
def test_the_sql_agrees_with_the_naive_implementation(events: list[Event]) -> None:
    """Every event and every user have the same result, exactly."""
    assert_agreement(events, DEFAULT, NOW)


@pytest.mark.slow
@given(histories(*ACTIONS), st.randoms(use_true_random=False))
def test_arrival_order_changes_nothing(events: list[Event], random: object) -> None:
    """Shuffled events give identical scores (`replay-equals-live`)."""
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert by_sql(shuffled, DEFAULT, NOW) == by_sql(events, DEFAULT, NOW)
