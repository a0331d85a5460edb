"""All destinations of a rule file at once, each in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import redis

from pipelines.emit.topics import ensure_topic
from pipelines.notify.answers import Transport
from pipelines.notify.branch import Plan, Report, ReportOutage, ReportTurn, serve
from pipelines.notify.dead_letters import dead_letters_of
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, RuleFile, Webhook
from pipelines.notify.webhook import open_webhook, secret_of
from pipelines.settings import Settings

RedisClient = Callable[[], redis.Redis]


def plans(rules: RuleFile, most_in_flight: int, redis_client: RedisClient) -> list[Plan]:
    """Return how every destination is served; ConfigurationError for a secret or an address that is missing."""
    share = max(1, most_in_flight // len(rules.destinations))
    return [
        Plan(name, destination, rules.rules_for(name), share, _opener(destination, redis_client))
        for name, destination in rules.destinations.items()
    ]


def notify(
    settings: Settings,
    planned: list[Plan],
    stopping: threading.Event,
    report: Report,
    report_outage: ReportOutage,
    report_turn: ReportTurn = lambda _: None,
) -> None:
    """Deliver to every destination until `stopping` is set.

    Reports are called from the destinations' threads. What one of them cannot mend (ConfigurationError) ends them all
    and is raised; so is TransientError if no broker answers at the start.
    """
    ensure_topic(dead_letters_of(settings.kafka))
    with ThreadPoolExecutor(len(planned), "notify") as threads:
        reports = (report, report_outage, report_turn)
        served = [threads.submit(serve, plan, settings, stopping, *reports) for plan in planned]
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
    secret = secret_of(destination)
    return lambda: open_webhook(destination, secret)
