"""The reason codes of dead letters.

A code is part of the public interface (`dead_letters.reason`, dashboards) and is never renamed. `decode.py` assigns
all of them except `skipped`, which `karmalake skip` writes (`operate/skip.py`).
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a record was rejected: the first reason that applies, in the order of definition."""

    NULL_VALUE = "null_value"
    UNDECODABLE = "undecodable"
    UNKNOWN_SCHEMA = "unknown_schema"
    UNMAPPABLE = "unmappable"
    """The SELECT of its source fails on it: `pipelines/mapping`."""
    REFUSED_SELECT = "refused_select"
    """The SELECT of its source is refused for its schema; it halts its topic partition unless that is accepted."""
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
    """Skipped by an operator without decoding: `karmalake skip`."""
