"""The store behind the Redis URL: one server, or a cluster."""

from collections.abc import Generator
from contextlib import contextmanager

from redis.cluster import RedisCluster

from pipelines.serving.client import connect, translate_errors
from pipelines.serving.cluster_store import ClusterStore
from pipelines.serving.keys import key_types
from pipelines.serving.redis_store import RedisStore
from pipelines.settings import RedisSettings


@contextmanager
def open_redis(settings: RedisSettings) -> Generator[RedisStore | ClusterStore]:
    """Yield the store at the configured URL."""
    prefix, leaderboards = settings.prefix, settings.leaderboards
    with connect(settings) as client, translate_errors(client, "publishing", key_types(prefix, leaderboards)):
        if isinstance(client, RedisCluster):
            yield ClusterStore(client, prefix, leaderboards)
        else:
            yield RedisStore(client, prefix, leaderboards)
