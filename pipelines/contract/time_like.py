"""Times as arguments of commands and notebook functions."""

from datetime import UTC, date, datetime, time

from pipelines.errors import UsageError

TimeLike = datetime | date | str
"""A datetime, a day (its midnight), or either as ISO 8601 text. What has no zone or offset is UTC."""


def to_utc(value: TimeLike) -> datetime:
    """Return `value` as a datetime in UTC; without a zone or offset it is taken as UTC, whatever the machine's zone.

    Raises UsageError for anything that is not a time.
    """
    try:
        match value:
            case str():
                return _as_utc(datetime.fromisoformat(value))
            case datetime():
                return _as_utc(value)
            case date():
                return datetime.combine(value, time(), UTC)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"{value!r} is not a time: write it like 2026-01-31 or 2026-01-31T12:00:00Z")


def require_order(since: datetime | date | None, until: datetime | date | None) -> None:
    """Raise UsageError unless a period begins before its end; one without a begin or end has no order."""
    if since is not None and until is not None and since >= until:
        raise UsageError(f"the period begins at {_text(since)}, which is not before its end, {_text(until)}: swap them")


def _text(moment: datetime | date) -> str:
    if not isinstance(moment, datetime):
        return moment.isoformat()
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"


def _as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
