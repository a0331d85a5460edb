"""All destinations of a rule file at once, each in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import redis

from pipelines.bus.topics import ensure_topic
from pipelines.notify.answers import Transport
from pipelines.notify.branch import Plan, Reports, serve
from pipelines.notify.dead_letters import dead_letters_of
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, RuleFile, Webhook
from pipelines.notify.signature import secret_of
from pipelines.notify.webhook import check_address, open_webhook
from pipelines.settings import Settings

RedisClient = Callable[[], redis.Redis]


def plans(rules: RuleFile, most_in_flight: int, redis_client: RedisClient) -> list[Plan]:
    """Return how every destination is served; ConfigurationError for a secret or an address that is missing."""
    share = max(1, most_in_flight // len(rules.destinations))
    return [
        Plan(name, destination, rules.rules_for(name), share, _opener(destination, redis_client))
        for name, destination in rules.destinations.items()
    ]


def notify(settings: Settings, planned: list[Plan], stopping: threading.Event, reports: Reports) -> None:
    """Deliver to every destination until `stopping` is set.

    What no other try can fix (ConfigurationError) ends all of them and is raised; so is TransientError if no broker
    answers at the start.
    """
    ensure_topic(dead_letters_of(settings.kafka))
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
    secret = secret_of(destination)
    return lambda: open_webhook(destination, secret)
