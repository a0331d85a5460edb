"""The policy language: one validated model of the rules that turn events into points.

Owns what a policy can say (`model.py` and the parts it is made of) and how a policy is handed to the SQL
(`tables.py`). Reading files and explaining mistakes is `policy_file.py`; what the rules do to events is the SQL's
affair.
"""

from pipelines.reputation.policy.model import Policy

__all__ = ["Policy"]
