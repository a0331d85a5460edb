"""Redis clients: the one place that builds them and translates their errors.

redis-py's own clients find the nodes of a cluster, and the primary through Sentinels; `Client` is any of them.
Owns the connection settings, and the promise that no error contains a password. `address.py` validates the URL;
`redis_errors.py` explains errors.
"""

import contextlib
import traceback
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import InvalidResponse, RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from pipelines.errors import ConfigurationError, one_line
from pipelines.serving.address import Address, parse_address
from pipelines.serving.redis_errors import Client, to_karmalake_error
from pipelines.settings import RedisSettings

_RETRIES = 2


def connect(settings: RedisSettings) -> Client:
    """Return a client that is safe to share between threads; use it in `translate_errors`.

    It connects on first use, to a cluster immediately. Raises ConfigurationError if the URL is missing or invalid;
    TransientError if no node of the cluster answers.
    """
    if settings.url is None:
        raise ConfigurationError(
            "no Redis is configured, and none that this user can use runs locally: start one with "
            "`karmalake local start`, or set KARMALAKE_REDIS_URL"
        )
    address = parse_address(settings.url.get_secret_value())
    options = _options(settings, encrypted=address.encrypted)
    server = _connect_server(address, options)  # also checks the options for the other two
    if address.kind == "server":
        return server
    own = _options_without_host(address, options)
    return _connect_cluster(address, own, server) if address.kind == "cluster" else _connect_by_sentinels(address, own)


def primaries(client: Client) -> list[redis.Redis]:
    """Return a client for each server that holds a part of the keys."""
    if isinstance(client, RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]


def primary_of(client: Client, key: str) -> redis.Redis:
    """Return a client for the server that holds a key: unlike a cluster's client, it lets a transaction fail."""
    if isinstance(client, RedisCluster):
        return client.get_redis_connection(client.nodes_manager.get_node_from_slot(client.keyslot(key)))
    return client


def scan_keys(client: Client, pattern: str, count: int) -> Iterator[pl.Series]:
    """Yield keys as SCAN returns them, with repeats: at least one page, of about `count` keys or any other length."""
    for server in primaries(client):
        cursor = None
        while cursor != 0:
            cursor, page = server.scan(cursor or 0, match=pattern, count=count)
            yield pl.Series(page, dtype=pl.Binary)


@contextlib.contextmanager
def translate_errors(client: Client, doing: str, types: Mapping[bytes, str]) -> Generator[None]:
    """Translate errors of redis-py inside the block into ConfigurationError or TransientError, without any password.

    TransientError: a retry may help (no response, or not one of Redis; starting up, memory full, a replica).
    ConfigurationError: it will not. `types` maps each key that the block uses to its type (`keys.py`), to name the key
    of a WRONGTYPE error.
    """
    try:
        yield
    except (RedisError, RedisClusterException) as error:
        raise to_karmalake_error(error, client, doing, types) from None
    except MemoryError:
        endless = InvalidResponse("the response is larger than memory: the server may not be Redis")
        raise to_karmalake_error(endless, client, doing, types) from None
    except Exception as error:
        if not _is_raised_by_library(error):
            raise
        other = InvalidResponse(f"its response cannot be read ({one_line(error)}): it may not be Redis")
        raise to_karmalake_error(other, client, doing, types) from None


def _is_raised_by_library(error: Exception) -> bool:
    """Return whether redis-py raised an error: its parsers raise what Python raises for a value of another type."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == redis.__name__


class _SentinelRedis(redis.Redis):
    """Also closes the connections to the Sentinels."""

    def close(self) -> None:
        super().close()
        if isinstance(self.connection_pool, SentinelConnectionPool):
            self.connection_pool.sentinel_manager.close()


def _connect_server(address: Address, options: dict[str, Any]) -> redis.Redis:
    """Return a client of one server, with every option of the URL validated."""
    try:
        client = redis.Redis.from_url(address.url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # does not connect, but validates every option of the URL
    except (TypeError, ValueError, RedisError):  # the error text may contain part of the password
        raise ConfigurationError(
            "KARMALAKE_REDIS_URL is invalid: it must look like redis://user:password@host:6379/0, rediss://... "
            "or unix:///path, with special characters in user and password percent-encoded"
        ) from None
    return client


def _connect_cluster(address: Address, options: dict[str, Any], server: redis.Redis) -> RedisCluster:
    """Return a client of a cluster; `server` is its first node, for the error if no node answers."""
    del options["db"]
    nodes = [ClusterNode(host, port) for host, port in address.hosts]
    try:
        return RedisCluster(startup_nodes=nodes, **options)
    except (RedisError, RedisClusterException) as error:
        raise to_karmalake_error(error, server, "finding the nodes of the cluster", {}) from None


def _connect_by_sentinels(address: Address, options: dict[str, Any]) -> redis.Redis:
    own: dict[str, Any] = {
        "username": None,
        "password": None,
        "db": 0,
        "retry": Retry(NoBackoff(), 0),
    } | address.sentinel_login
    sentinels = Sentinel(address.hosts, sentinel_kwargs=options | own)
    return sentinels.master_for(address.service, _SentinelRedis, SentinelConnectionPool, **options)


def _options_without_host(address: Address, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the URL and of karmalake, without the address of the first host."""
    found = {"db": 0, "ssl": address.encrypted} | options | dict[str, Any](parse_url(address.url))
    return {name: value for name, value in found.items() if name not in {"host", "port", "connection_class"}}


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
