"""Names of time zones, as people write them in files and options."""

from zoneinfo import ZoneInfo

_MAX_CHARACTERS = 100
"""Three times the longest name. What is not among the zones of the system is imported from a package, part by part."""
_NOT_ZONES = ("posix/", "right/", "posixrules", "Factory")
"""Copies of all zones, also with leap seconds, and placeholders in the system's folder: Arrow does not have them."""


def is_time_zone(name: str) -> bool:
    """Return whether there is a time zone of this name, such as Europe/Berlin."""
    try:
        return len(name) <= _MAX_CHARACTERS and not name.startswith(_NOT_ZONES) and bool(ZoneInfo(name))
    except (ValueError, OSError, KeyError):
        return False
