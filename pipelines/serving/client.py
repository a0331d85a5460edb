"""The one place that builds a Redis client and turns its errors into sentences.

Owns the connection's settings and the promise that no error holds a password. Knows no keys.
"""

import contextlib
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError
from pipelines.settings import RedisSettings

_RETRIES = 2
_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError)
_PASSING = (BusyLoadingError, OutOfMemoryError, ReadOnlyError)
_PASSING_CODES = ("BUSY", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")


def connect(settings: RedisSettings) -> redis.Redis:
    """Return a client, safe to share between threads; it connects on first use, so use it inside `explained`.

    Raises ConfigurationError if there is no address, or none that can be meant.
    """
    if settings.url is None:
        raise ConfigurationError(
            "no Redis is configured and no local one is running: start one with `karmalake local start`, "
            "or set KARMALAKE_REDIS_URL"
        )
    url = settings.url.get_secret_value()
    try:
        client = redis.Redis.from_url(url, **_options(settings, encrypted=url.startswith("rediss://")))
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but knows all options of an address
    except (TypeError, ValueError):  # their text may hold a part of the password
        raise ConfigurationError(
            "KARMALAKE_REDIS_URL cannot be read: it must look like redis://user:password@host:6379/0, rediss://... "
            "or unix:///path, with special characters in user and password percent-encoded "
            "and no options that redis-py does not know"
        ) from None
    return client


@contextlib.contextmanager
def explained(client: redis.Redis, doing: str) -> Generator[None]:
    """Turn errors of redis-py inside the block into ConfigurationError or TransientError, without any password.

    TransientError: trying again may help (no answer, starting, full, a replica). ConfigurationError: it will not.
    """
    try:
        yield
    except RedisError as error:
        raise _explain(error, client, doing) from None


def _options(settings: RedisSettings, *, encrypted: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": settings.socket_timeout_seconds,
        "socket_connect_timeout": settings.socket_timeout_seconds,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), _RETRIES),
        "protocol": 2,  # no HELLO: older servers know none, and would quote the password in their refusal
    }
    if settings.ssl_cafile is not None:
        _check_ca_file(settings.ssl_cafile, encrypted=encrypted)
        options["ssl_ca_certs"] = str(settings.ssl_cafile)
    return options


def _check_ca_file(path: Path, *, encrypted: bool) -> None:
    if not encrypted:
        raise ConfigurationError(
            "KARMALAKE_REDIS_SSL_CAFILE is set, but KARMALAKE_REDIS_URL does not start with rediss://, "
            "so nothing would be encrypted: change one of them"
        )
    if not path.is_file():
        raise ConfigurationError(f"KARMALAKE_REDIS_SSL_CAFILE names {path}, which is not a file")


def _explain(error: RedisError, client: redis.Redis, doing: str) -> KarmalakeError:
    text = _without_password(_text(error), client)
    said = f"while {doing}: {text}"
    where = f"Redis at {_address(client)}"
    if isinstance(error, _DENIED):
        return ConfigurationError(
            f"{where} refused access {said}. Check the user and password in KARMALAKE_REDIS_URL and what this user "
            "may do (docs/redis.md lists the commands)"
        )
    if _certificate_failed(error):
        return ConfigurationError(f"{where} cannot be trusted, {said}. Check KARMALAKE_REDIS_SSL_CAFILE")
    if isinstance(error, _PASSING) or text.startswith(_PASSING_CODES):
        return TransientError(f"{where} cannot take commands at present, {said}. Mend the server, or try again")
    if isinstance(error, ResponseError):
        return ConfigurationError(f"{where} refused a command {said}. karmalake needs Redis 5 or Valkey, no cluster")
    return TransientError(
        f"{where} did not answer {said}. Check that it runs and that KARMALAKE_REDIS_URL names it, or try again"
    )


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
