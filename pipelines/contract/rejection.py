"""Why a record is no event: the reason codes of dead letters.

A code is part of the public contract (it stands in `dead_letters.reason` and in dashboards): never renamed.
"""

from enum import StrEnum


class Reason(StrEnum):
    """One code for each way in which a record can fail; the first that applies, in this order."""

    NULL_VALUE = "null_value"
    UNDECODABLE = "undecodable"
    UNKNOWN_SCHEMA = "unknown_schema"
    MISSING_EVENT_ID = "missing_event_id"
    MISSING_USER_ID = "missing_user_id"
    MISSING_ACTION_TYPE = "missing_action_type"
    MISSING_TIMESTAMP = "missing_timestamp"
    OVERSIZED_EVENT_ID = "oversized_event_id"
    OVERSIZED_USER_ID = "oversized_user_id"
    OVERSIZED_ACTION_TYPE = "oversized_action_type"
    OVERSIZED_METADATA = "oversized_metadata"
    TIMESTAMP_TOO_EARLY = "timestamp_too_early"
    TIMESTAMP_TOO_LATE = "timestamp_too_late"
    KEY_MISMATCH = "key_mismatch"
    SKIPPED = "skipped"
    """Set aside by an operator, undecoded: `karmalake skip`."""
