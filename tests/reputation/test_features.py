"""Each feature of the policy language, alone and in any combination, against the naive implementation."""

from typing import Any

import pytest
from hypothesis import given

from pipelines.reputation.policy import Policy
from tests.reputation import policies
from tests.reputation.agreement import assert_agreement
from tests.reputation.history import NOW, Event
from tests.reputation.merges import Pair, merges
from tests.reputation.policies import EVENTS, policy
from tests.reputation.strategies import FEWER, histories


@pytest.mark.slow
@given(histories(*EVENTS), policies.caps())
def test_caps(events: list[Event], tables: dict[str, Any]) -> None:
    """Caps over gains or net, for the user or by rater, one after the other."""
    assert_agreement(events, policy(caps=tables), NOW)


@pytest.mark.slow
@given(histories(*EVENTS), policies.emissions())
def test_decay_and_expiry(events: list[Event], tables: dict[str, Any]) -> None:
    """Points that decay, penalties that expire."""
    assert_agreement(events, policy(actions=tables), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.conditions())
def test_conditions(events: list[Event], tables: dict[str, Any]) -> None:
    """An event counts if its metadata have the texts, and numbers within the bounds, that its action requires."""
    assert_agreement(events, policy(actions=tables), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.values())
def test_values(events: list[Event], tables: dict[str, Any]) -> None:
    """Points by texts and numbers, and points of events without the key."""
    assert_agreement(events, policy(actions=tables), NOW)


@pytest.mark.slow
@FEWER
@given(histories("Rated", "Many", "Corrected"), policies.weights(), policies.measures(), policies.scopes())
def test_weights(events: list[Event], weight: Any, measure: dict[str, Any], scopes: dict[str, Any]) -> None:
    """Ratings count by their weights in every measure, overall and in scopes, beside ratings without a weight."""
    rated = {"Rated": {"rating": policies.base_actions()["Rated"]["rating"] | {"weight": weight}}}
    assert_agreement(events, policy(actions=rated, measures=policies.unweighted({"a": measure}), scopes=scopes), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.once(), policies.caps())
def test_order_by(events: list[Event], once: dict[str, Any], caps: dict[str, Any]) -> None:
    """A number of the source orders events of the same time for every rule that has an order."""
    measures = {"latest": {"formula": "mean", "last": 2}}
    levels = {"top": {"at": 2, "falls_below": 1}}
    assert_agreement(events, policy(order_by="amount", once=once, caps=caps, measures=measures, levels=levels), NOW)


@pytest.mark.slow
@given(histories("Done", "Adjusted", "Retracted", "Suspended"), policies.adjustments())
def test_adjustments(events: list[Event], table: dict[str, Any]) -> None:
    """Points by an operator earn within their bounds, decay or not, and no cap over all actions covers them."""
    cap = {"a": {"period": "month", "maximum": "4"}}
    assert_agreement(events, policy(adjustment=table, caps=cap), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.time_points(), policies.everything())
def test_points_from_time(events: list[Event], tables: dict[str, Any], others: dict[str, Any]) -> None:
    """Dated points without an event, whatever else the policy has."""
    assert_agreement(events, policy(**policies.allowed((others | {"time": tables},))[0]), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.scopes(), policies.everything())
def test_scopes(events: list[Event], tables: dict[str, Any], others: dict[str, Any]) -> None:
    """The views of each value are those of its contributions alone, whatever else the policy has."""
    assert_agreement(events, policy(**policies.allowed((others | {"scopes": tables},))[0]), NOW)


@pytest.mark.slow
@FEWER
@given(histories(*EVENTS), policies.raters(), policies.everything(), merges())
def test_raters(events: list[Event], table: dict[str, Any], others: dict[str, Any], pairs: list[Pair]) -> None:
    """Raters weigh what they are trusted, whatever else the policy has, and under which names they are known."""
    assert_agreement(events, policy(**policies.allowed((others | {"raters": table},))[0]), NOW, pairs)


@pytest.mark.slow
@given(histories(*EVENTS), policies.scores())
def test_start_floor_and_ceiling(events: list[Event], table: dict[str, Any]) -> None:
    """The all-time score has the policy's start and bounds; windows do not."""
    assert_agreement(events, policy(score=table), NOW)


@pytest.mark.slow
@given(histories("Done", "Rated", "Suspended", "Reinstated", "Retracted"), policies.status())
def test_status_rules(events: list[Event], table: dict[str, Any]) -> None:
    """Freeze, hide and reset."""
    assert_agreement(events, policy(status=table), NOW)


@pytest.mark.slow
@given(histories("Done", "Rated", "Starred", "Many", "Retracted"), policies.completion())
def test_completion(events: list[Event], tables: dict[str, Any]) -> None:
    """An event counts with a completed ride of any user, before or after."""
    assert_agreement(events, policy(completion=tables), NOW)


@pytest.mark.slow
@given(histories("Rated", "Starred", "Many", "Retracted"), policies.once())
def test_once(events: list[Event], tables: dict[str, Any]) -> None:
    """One event per rater and period, first or last."""
    assert_agreement(events, policy(once=tables), NOW)


@pytest.mark.slow
@given(histories("Rated", "Many", "Corrected", "Retracted"))
def test_correction(events: list[Event]) -> None:
    """The latest correction that is not retracted overrides its target."""
    assert_agreement(events, policy(), NOW)


@pytest.mark.slow
@given(histories(*EVENTS), policies.whole_policies())
def test_all_together(events: list[Event], rules: Policy) -> None:
    """Any combination of features."""
    assert_agreement(events, rules, NOW)


@pytest.mark.slow
@given(histories(*EVENTS), policies.whole_policies(), merges())
def test_merged_users(events: list[Event], rules: Policy, pairs: list[Pair]) -> None:
    """Any combination of features over accounts that were merged, in chains and in cycles."""
    assert_agreement(events, rules, NOW, pairs)


@pytest.mark.slow
@given(histories(*EVENTS), policies.versioned_policies())
def test_versions(events: list[Event], rules: Policy) -> None:
    """Two versions of anything, retroactive or prospective."""
    assert_agreement(events, rules, NOW)
