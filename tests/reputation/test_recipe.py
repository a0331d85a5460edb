"""A warehouse is continued only by the SQL that made it (`incremental-equals-rebuild`)."""

from datetime import UTC, datetime

import pytest

from pipelines.reputation import sql
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse_tables import recipe

_POLICY = load_policy("default").at(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", sorted(sql._statements()))
def test_any_change_of_the_sql_is_another_recipe(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After an upgrade that changes a statement, a macro included, a refresh rebuilds."""
    before = recipe(_POLICY, "lake")
    assert recipe(_POLICY, "lake") == before
    changed = sql._statements() | {name: sql._statements()[name] + "\n-- changed"}
    monkeypatch.setattr(sql, "_statements", lambda: changed)
    assert recipe(_POLICY, "lake") != before
