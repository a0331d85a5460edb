"""Faults of a broker's log: ingest reports the loss, and continues once it is accepted."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from kafka import KafkaProducer
from kafka.structs import TopicPartition

from pipelines.bus.clients import admin_client
from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.emit.producer import Record
from pipelines.errors import LostRecordsError
from pipelines.settings import Settings
from tests.chaos import tasks
from tests.chaos.world import World, has_all, new_bus
from tests.draining import drain_all, query
from tests.services.kafka_log import cut_log
from tests.services.waiting import wait_for

_READ, _UNREAD = 20, 8


def log_is_truncated_and_grows(world: World) -> None:
    """Cut a log within what was read, and let it grow past the checkpoint: other records stand at the same offsets."""
    bus, read = new_bus(world), world.fresh(_READ)
    _read_among_kills(world, bus, read)
    world.story.unreadable += _put(bus, world.fresh(_UNREAD))
    remaining = world.rng.randrange(1, _READ)
    cut_log(world.cluster, world.folder / "kafka", bus.kafka, remaining)
    grown = world.fresh(_READ - remaining + world.rng.randint(1, 2 * _UNREAD))
    _put(bus, grown)
    _accept(world, bus, 0)
    _require(world, bus, [read, grown])


def retention_passes_the_checkpoint(world: World) -> None:
    """Delete records that were never read: the loss is reported exactly, and nothing else is lost."""
    bus, read, unread = new_bus(world), world.fresh(_READ), world.fresh(2 * _UNREAD)
    _read_among_kills(world, bus, read)
    _put(bus, unread)
    lost = world.rng.randint(1, _UNREAD)
    with admin_client(bus.kafka) as admin:
        admin.delete_records({TopicPartition(bus.kafka.topic, 0): _READ + lost})
    wait_for("the records to be gone", lambda: _begin(bus) == _READ + lost, 120)
    world.story.unreadable += lost
    _accept(world, bus, lost)
    _require(world, bus, [read, unread[lost:]])


def _read_among_kills(world: World, bus: Settings, records: Sequence[Record]) -> None:
    _put(bus, records)
    world.kill_during([tasks.drain_all, tasks.merge_files], bus)
    drain_all(bus)


def _accept(world: World, bus: Settings, lost: int) -> None:
    """Require that ingest stops and commits nothing until the loss is accepted, with kills in between."""
    before = _checkpoint(bus)
    for _ in range(2):
        try:
            drain_all(bus)
        except LostRecordsError as error:
            assert "--accept-loss" in str(error), error  # noqa: PT017 - no test
        else:
            raise AssertionError(f"{bus.kafka.topic} was read although it lost records")
    assert _checkpoint(bus) == before
    world.kill_during([tasks.accept], bus)
    tasks.accept(bus)
    world.story.losses.append((bus.kafka.topic, lost))
    world.kill_during([tasks.drain_all], bus)
    drain_all(bus)


def _require(world: World, bus: Settings, parts: Sequence[Sequence[Record]]) -> None:
    """Require that the lake has every event that could be read."""
    for records in parts:
        assert has_all(bus, records), f"{bus.kafka.topic}: events that could be read are not in the lake"
        world.story.sent, world.story.distinct = world.story.sent + len(records), world.story.distinct + len(records)


def _put(bus: Settings, records: Sequence[Record]) -> int:
    """Send each record in a batch of its own; return their number."""
    ensure_topic(bus.kafka)
    client: Any = KafkaProducer
    with closing(client(**bus.kafka.client_config(), linger_ms=0)) as producer:
        for record in records:
            producer.send(bus.kafka.topic, record.value, record.key, partition=0).get(120)
    return len(records)


def _begin(bus: Settings) -> int:
    topic = describe_topic(bus.kafka)
    assert topic is not None
    return topic.partitions[0].begin_offset


def _checkpoint(bus: Settings) -> list[tuple[Any, ...]]:
    topic_id = ensure_topic(bus.kafka).topic_id
    return query(bus, f"SELECT next_offset FROM checkpoints WHERE topic_id = '{topic_id}'")  # noqa: S608 - ours
