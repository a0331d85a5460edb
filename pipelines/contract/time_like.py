"""Times as arguments of commands and notebook functions."""

from datetime import UTC, date, datetime, time

from pipelines.errors import UsageError

TimeLike = datetime | date | str
"""A datetime with time zone, a UTC day (its midnight), or either as ISO 8601 text; text without an offset is UTC."""


def to_utc(value: TimeLike) -> datetime:
    """Return `value` as a datetime in UTC. Raises UsageError for text that is not a time, or a time without a zone."""
    match value:
        case str():
            return _parse(value)
        case datetime(tzinfo=None):
            raise UsageError(f"{value} has no time zone: give a date, or a time with tzinfo")
        case datetime():
            return value.astimezone(UTC)
        case _:
            return datetime.combine(value, time(), UTC)


def _parse(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time: write it like 2026-01-31 or 2026-01-31T12:00:00Z") from None
