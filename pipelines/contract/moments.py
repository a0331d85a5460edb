"""A moment as a person writes it, in a command or a notebook."""

from datetime import UTC, date, datetime, time

from pipelines.errors import UsageError

Moment = datetime | date | str
"""A time with its zone, a UTC day (its midnight), or either as ISO 8601 text; text without an offset is UTC."""


def instant(moment: Moment) -> datetime:
    """Return a moment as a time in UTC. Raises UsageError for a text that is no time, and for a time without a zone."""
    match moment:
        case str():
            return _read(moment)
        case datetime(tzinfo=None):
            raise UsageError(f"{moment} has no time zone: give a date, or a time with tzinfo")
        case datetime():
            return moment.astimezone(UTC)
        case _:
            return datetime.combine(moment, time(), UTC)


def _read(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time: write it like 2026-01-31 or 2026-01-31T12:00:00Z") from None
