"""Runs all destinations of a rule file, one thread for each of its topics.

They read the topic of our own contract, and that of the feed, whose records are rows of the lake's table of changes. Of
other sources (`ingest/sources.py`) only ingest knows what is an event.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from operator import attrgetter

import redis
from redis.cluster import RedisCluster

from pipelines.boundary.stopping import ending_all
from pipelines.bus.groups import require_groups
from pipelines.bus.topics import ensure_compacted_topic, ensure_topic, topic_exists
from pipelines.contract.score_change import require_packages
from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.notify.branch import Plan, Reports, serve
from pipelines.notify.dead_letters import dlq_settings
from pipelines.notify.delivery import Redact, Transport
from pipelines.notify.events import decode_changes, decode_events
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, RuleFile, Webhook
from pipelines.notify.signature import read_secret
from pipelines.notify.webhook import check_address, open_webhook
from pipelines.settings import Settings

RedisClient = Callable[[], redis.Redis | RedisCluster]


def plans(rules: RuleFile, settings: Settings, redis_client: RedisClient) -> list[Plan]:
    """Return a plan for each destination and each topic that its rules are about.

    Raises ConfigurationError for a missing secret or an invalid URL, and if there is no feed that rules speak of, or
    packages for its format are not installed.
    """
    if rules.speaks_of_changes and not settings.relays_feed:
        raise ConfigurationError(
            "a rule has changes, which are on the topic of the feed: set feed.enabled = true, and feed.topic"
        )
    if rules.speaks_of_changes:
        require_packages(settings.feed.format)
    found = [plan for name in rules.destinations for plan in _plans(name, rules, settings, redis_client)]
    share = max(1, settings.notify.max_in_flight // len(found))
    return [replace(plan, max_in_flight=share) for plan in found]


def _plans(name: str, rules: RuleFile, settings: Settings, redis_client: RedisClient) -> Iterator[Plan]:
    destination, own, most = rules.destinations[name], rules.rules_for(name), settings.notify.max_in_flight
    opener = _opener(destination, redis_client)
    of_events, of_changes = (tuple(filter(attrgetter(key), own)) for key in ("actions", "changes"))
    if of_events:
        yield Plan(name, destination, of_events, most, opener, settings.kafka, decode_events)
    if of_changes:
        scores = settings.kafka.model_copy(update={"topic": settings.feed.topic})
        yield Plan(f"{name}.scores", destination, of_changes, most, opener, scores, decode_changes)


def notify(
    settings: Settings,
    planned: list[Plan],
    stopping: threading.Event,
    reports: Reports,
    redact: Redact = lambda event: event,
) -> None:
    """Deliver to every destination until `stopping` is set.

    redact: called before each attempt, from several threads.

    An error that a retry cannot fix (ConfigurationError), such as a broker without consumer groups, ends all of them
    and is raised; so is UsageError if there is no topic of events, and TransientError if no broker responds at the
    start, unless `stopping` is set meanwhile. If it is set before, nothing is asked of any server.
    """
    if stopping.is_set():
        return
    try:
        require_groups(settings.kafka, "karmalake notify")
        for kafka, is_compacted in {plan.kafka.topic: (plan.kafka, plan.is_compacted) for plan in planned}.values():
            if is_compacted:
                ensure_compacted_topic(kafka)
            elif not topic_exists(kafka):
                raise UsageError(
                    f"topic {kafka.topic} does not exist on {kafka.bootstrap_servers}: create it with "
                    "`karmalake topics ensure`"
                )
            ensure_topic(dlq_settings(kafka))
    except TransientError:
        if stopping.is_set():
            return
        raise
    reports.started()
    with ThreadPoolExecutor(len(planned), "notify") as threads:
        served = [threads.submit(serve, plan, settings, redact, stopping, reports) for plan in planned]
        with ending_all(stopping):
            wait(served)
    for ended in served:
        ended.result()


def _opener(destination: Webhook | RedisStream, redis_client: RedisClient) -> Callable[[], Transport]:
    if isinstance(destination, RedisStream):
        client = redis_client()
        return lambda: StreamTransport(destination, client)
    check_address(destination)
    secret = read_secret(destination)
    return lambda: open_webhook(destination, secret)
