"""What the rules of notifications about changes name, compared with the policy in force."""

from datetime import UTC, datetime

from pipelines.feed_causes import possible_causes
from pipelines.lake.tables import is_lake
from pipelines.notify.conditions import PolicyNames
from pipelines.notify.rules import RuleFile
from pipelines.refresh import policy_in_force
from pipelines.reputation.views import view_columns, views
from pipelines.settings import Settings


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
