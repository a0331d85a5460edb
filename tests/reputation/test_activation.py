"""The policy in force, now and at any past moment."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.errors import PolicyError, UsageError
from pipelines.lake.tables import create_lake
from pipelines.refresh import policy_in_force, refresh_warehouse
from pipelines.reputation.activation import activate, activated, activations, policy_before
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.lake.builders import commit, make_events

RULES = 'name = "points"\nversion = "{version}"\n[actions.A]\npoints = {points}\n'
FIRST, SECOND, OTHER_FIRST = (parse_policy(RULES.format(version=v, points=p)) for v, p in ((1, 3), (2, 5), (1, 4)))


def test_the_policy_activated_last_is_in_force(tmp_path: Path) -> None:
    """Before any activation, the policy of the settings; afterwards the newest, also if it was in force before."""
    settings = Settings(data_dir=tmp_path)
    assert policy_in_force(settings) == load_policy("default")
    lake = create_lake(settings.lake_root)
    for policy in (FIRST, SECOND, FIRST):
        assert activate(lake, policy) is True
        assert policy_in_force(settings) == activated(lake) == policy
    assert activate(lake, FIRST) is False


def test_the_policy_before_the_present_one(tmp_path: Path) -> None:
    """The last one that differs, of the settings at first; each activation is on the record with who and why."""
    lake, default = create_lake(tmp_path / "lake"), load_policy("default")
    with pytest.raises(UsageError, match="no other policy was in force before"):
        policy_before(lake, lambda: default)
    for policy, before in ((FIRST, default), (SECOND, FIRST), (FIRST, SECOND)):
        activate(lake, policy, "olga", f"better than {before.name}")
        assert policy_before(lake, lambda: default) == before
    recorded = [(each.policy, each.operator, each.why) for each in activations(lake)]
    assert recorded[0] == (FIRST, "olga", "better than default")
    assert [policy for policy, _, _ in recorded] == [FIRST, SECOND, FIRST]


def test_the_policy_in_force_at_a_past_moment(tmp_path: Path) -> None:
    """Between two activations the earlier policy was in force."""
    settings, lake = Settings(data_dir=tmp_path), create_lake(tmp_path / "lake")
    moments = [datetime.now(UTC)]
    for policy in (FIRST, SECOND):
        activate(lake, policy)
        moments.append(datetime.now(UTC))
    expected = [load_policy("default"), FIRST, SECOND]
    assert [policy_in_force(settings, moment) for moment in moments] == expected


@pytest.mark.slow
def test_known_at_uses_the_policy_of_that_moment(tmp_path: Path) -> None:
    """A warehouse uses the policy of known_at, and otherwise the newest."""
    lake = create_lake(tmp_path / "lake")
    activate(lake, FIRST)
    commit(lake, lake.table("events"), "batch", make_events(["a"], payload="A"))
    between = datetime.now(UTC)
    activate(lake, SECOND)
    settings = Settings(data_dir=tmp_path)
    refresh_warehouse(settings)
    with Warehouse(settings.warehouse_path) as warehouse:
        for known_at, points in ((None, 5), (between, 3)):
            assert warehouse.as_of(known_at=known_at).scores()["all_time_score"].to_list() == [points]
            assert warehouse.as_of(known_at=known_at).explain("u-0")["earned"].to_list() == [points]


@pytest.mark.slow
def test_before_the_first_activation_the_policy_of_the_settings_was_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warehouse that was derived later, by an activated policy, answers by the one before."""
    monkeypatch.setenv("KARMALAKE_REPUTATION_POLICY", "marketplace-feedback")
    lake = create_lake(tmp_path / "lake")
    commit(lake, lake.table("events"), "batch", make_events(["a"], payload="A"))
    before = datetime.now(UTC)
    activate(lake, FIRST)
    refresh_warehouse(Settings(data_dir=tmp_path))
    with Warehouse(tmp_path / "warehouse.duckdb") as warehouse:
        assert warehouse.as_of(known_at=before).policy == load_policy("marketplace-feedback")
        change = warehouse.explain_shown("u-0", before)
        assert (change.before.policy, change.after.policy) == ("marketplace-feedback@2", "points@1")
        assert change.causes.select("cause", "change").rows() == [("policy", 3)]


def test_a_version_has_one_set_of_rules(tmp_path: Path) -> None:
    """Other rules under a version that was in force are rejected, and the policy in force stays."""
    lake = create_lake(tmp_path)
    for policy in (FIRST, SECOND):
        activate(lake, policy)
    with pytest.raises(PolicyError, match="version 1 of the policy points was in force before, with other rules"):
        activate(lake, OTHER_FIRST)
    assert activated(lake) == SECOND
