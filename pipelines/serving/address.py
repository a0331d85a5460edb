"""Validation of the Redis URL.

redis-py passes every query option of the URL to its connection, and several of them change how responses are decoded.
So options are an allow-list. No error message shows text that may be part of a password.
"""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pipelines.errors import ConfigurationError

_SETTING = "KARMALAKE_REDIS_URL"
_NUMBER, _FLAG, _TEXT = re.compile(r"[0-9]{1,9}"), re.compile(r"(?i)true|false|yes|no|0|1"), re.compile(r"[!-~]+")
_ALLOWED = {
    "db": _NUMBER,
    "username": re.compile(r".+", re.DOTALL),
    "password": re.compile(r".+", re.DOTALL),
    "client_name": _TEXT,
    "health_check_interval": _NUMBER,
    "socket_keepalive": _FLAG,
    "ssl_ca_certs": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_cert_reqs": re.compile(r"none|optional|required"),
    "ssl_certfile": _TEXT,
    "ssl_check_hostname": _FLAG,
    "ssl_ciphers": _TEXT,
    "ssl_keyfile": _TEXT,
    "ssl_password": re.compile(r".+", re.DOTALL),
}
_SETTING_INSTEAD = {
    "socket_timeout": "KARMALAKE_REDIS_SOCKET_TIMEOUT_SECONDS",
    "socket_connect_timeout": "KARMALAKE_REDIS_SOCKET_TIMEOUT_SECONDS",
    "timeout": "KARMALAKE_REDIS_SOCKET_TIMEOUT_SECONDS",
}
_RESERVED = {
    "decode_responses",
    "encoding",
    "encoding_errors",
    "legacy_responses",
    "max_connections",
    "parser_class",
    "protocol",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "single_connection_client",
    "socket_read_size",
    "ssl_min_version",
}
"""Well-known options of redis-py. Errors may name them, since no password is spelled like one."""
_SHAPE = (
    "it must look like redis://user:password@host:6379/0, rediss://... or unix:///path?db=0, with special characters "
    "in user and password percent-encoded"
)


def check_address(url: str) -> None:
    """Raise ConfigurationError for an invalid URL, or for an option that karmalake does not accept."""
    try:
        parts = urlsplit(url)
        is_address = _is_address(parts)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:  # the error text may contain part of the password
        is_address, parts, options = False, urlsplit(""), []
    if not is_address:
        raise ConfigurationError(f"{_SETTING} is invalid: {_SHAPE}")
    for name, value in options:
        _check_option(name, value, encrypted=parts.scheme == "rediss")
    names = [name for name, _ in options] + ["db"] * bool(_database(parts))
    if len(names) > len(set(names)):
        raise ConfigurationError(
            f"{_SETTING} gives the same option twice, as an option or as the database: give it once"
        )


def _is_address(parts: SplitResult) -> bool:
    if parts.fragment or (parts.scheme not in {"redis", "rediss", "unix"}):
        return False
    if parts.scheme == "unix":
        return bool(parts.path.strip("/"))
    return parts.port != 0 and bool(re.fullmatch(r"[0-9]{0,9}", _database(parts)))


def _database(parts: SplitResult) -> str:
    return "" if parts.scheme == "unix" else parts.path.removeprefix("/")


def _check_option(name: str, value: str, *, encrypted: bool) -> None:
    if name in _SETTING_INSTEAD:
        raise ConfigurationError(
            f"{_SETTING} has the option {name}: remove it, and set {_SETTING_INSTEAD[name]} instead"
        )
    if name in _RESERVED:
        raise ConfigurationError(f"{_SETTING} has the option {name}, which karmalake sets itself: remove it")
    if name not in _ALLOWED:
        raise ConfigurationError(
            f"{_SETTING} has an unsupported option: {_SHAPE}, with no options but {', '.join(_ALLOWED)}"
        )
    if not _ALLOWED[name].fullmatch(value):
        raise ConfigurationError(f"{_SETTING} has the option {name} with an invalid value: correct it")
    if name.startswith("ssl_") and not encrypted:
        raise ConfigurationError(
            f"{_SETTING} has the option {name}, but does not start with rediss://, so the connection "
            "would not be encrypted: change one of them"
        )
