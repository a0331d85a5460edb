"""The Redis URL: one server, a Redis Cluster, or a primary that Sentinels name.

    redis://user:password@host:6379/0, rediss://... with TLS, unix:///path?db=0
    redis+cluster://user:password@host:6379,host:6379        some nodes; the client finds the others
    redis+sentinel://user:password@host:26379,host:26379/service/0
                                                             some Sentinels, and the name of the primary

`rediss+cluster` and `rediss+sentinel` use TLS for every connection. The last two forms are those of the library
`limits` (Flask-Limiter).

redis-py passes every query option of the URL to its connection, and several of them change how responses are decoded.
So options are an allow-list. No error message shows text that may be part of a password.
"""

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

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
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
_NOT_IN_CLUSTERS = {"db", "health_check_interval", "ssl_ciphers"}
"""Options that redis-py's cluster client would ignore."""
_SHAPE = (
    "it must look like redis://user:password@host:6379/0, rediss://..., unix:///path?db=0, "
    "redis+cluster://user:password@host:6379,host:6379 or "
    "redis+sentinel://user:password@host:26379,host:26379/service, "
    "with special characters in user and password percent-encoded"
)
_SEVERAL_HOSTS = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>cluster|sentinel)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]+)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<options>[^#]*))?"
)
_SERVICE = re.compile(r"/(?P<name>[A-Za-z0-9._-]+)(?P<database>/[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A validated address."""

    kind: Literal["server", "cluster", "sentinel"]
    url: str = field(repr=False)
    """The redis://, rediss:// or unix:// URL of the server or of the first host; may hold a password."""
    hosts: tuple[tuple[str, int], ...] = ()
    """The nodes of the cluster, or the Sentinels."""
    service: str = ""
    """The name under which the Sentinels know the primary."""
    sentinel_login: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """The user and password of the Sentinels, if they have their own."""

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.url.startswith("rediss://")


def parse_address(url: str) -> Address:
    """Return the parts of a URL; ConfigurationError if it, or one of its options, is not accepted."""
    several = _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        _check_url(url)
        return Address("server", url)
    return _cluster(several) if several["kind"] == "cluster" else _sentinel(several)


def _cluster(several: re.Match[str]) -> Address:
    options = _options(several)
    for name, _ in options:
        if name in _NOT_IN_CLUSTERS:
            raise ConfigurationError(f"{_SETTING} has the option {name}, which a cluster does not have: remove it")
    if several["path"] not in {None, "/", "/0"}:
        raise ConfigurationError(f"{_SETTING} names a database, but a cluster has only one: remove it")
    hosts, url = _hosts(several, "", options, default_port=6379)
    return Address("cluster", url, hosts)


def _sentinel(several: re.Match[str]) -> Address:
    service = _SERVICE.fullmatch(several["path"] or "")
    if service is None:
        raise ConfigurationError(
            f"{_SETTING} names no service of the Sentinels: {_SHAPE}. The service is the name after "
            "`sentinel monitor` in sentinel.conf, often mymaster"
        )
    options = _options(several)
    login = {_SENTINEL_LOGIN[name]: value for name, value in options if name in _SENTINEL_LOGIN}
    others = [(name, value) for name, value in options if name not in _SENTINEL_LOGIN]
    hosts, url = _hosts(several, service["database"] or "", others, default_port=26379)
    return Address("sentinel", url, hosts, service["name"], login)


def _options(several: re.Match[str]) -> list[tuple[str, str]]:
    try:
        return parse_qsl(several["options"] or "", keep_blank_values=True, strict_parsing=bool(several["options"]))
    except ValueError:
        raise _invalid() from None


def _hosts(
    several: re.Match[str], database: str, options: list[tuple[str, str]], default_port: int
) -> tuple[tuple[tuple[str, int], ...], str]:
    """Return the hosts with their ports, and the URL of the first one."""
    login = "" if several["user"] is None else f"{several['user']}@"
    query = f"?{urlencode(options)}" if options else ""
    urls = [f"{several['scheme']}://{login}{host}{database}{query}" for host in several["hosts"].split(",")]
    for url in urls:
        _check_url(url)
    parts = [urlsplit(url) for url in urls]
    if not all(part.hostname for part in parts):
        raise _invalid()
    return tuple((unquote(part.hostname or ""), part.port or default_port) for part in parts), urls[0]


def _invalid() -> ConfigurationError:
    return ConfigurationError(f"{_SETTING} is invalid: {_SHAPE}")


def _check_url(url: str) -> None:
    """Raise ConfigurationError for an invalid URL of one host, or for an option that karmalake does not accept."""
    try:
        parts = urlsplit(url)
        is_address = _is_address(parts)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:  # the error text may contain part of the password
        is_address, parts, options = False, urlsplit(""), []
    if not is_address:
        raise _invalid()
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
