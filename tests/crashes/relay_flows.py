"""Kills of the relay between an outbox and the bus, and of that between the feed's table and its topic."""

from pathlib import Path

from sqlalchemy import URL, func, select

from pipelines.bus.topics import ensure_topic
from pipelines.emit import outbox
from pipelines.emit.outbox import OUTBOX
from pipelines.emit.relay import open_relay, relay_pending
from pipelines.lake.score_changes import read_relayed
from pipelines.lake.tables import create_lake, open_lake
from pipelines.settings import FeedSettings, Settings
from tests.crashes.flows import Flow, killed, unknown
from tests.crashes.kills import Moment
from tests.draining import drain_all, query
from tests.emit.outboxes import create_outbox, disposed, event
from tests.test_feed import opened, record
from tests.test_feed_relay import rebuilt_from, relay, relayed

_ROWS = 60
_AT_A_TIME = 20
_FIRST_ARRIVALS = 'SELECT user_id, list(event_id ORDER BY "offset") FROM events GROUP BY user_id ORDER BY user_id'
_STEPS = {
    "pipelines.emit.relay:_claim": 2,
    "pipelines.emit.relay:_send": 2,
    "pipelines.emit.producer:BulkProducer.send": 2,
    "pipelines.emit.producer:BulkProducer.flush": 2,
    "pipelines.emit.relay:_delete": 2,
    "sqlalchemy:Connection.commit": 2,
}


def relay_all(settings: Settings) -> None:
    """Send pending rows to a topic of this flow, as `karmalake relay --once` does."""
    kafka = _own(settings).kafka
    ensure_topic(kafka)
    with open_relay(_address(settings.data_dir), kafka) as opened:
        relay_pending(opened, lambda _: None, _AT_A_TIME)


def _prepare(settings: Settings) -> None:
    """Create a service's database with rows in its outbox."""
    settings.data_dir.mkdir(exist_ok=True)
    with disposed(_url(settings.data_dir)) as service:
        create_outbox(service)
        with service.begin() as connection:
            for number in range(_ROWS):
                outbox.add(connection, event(number, f"user-{number % 7}"))


def _arrived(settings: Settings) -> object:
    """Return the number of rows left, and each user's events in the order of first arrival."""
    drain_all(_own(settings))
    return _waiting(settings), query(settings, _FIRST_ARRIVALS)


def _waiting(settings: Settings) -> int:
    with disposed(_url(settings.data_dir)) as service, service.connect() as connection:
        return connection.execute(select(func.count()).select_from(OUTBOX)).scalar_one()


def _own(settings: Settings) -> Settings:
    kafka = settings.kafka.model_copy(update={"topic": settings.redis.prefix, "group_id": settings.redis.prefix})
    return settings.model_copy(update={"kafka": kafka})


def _url(data_dir: Path) -> URL:
    return URL.create("sqlite", database=str(data_dir / "service.db"))


def _address(data_dir: Path) -> str:
    return _url(data_dir).render_as_string(hide_password=False)


def relay_feed(settings: Settings) -> None:
    """Relay the changes that are not on the topic yet, as `karmalake stream` does."""
    relay(_fed(settings))


def _record_changes(settings: Settings) -> None:
    """Record two publications."""
    fed = _fed(settings)
    create_lake(fed.lake_root)
    with opened(fed) as feed:
        record(feed, 1, ann=1, bob=1)
        record(feed, 2, ann=2, cid=1)


def _relayed(settings: Settings) -> object:
    """Return what a consumer of the topic rebuilds, how many changes it has, and the last number on record."""
    fed = _fed(settings)
    changes = {value for _, value in relayed(fed)}
    return rebuilt_from(fed), len(changes), read_relayed(open_lake(fed.lake_root).table("score_changes"))


def _fed(settings: Settings) -> Settings:
    feed = FeedSettings(enabled=True, topic=f"{settings.redis.prefix}-scores")
    return settings.model_copy(update={"feed": feed})


_RELAYING = {
    "pipelines.feed_relay:ensure_compacted_topic": 1,
    "pipelines.emit.producer:BulkProducer.send": 3,
    "pipelines.emit.producer:BulkProducer.flush": 1,
    "pipelines.feed_relay:mark_relayed": 1,
}


FLOWS = {
    "relay of the feed": Flow(relay_feed, _RELAYING, _record_changes, seen=_relayed, stored=unknown),
    "relay": Flow(relay_all, _STEPS, _prepare, sound=_waiting, seen=_arrived, stored=unknown),
    "recovery from a batch that was sent and not deleted": Flow(
        relay_all,
        {"pipelines.emit.relay:_claim": 1, "pipelines.emit.relay:_send": 1, "pipelines.emit.relay:_delete": 1},
        killed(Moment("pipelines.emit.relay:_send", "after", 2), relay_all, _prepare),
        sound=_waiting,
        seen=_arrived,
        stored=unknown,
    ),
}
