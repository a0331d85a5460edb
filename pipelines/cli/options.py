"""What several commands share: the settings with the running local services, and instants."""

from datetime import UTC, datetime

from pipelines.errors import UsageError
from pipelines.settings import Settings


def current_settings() -> Settings:
    """Return the settings, with the local broker and cache where none are configured."""
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415
    from pipelines.settings import load_settings  # noqa: PLC0415

    return with_local_endpoints(load_settings())


def instant(text: str | None) -> datetime | None:
    """Read an ISO 8601 instant; a bare date is its midnight, and without an offset it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time: write it like 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
