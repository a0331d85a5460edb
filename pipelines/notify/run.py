"""Runs all destinations of a rule file, one thread each.

They read the topic of our own contract only: of other sources (`ingest/sources.py`) only ingest knows what is an event.
"""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import redis
from redis.cluster import RedisCluster

from pipelines.bus.topics import ensure_topic
from pipelines.errors import TransientError
from pipelines.notify.branch import Plan, Reports, serve
from pipelines.notify.dead_letters import dlq_settings
from pipelines.notify.delivery import Transport
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, RuleFile, Webhook
from pipelines.notify.signature import read_secret
from pipelines.notify.webhook import check_address, open_webhook
from pipelines.settings import Settings

RedisClient = Callable[[], redis.Redis | RedisCluster]


def plans(rules: RuleFile, max_in_flight: int, redis_client: RedisClient) -> list[Plan]:
    """Return a plan for each destination; ConfigurationError for a missing secret or an invalid URL."""
    share = max(1, max_in_flight // len(rules.destinations))
    return [
        Plan(name, destination, rules.rules_for(name), share, _opener(destination, redis_client))
        for name, destination in rules.destinations.items()
    ]


def notify(settings: Settings, planned: list[Plan], stopping: threading.Event, reports: Reports) -> None:
    """Deliver to every destination until `stopping` is set.

    An error that a retry cannot fix (ConfigurationError) ends all of them and is raised; so is TransientError if no
    broker responds at the start, unless `stopping` is set meanwhile.
    """
    try:
        ensure_topic(dlq_settings(settings.kafka))
    except TransientError:
        if stopping.is_set():
            return
        raise
    with ThreadPoolExecutor(len(planned), "notify") as threads:
        served = [threads.submit(serve, plan, settings, stopping, reports) for plan in planned]
        try:
            wait(served, return_when=FIRST_EXCEPTION)
        finally:
            stopping.set()
    for ended in served:
        ended.result()


def _opener(destination: Webhook | RedisStream, redis_client: RedisClient) -> Callable[[], Transport]:
    if isinstance(destination, RedisStream):
        client = redis_client()
        return lambda: StreamTransport(destination, client)
    check_address(destination)
    secret = read_secret(destination)
    return lambda: open_webhook(destination, secret)
