"""Names of time zones, as people write them in files and options."""

from zoneinfo import ZoneInfo

_MAX_CHARACTERS = 100
"""Three times the longest name. What is not among the zones of the system is imported from a package, part by part."""


def is_time_zone(name: str) -> bool:
    """Return whether there is a time zone of this name, such as Europe/Berlin."""
    try:
        return len(name) <= _MAX_CHARACTERS and bool(ZoneInfo(name))
    except (ValueError, OSError, KeyError):
        return False
