"""The one place that builds a Redis client, and in whose blocks its errors become sentences.

Owns the connection's settings and the promise that no error holds a password. What an address may say is `address.py`,
what a refusal means `refusals.py`.
"""

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import InvalidResponse, RedisError
from redis.retry import Retry

from pipelines.errors import ConfigurationError
from pipelines.serving.address import check_address
from pipelines.serving.refusals import refusal
from pipelines.settings import RedisSettings

_RETRIES = 2


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
    check_address(url)
    try:
        client = redis.Redis.from_url(url, **_options(settings, encrypted=url.startswith("rediss://")))
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but reads all options of an address
    except (TypeError, ValueError, RedisError):  # their text may hold a part of the password
        raise ConfigurationError(
            "KARMALAKE_REDIS_URL cannot be read: it must look like redis://user:password@host:6379/0, rediss://... "
            "or unix:///path, with special characters in user and password percent-encoded"
        ) from None
    return client


@contextlib.contextmanager
def explained(client: redis.Redis, doing: str, types: Mapping[bytes, str]) -> Generator[None]:
    """Turn errors of redis-py inside the block into ConfigurationError or TransientError, without any password.

    TransientError: trying again may help (no answer, starting, full, a replica). ConfigurationError: it will not.
    `types` names the keys that the block uses, each with its type (`keys.py`), for one that turns out to be another.
    """
    try:
        yield
    except RedisError as error:
        raise refusal(error, client, doing, types) from None
    except MemoryError:
        endless = InvalidResponse("its answer is larger than memory: what listens there may be no Redis")
        raise refusal(endless, client, doing, types) from None


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
