"""The policy language: one validated model of the rules that turn events into points.

Owns what a policy can say (`model.py` its versions, `rules.py` one version, and the parts that is made of) and how a
policy is handed to the SQL (`tables.py`). Reading files and explaining mistakes is `policy_file.py`; what the rules do
to events is the SQL's affair.
"""

from pipelines.reputation.policy.model import Edition, InForce, Policy
from pipelines.reputation.policy.rules import Rules

__all__ = ["Edition", "InForce", "Policy", "Rules"]
