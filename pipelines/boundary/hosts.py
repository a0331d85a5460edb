"""Who may speak to a server of ours: the names that it may be called by, and the pages that may call it.

A page of another site reaches a server of this machine by a name of its own that it lets point here (DNS rebinding), or
by a request that a browser marks with the page's origin. It cannot choose an address in digits as its name.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?", re.IGNORECASE)


def host_allowed(header: str | None, names: Collection[str]) -> bool:
    """Return whether a Host header names an IP address, localhost or one of `names`; their ports do not count."""
    found = _AUTHORITY.fullmatch(header or "")
    if found is None:
        return False
    host = (found["v6"] or found["name"]).lower()
    return _is_address(host) or host in {"localhost", *(name.lower().partition(":")[0] for name in names)}


def origin_allowed(origin: str | None, host: str, names: Collection[str]) -> bool:
    """Return whether a request is no other page's: without an Origin, of the host that it is for, or of one of `names`.

    A name with a port stands for that port only, a name without one for the default port.
    """
    if origin is None:
        return True
    scheme, _, authority = origin.lower().partition("://")
    return scheme in {"http", "https"} and authority in {host.lower(), *(name.lower() for name in names)}


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
