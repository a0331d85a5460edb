"""The policy language: one validated model of the rules that turn events into points.

Owns what a policy can express (`model.py`: its versions; `rules.py`: one version; its parts in the other modules) and
its conversion to tables for the SQL (`tables.py`). `policy_file.py` reads files and explains mistakes; the SQL applies
the rules to events.
"""

from pipelines.reputation.policy.model import Edition, EffectivePolicy, Policy
from pipelines.reputation.policy.rules import Rules

__all__ = ["Edition", "EffectivePolicy", "Policy", "Rules"]
