"""The errors of Redis as messages: what it refused, what that means, and what to do. None contains a password."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, truncate

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
_CLUSTER_CODES = {"ASK", "CLUSTERDOWN", "CROSSSLOT", "MOVED", "TRYAGAIN"}


def to_karmalake_error(
    error: RedisError, client: redis.Redis, doing: str, types: Mapping[bytes, str]
) -> KarmalakeError:
    """Return an error of redis-py as TransientError (a retry may help) or ConfigurationError (it will not).

    `types` maps the keys in use to the types that karmalake expects.
    """
    text = truncate(_without_password(_text(error), client))
    detail = f"while {doing}: {text}"
    where = f"Redis at {_address(client)}"
    code = error.status_code or text.partition(" ")[0]
    if isinstance(error, _DENIED):
        return ConfigurationError(
            f"{where} refused access {detail}. Check the user and password in KARMALAKE_REDIS_URL and what this user "
            "may do"
        )
    if _certificate_failed(error):
        return ConfigurationError(f"{where} has an untrusted certificate, {detail}. Check KARMALAKE_REDIS_SSL_CAFILE")
    if code in _TRANSIENT:
        return TransientError(f"{where} cannot take commands at present, {detail}. {_TRANSIENT[code]}; then try again")
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


def _remedy(code: str, text: str, client: redis.Redis, types: Mapping[bytes, str]) -> str:
    if code in _CLUSTER_CODES or "cluster" in text.lower():
        return "It is a node of Redis Cluster, which karmalake does not support: use a standalone server"
    if code == "WRONGTYPE":
        return _wrong_type(client, types)
    if "DB index" in text:
        return "The server has no database with this number: correct KARMALAKE_REDIS_URL, or raise its `databases`"
    return "karmalake needs Redis 5 or later, or Valkey, standalone, with no command disabled or renamed"


def _wrong_type(client: redis.Redis, types: Mapping[bytes, str]) -> str:
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


def _type_of(client: redis.Redis, key: bytes) -> str:
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


def _address(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}, database {options.get('db', 0)}"


def _text(error: RedisError) -> str:
    """Return the message of the server, without the command (and a user's document) that redis-py quotes before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    for introduction in ("of pipeline caused error: ", "discarded because of: "):
        text = text.rpartition(introduction)[2]
    return text.rstrip(".")


def _without_password(text: str, client: redis.Redis) -> str:
    password = client.connection_pool.connection_kwargs.get("password")
    for secret in (password, password and quote(password, safe="")):
        text = text.replace(secret, "***") if secret else text
    return text
