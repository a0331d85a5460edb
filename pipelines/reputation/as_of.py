"""The scores of one moment, by the policy that was in force then or by another one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl

from pipelines.reputation.compare import compare_policies
from pipelines.reputation.explain import explain
from pipelines.reputation.known_users import naming_erased, of_known_user
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scopes import of_known_value
from pipelines.reputation.scores import scores
from pipelines.reputation.trust_paths import trust_paths
from pipelines.reputation.warehouse_session import running
from pipelines.settings import Settings

AnyPolicy = Policy | str | Path
"""A policy, the name of a shipped one, or the path of a policy file."""


@dataclass(frozen=True, slots=True, repr=False)
class AsOf:
    """The scores of one moment, as known now or at another moment; returned by `Warehouse.as_of()`."""

    _connection: duckdb.DuckDBPyConnection
    moment: datetime
    known_at: datetime | None
    policy: Policy
    """The policy of this moment, used unless a method is given another one."""
    _settings: Callable[[], Settings]

    def __repr__(self) -> str:
        known = "as known now" if self.known_at is None else f"as known at {self.known_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"<AsOf {self.moment:%Y-%m-%d %H:%M:%S} UTC, {known}, policy {self.policy.name}>"

    def scores(self, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Compute the scores of every user with an event before the moment; columns as of `Warehouse.scores()`."""
        rules = self._rules(policy)
        with running(f"scores by {rules.name}"):
            return scores(self._connection, rules, self.moment, self.known_at)

    def compare(self, policy: AnyPolicy, before: AnyPolicy | None = None) -> pl.DataFrame:
        """Return the all-time score and rank of all users by `before` (None: this moment's policy) and by `policy`.

        Columns as of `Warehouse.compare()`. Publishes nothing.
        """
        rules, old = self._rules(policy), self._rules(before)
        with running(f"{old.name} beside {rules.name}"):
            return compare_policies(self._connection, old, rules, self.moment, self.known_at)

    def explain(
        self, user_id: str, policy: AnyPolicy | None = None, view: str = "all_time", scope: str | None = None
    ) -> pl.DataFrame:
        """Return every contribution to a user's score in a view at this moment with its reason, in the order of events.

        Columns as of `Warehouse.explain()`: event_time, event_id, action_type, emission_no, policy_version, reason,
        rule, related_event_id, points, rating, earned (points; they add up to the score), score (points so far) and
        level.
        """
        with running(f"the explanation of {user_id}"), naming_erased(user_id, self._settings):
            rules = self._rules(policy)
            rows = explain(self._connection, rules, user_id, self.moment, self.known_at, view, scope)
            return of_known_value(self._connection, scope, of_known_user(self._connection, user_id, rows))

    def trust_paths(self, user_id: str, rater_id: str, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Return through whom a rater of a user is trusted, as of `Warehouse.trust_paths()`.

        Columns: day, weight, part and path. The days are those before this moment.
        """
        with running(f"the paths of trust to {rater_id}"), naming_erased(user_id, self._settings):
            rules = self._rules(policy)
            return trust_paths(self._connection, rules, user_id, rater_id, self.moment, self.known_at)

    def _rules(self, policy: AnyPolicy | None) -> Policy:
        if policy is None:
            return self.policy
        return policy if isinstance(policy, Policy) else load_policy(policy)
