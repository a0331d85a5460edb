"""Checks of the Host and Origin headers of HTTP requests to our own servers.

A page of another site can reach a server on this machine through a host name that resolves to it (DNS rebinding), or by
a cross-origin request, which the browser marks with the page's origin. It cannot use a numeric IP address as its name.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?", re.IGNORECASE)


def is_allowed_host(header: str | None, names: Collection[str]) -> bool:
    """Return whether a Host header is an IP address, localhost or one of `names`; ports are ignored."""
    found = _AUTHORITY.fullmatch(header or "")
    if found is None:
        return False
    host = (found["v6"] or found["name"]).lower()
    return _is_address(host) or host in {"localhost", *(name.lower().partition(":")[0] for name in names)}


def is_allowed_origin(origin: str | None, host: str, names: Collection[str]) -> bool:
    """Return whether a request is same-origin: no Origin header, or the origin is `host` or one of `names`.

    A name with a port matches that port only, a name without one matches the default port.
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
