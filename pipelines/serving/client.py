"""Redis clients: the one place that builds them and translates their errors.

Owns the connection settings, and the promise that no error contains a password. `address.py` validates the URL;
`redis_errors.py` explains errors.
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
from pipelines.serving.redis_errors import to_karmalake_error
from pipelines.settings import RedisSettings

_RETRIES = 2


def connect(settings: RedisSettings) -> redis.Redis:
    """Return a client that connects on first use and is safe to share between threads; use it in `translate_errors`.

    Raises ConfigurationError if the URL is missing or invalid.
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
        pool.connection_class(**pool.connection_kwargs)  # does not connect, but validates every option of the URL
    except (TypeError, ValueError, RedisError):  # the error text may contain part of the password
        raise ConfigurationError(
            "KARMALAKE_REDIS_URL is invalid: it must look like redis://user:password@host:6379/0, rediss://... "
            "or unix:///path, with special characters in user and password percent-encoded"
        ) from None
    return client


@contextlib.contextmanager
def translate_errors(client: redis.Redis, doing: str, types: Mapping[bytes, str]) -> Generator[None]:
    """Translate errors of redis-py inside the block into ConfigurationError or TransientError, without any password.

    TransientError: a retry may help (no response, starting up, memory full, a replica). ConfigurationError: it will
    not. `types` maps each key that the block uses to its type (`keys.py`), to name the key of a WRONGTYPE error.
    """
    try:
        yield
    except RedisError as error:
        raise to_karmalake_error(error, client, doing, types) from None
    except MemoryError:
        endless = InvalidResponse("the response is larger than memory: the server may not be Redis")
        raise to_karmalake_error(endless, client, doing, types) from None


def _options(settings: RedisSettings, *, encrypted: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": settings.socket_timeout_seconds,
        "socket_connect_timeout": settings.socket_timeout_seconds,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), _RETRIES),
        "protocol": 2,  # no HELLO: older servers do not know it, and quote the password in their error
    }
    if settings.ssl_cafile is not None:
        _check_ca_file(settings.ssl_cafile, encrypted=encrypted)
        options["ssl_ca_certs"] = str(settings.ssl_cafile)
    return options


def _check_ca_file(path: Path, *, encrypted: bool) -> None:
    if not encrypted:
        raise ConfigurationError(
            "KARMALAKE_REDIS_SSL_CAFILE is set, but KARMALAKE_REDIS_URL does not start with rediss://, "
            "so the connection would not be encrypted: change one of them"
        )
    if not path.is_file():
        raise ConfigurationError(f"KARMALAKE_REDIS_SSL_CAFILE names {path}, which is not a file")
