"""The shipped policies: the cases beside them, and real data where the rules are public."""

import csv
from datetime import datetime
from typing import Any

import pytest

from pipelines.reputation.case_results import run_cases
from pipelines.reputation.cases import case_files
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy, shipped_policies
from tests.conftest import SHARED_DATA
from tests.reputation.agreement import assert_agreement, by_sql
from tests.reputation.history import Event, us

EXCHANGE = SHARED_DATA / "stackexchange-quantumcomputing-2018" / "events.csv"


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_policies())
def test_the_cases_of_each_policy_pass(name: str) -> None:
    """Each shipped policy has a file of cases, computed by hand, and gives what they expect."""
    (file,) = case_files(name)
    results = run_cases(file)
    assert len(results) >= 3
    assert [each.differences for each in results if not each.passed] == []


def exchange_events() -> list[Event]:
    with EXCHANGE.open(newline="") as file:
        return [
            Event(
                event_id=line["event_id"],
                user_id=line["user_id"],
                action_type=line["action_type"],
                t=us(datetime.fromisoformat(line["timestamp"])),
                metadata={"post_id": line["post_id"]} | ({"amount": line["amount"]} if line["amount"] else {}),
            )
            for line in csv.DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.skipif(not EXCHANGE.exists(), reason=f"the Stack Exchange data are not at {EXCHANGE}")
def test_stackexchange_on_real_data() -> None:
    """Every user of quantumcomputing.stackexchange.com has the score computed by hand, and each rule matters."""
    events, as_of = exchange_events(), us(datetime.fromisoformat("2018-09-03T00:00:00Z"))
    policy = load_policy("stackexchange-2018")
    assert_agreement(events, policy, as_of)
    _, rows = by_sql(events, policy, as_of)
    for removed in (
        {"caps": {}},
        {"actions": without(policy, "answer_accepted")},
        {"actions": without(policy, "bounty")},
    ):
        version = policy.versions[0].model_dump(exclude_unset=True, by_alias=True) | removed
        without_rule = Policy.model_validate({"name": "poorer", "versions": [version]})
        assert by_sql(events, without_rule, as_of)[1] != rows


def without(policy: Policy, start: str) -> dict[str, Any]:
    actions = policy.versions[0].model_dump(exclude_unset=True, by_alias=True)["actions"]
    return {name: action for name, action in actions.items() if not name.startswith(start)}
