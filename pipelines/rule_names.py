"""What the rules of notifications name, compared with the policy in force."""

from datetime import UTC, datetime

from pipelines.boundary.toml import did_you_mean
from pipelines.feed_causes import possible_causes
from pipelines.lake.tables import is_lake
from pipelines.notify.conditions import PolicyNames
from pipelines.notify.rules import RuleFile
from pipelines.refresh import policy_in_force
from pipelines.reputation.views import view_columns, views
from pipelines.settings import Settings

_MISSPELT = 0.85
"""The least likeness of an action to one of the policy: names of other events share words with it, not letters."""


def foreign_names(rules: RuleFile, settings: Settings) -> list[str] | None:
    """Return which columns, levels and causes of rules the policy in force does not have, a sentence each.

    None if the policy is not known: there is no lake at the place of the settings. Raises TransientError if the lake
    cannot be read, PolicyError if the policy of the settings cannot.
    """
    if not rules.speaks_of_changes:
        return []
    if not is_lake(settings.lake_root):
        return None
    policy = policy_in_force(settings)
    in_force = policy.at(datetime.now(UTC))
    columns = [f"{view.name}_{column}" for view in views(in_force) for column in view_columns(in_force)]
    levels = dict.fromkeys(name for edition in in_force.editions for name in edition.rules.levels)
    return rules.foreign_names(PolicyNames(policy.name, columns, [*levels], possible_causes(in_force)))


def misspelt_actions(rules: RuleFile, settings: Settings) -> list[str]:
    """Return which actions of rules resemble one of the policy in force, and are none of it, a sentence each.

    A hint and no mistake: a rule may be about events without points, under any name. Raises as `foreign_names` does.
    """
    named = [(rule.name, action) for rule in rules.rules for action in rule.actions]
    if not named or not is_lake(settings.lake_root):
        return []
    policy = policy_in_force(settings)
    editions = policy.at(datetime.now(UTC)).editions
    known = [action for edition in editions for action in edition.rules.action_types]
    return [
        f"rule {name!r}: the policy {policy.name} has no action {action!r}{hint}"
        for name, action in named
        if action not in known and (hint := did_you_mean(action, known, _MISSPELT))
    ]
