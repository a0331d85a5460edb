"""Kills of the relay between an outbox and the bus."""

from pathlib import Path

from sqlalchemy import URL, func, select

from pipelines.bus.topics import ensure_topic
from pipelines.emit import outbox
from pipelines.emit.outbox import OUTBOX
from pipelines.emit.relay import open_relay, relay_pending
from pipelines.settings import Settings
from tests.crashes.flows import Flow, killed, unknown
from tests.crashes.kills import Moment
from tests.draining import drain_all, query
from tests.emit.outboxes import create_outbox, disposed, event

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


FLOWS = {
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
