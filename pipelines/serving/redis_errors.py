"""The errors of Redis as messages: what it refused, what that means, and what to do. None contains a password."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import redis
from redis.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.sentinel import SentinelConnectionPool

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, truncate

Client = redis.Redis | RedisCluster
"""A client of one server, found by its address or by Sentinels, or of a cluster."""
_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError)
_TRANSIENT = {
    "BUSY": "A script is blocking it: stop it with SCRIPT KILL",
    "LOADING": "It is still loading its data",
    "MASTERDOWN": "It is a replica that has lost its primary: name the primary in KARMALAKE_REDIS_URL",
    "MISCONF": "It cannot save to disk: its log says why",
    "NOREPLICAS": "It has fewer replicas than its min-replicas-to-write: restore them, or lower that setting",
    "OOM": "Its memory is full: raise its maxmemory",
    "READONLY": "It is a replica: name the primary in KARMALAKE_REDIS_URL",
}
"""Meaning of each error code that is temporary, and what to do besides waiting."""
_TRANSIENT_IN_CLUSTERS = {
    "ASK": "A slot is being moved to another node",
    "MOVED": "A slot has moved to another node",
    "CLUSTERDOWN": "Some of its slots have no primary: a replica may be taking over, or see CLUSTER INFO",
    "TRYAGAIN": "A slot is being moved to another node",
    "TTL": "Slots are being moved to another node",  # redis-py: TTL exhausted
}
_CLUSTER_CODES = {"ASK", "CLUSTERDOWN", "CROSSSLOT", "MOVED", "TRYAGAIN"}


def to_karmalake_error(
    raised: RedisError | RedisClusterException, client: Client, doing: str, types: Mapping[bytes, str]
) -> KarmalakeError:
    """Return an error of redis-py as TransientError (a retry may help) or ConfigurationError (it will not).

    `types` maps the keys in use to the types that karmalake expects.
    """
    error = _cause(raised)
    text = truncate(_without_password(_text(error), client))
    detail = f"while {doing}: {text}"
    where = f"Redis at {_place(client)}"
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    transient = _TRANSIENT | _TRANSIENT_IN_CLUSTERS if isinstance(client, RedisCluster) else _TRANSIENT
    if isinstance(error, _DENIED):
        return ConfigurationError(
            f"{where} refused access {detail}. Check the user and password in KARMALAKE_REDIS_URL and what this user "
            "may do"
        )
    if _certificate_failed(error):
        return ConfigurationError(f"{where} has an untrusted certificate, {detail}. Check KARMALAKE_REDIS_SSL_CAFILE")
    if code in transient:
        return TransientError(f"{where} cannot take commands at present, {detail}. {transient[code]}; then try again")
    if isinstance(error, ResponseError):
        return ConfigurationError(f"{where} refused a command {detail}. {_remedy(code, text, client, types)}")
    return TransientError(
        f"{where} did not answer {detail}. Check that it is running and that KARMALAKE_REDIS_URL points to it, "
        "or try again"
    )


def unexpected_content(key: bytes, what: str) -> ConfigurationError:
    """Return the error for a key whose content karmalake did not write."""
    return ConfigurationError(
        f"the Redis key {printable_key(key)} {what}: another program writes there. Find that program, or choose "
        "another redis.prefix; delete the key and run `karmalake publish --full`"
    )


def printable_key(key: bytes) -> str:
    """Return a key as text, with bytes that are not UTF-8 as backslash escapes."""
    return key.decode("utf-8", "backslashreplace")


def _remedy(code: str, text: str, client: Client, types: Mapping[bytes, str]) -> str:
    if "cluster support disabled" in text:
        return "It is not a node of a cluster: write redis:// instead of redis+cluster:// in KARMALAKE_REDIS_URL"
    if code in _CLUSTER_CODES or "cluster" in text.lower():
        return "It is a node of a cluster: write redis+cluster:// instead of redis:// in KARMALAKE_REDIS_URL"
    if code == "WRONGTYPE":
        return _wrong_type(client, types)
    if "DB index" in text:
        return "The server has no database with this number: correct KARMALAKE_REDIS_URL, or raise its `databases`"
    return "karmalake needs Redis 5 or later, or Valkey, with no command disabled or renamed"


def _wrong_type(client: Client, types: Mapping[bytes, str]) -> str:
    for key, expected in types.items():
        found = _type_of(client, key)
        if found not in {expected, "none", ""}:
            return (
                f"The key {printable_key(key)} is a {found}, but karmalake expects a {expected}: another program uses "
                "it. Delete or rename it, or choose another redis.prefix; then run `karmalake publish --full`"
            )
    return (
        f"One of these keys has an unexpected type: {', '.join(map(printable_key, types))}. Check them with TYPE; "
        "delete or rename the wrong one, or choose another redis.prefix; then run `karmalake publish --full`"
    )


def _type_of(client: Client, key: bytes) -> str:
    """Return the type of a key; empty if TYPE is not permitted."""
    try:
        found: Any = client.type(key)
    except RedisError:
        return ""
    return found.decode()


def _certificate_failed(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(client: Client) -> str:
    if isinstance(client, RedisCluster):
        return f"the cluster of {', '.join(node.name for node in client.startup_nodes)}"
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        return f"{pool.service_name}, by the Sentinels {', '.join(sorted(map(_host, sentinels)))}"
    options = pool.connection_kwargs
    return f"{options.get('path') or _host(options)}, database {options.get('db', 0)}"


def _host(options: Mapping[str, Any]) -> str:
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _cause(error: RedisError | RedisClusterException) -> RedisError | RedisClusterException:
    """Return the error of a node that made redis-py raise a RedisClusterException, if there is one."""
    found, cause = error, error.__cause__ or error.__context__
    while isinstance(found, RedisClusterException) and isinstance(cause, RedisError | RedisClusterException):
        found, cause = cause, cause.__cause__ or cause.__context__
    return found


def _text(error: RedisError | RedisClusterException) -> str:
    """Return the message of the server, without the command (and a user's document) that redis-py quotes before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    for introduction in ("of pipeline caused error: ", "discarded because of: "):
        text = text.rpartition(introduction)[2]
    return text.rstrip(".")


def _without_password(text: str, client: Client) -> str:
    for password in _passwords(client):
        for secret in (password, password and quote(password, safe="")):
            text = text.replace(secret, "***") if secret else text
    return text


def _passwords(client: Client) -> list[str | None]:
    if isinstance(client, RedisCluster):
        return [client.get_connection_kwargs().get("password")]
    pool = client.connection_pool
    own = pool.connection_kwargs.get("password")
    if isinstance(pool, SentinelConnectionPool):
        return [own, pool.sentinel_manager.sentinel_kwargs.get("password")]
    return [own]
