"""What Redis refuses, as sentences of ours: what it said, what that means, and what to do. No password is in them."""

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

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, shortened

_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError)
_PASSING = {
    "BUSY": "A script keeps it busy: end that with SCRIPT KILL",
    "LOADING": "It is still loading its data",
    "MASTERDOWN": "It is a replica that has lost its primary: name the primary in KARMALAKE_REDIS_URL",
    "MISCONF": "It cannot save to disk: its log says why",
    "NOREPLICAS": "It has fewer replicas than its min-replicas-to-write: bring them back, or lower that",
    "OOM": "Its memory is full: raise its maxmemory",
    "READONLY": "It is a replica: name the primary in KARMALAKE_REDIS_URL",
}
"""By code, what is true for the moment, and the way on besides waiting."""
_OF_A_CLUSTER = {"ASK", "CLUSTERDOWN", "CROSSSLOT", "MOVED", "TRYAGAIN"}


def refusal(error: RedisError, client: redis.Redis, doing: str, types: Mapping[bytes, str]) -> KarmalakeError:
    """Return an error of redis-py as TransientError (trying again may help) or ConfigurationError (it will not).

    `types` names the keys that were in use, each with the type that karmalake gives it.
    """
    text = shortened(_without_password(_text(error), client))
    said = f"while {doing}: {text}"
    where = f"Redis at {_address(client)}"
    code = error.status_code or text.partition(" ")[0]
    if isinstance(error, _DENIED):
        return ConfigurationError(
            f"{where} refused access {said}. Check the user and password in KARMALAKE_REDIS_URL and what this user "
            "may do"
        )
    if _certificate_failed(error):
        return ConfigurationError(f"{where} cannot be trusted, {said}. Check KARMALAKE_REDIS_SSL_CAFILE")
    if code in _PASSING:
        return TransientError(f"{where} cannot take commands at present, {said}. {_PASSING[code]}; then try again")
    if isinstance(error, ResponseError):
        return ConfigurationError(f"{where} refused a command {said}. {_way_on(code, text, client, types)}")
    return TransientError(
        f"{where} did not answer {said}. Check that it runs and that KARMALAKE_REDIS_URL names it, or try again"
    )


def foreign_content(key: bytes, what: str) -> ConfigurationError:
    """Return the error for a key whose content is not karmalake's."""
    return ConfigurationError(
        f"the Redis key {shown(key)} {what}: something else writes there. Find out what, or choose another "
        "redis.prefix; delete the key and run `karmalake publish --full`"
    )


def shown(key: bytes) -> str:
    """Return a key as text; a part that is no UTF-8 as Python writes it."""
    return key.decode("utf-8", "backslashreplace")


def _way_on(code: str, text: str, client: redis.Redis, types: Mapping[bytes, str]) -> str:
    if code in _OF_A_CLUSTER or "cluster" in text.lower():
        return "It is a node of Redis Cluster, which karmalake does not support: name a server that is none"
    if code == "WRONGTYPE":
        return _wrong_type(client, types)
    if "DB index" in text:
        return "The server has no database of this number: correct KARMALAKE_REDIS_URL, or its directive `databases`"
    return "karmalake needs Redis 5 or Valkey, no cluster, with no command disabled or renamed"


def _wrong_type(client: redis.Redis, types: Mapping[bytes, str]) -> str:
    for key, expected in types.items():
        found = _type_of(client, key)
        if found not in {expected, "none", ""}:
            return (
                f"The key {shown(key)} is a {found}, where karmalake keeps a {expected}: something else uses it. "
                "Delete or rename it, or choose another redis.prefix; then run `karmalake publish --full`"
            )
    return (
        f"One of these keys is of another type than karmalake gives it: {', '.join(map(shown, types))}. Look with "
        "TYPE, delete or rename it, or choose another redis.prefix; then run `karmalake publish --full`"
    )


def _type_of(client: redis.Redis, key: bytes) -> str:
    """Return the type of a key; empty where we may not ask."""
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
    """Return what the server said, without the command (and a user's document) that redis-py quotes before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    for introduction in ("of pipeline caused error: ", "discarded because of: "):
        text = text.rpartition(introduction)[2]
    return text.rstrip(".")


def _without_password(text: str, client: redis.Redis) -> str:
    password = client.connection_pool.connection_kwargs.get("password")
    for secret in (password, password and quote(password, safe="")):
        text = text.replace(secret, "***") if secret else text
    return text
