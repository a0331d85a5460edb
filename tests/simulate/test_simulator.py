"""The simulated world has the properties that it claims, verified from the encoded records by other means."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError

from pipelines.bus.topics import ensure_topic
from pipelines.contract import event_pb2
from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.emit.producer import Record, produce_records
from pipelines.errors import UsageError
from pipelines.settings import ContractSettings, KafkaSettings
from pipelines.simulate.faults import FaultRates
from pipelines.simulate.simulator import Simulation, simulate
from pipelines.simulate.story import BOMBED_USER
from tests.emit.test_producer import read_topic

END = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY_US = 86_400_000_000
_RATERS = {"driver": {"rider"}, "seller": {"buyer"}, "rider": {"driver"}, "buyer": {"seller"}}


@pytest.fixture(scope="module")
def world() -> Simulation:
    return simulate(7, 20_000, days=60, end=END)


def _event(record: Record) -> event_pb2.Event:
    assert record.value is not None
    return event_pb2.Event.FromString(record.value)


def _valid(simulation: Simulation) -> list[tuple[Record, event_pb2.Event]]:
    """Return every record without the header of malformed ones, with its event."""
    return [(record, _event(record)) for record in simulation.records if not record.headers]


def _microseconds(event: event_pb2.Event) -> int:
    return event.timestamp.ToMicroseconds()


def test_the_same_arguments_give_the_same_bytes(world: Simulation) -> None:
    """A world is a function of its arguments."""
    again = simulate(7, 20_000, days=60, end=END)
    assert again.stream.equals(world.stream)
    assert again.planted == world.planted


@pytest.mark.slow
def test_no_two_worlds_share_an_event_id(world: Simulation) -> None:
    """A world with another seed, number, length or end adds events to a lake, and contradicts none."""
    others = [
        simulate(8, 20_000, days=60, end=END),
        simulate(7, 20_001, days=60, end=END),
        simulate(7, 20_000, days=61, end=END),
        simulate(7, 20_000, days=60, end=END - timedelta(seconds=1)),
        simulate(7, 20_000, days=60, end=END, rates=FaultRates(late=0.02)),
    ]
    ids = Counter(
        event_id for simulation in [world, *others] for event_id in {event.event_id for _, event in _valid(simulation)}
    )
    assert len(ids) == 6 * 20_000 + 1
    assert set(ids.values()) == {1}


def test_planted_counts_are_what_the_bytes_hold(world: Simulation) -> None:
    """Decoded one by one: distinct, duplicates, conflicts, mis-keyed, users, actions, late and out of order."""
    first: dict[str, event_pb2.Event] = {}
    counts: Counter[str] = Counter()
    newest = 0
    for record, event in _valid(world):
        known = first.get(event.event_id)
        if known is not None:
            counts["duplicates" if known == event else "conflicts"] += 1
            continue
        first[event.event_id] = event
        counts["mis_keyed"] += record.key != event.user_id.encode()
        age = newest - _microseconds(event)
        counts["out_of_order"] += age > 0
        counts["late"] += age > DAY_US
        newest = max(newest, _microseconds(event))
    planted = world.planted
    found = {name: counts[name] for name in ("duplicates", "conflicts", "mis_keyed", "out_of_order", "late")}
    assert found == {name: getattr(planted, name) for name in found}
    assert found == {
        "duplicates": 600,
        "conflicts": 40,
        "mis_keyed": 10,
        "late": 200,
        "out_of_order": found["out_of_order"],
    }
    assert 700 < found["out_of_order"] <= 800
    assert len(first) == planted.distinct == 20_000
    assert len({event.user_id for event in first.values()}) == planted.users
    assert Counter(event.action_type for event in first.values()) == planted.actions
    assert planted.sent == len(list(world.records)) == 20_000 + 600 + 40 + sum(planted.malformed.values())


def test_malformed_records_are_rejected_for_the_planted_reason(world: Simulation) -> None:
    """The contract rejects exactly the malformed records, each for the reason in its header."""
    records = list(world.records)
    columns: dict[str, list] = {name: [None] * len(records) for name in RECORD.names}
    columns["bus_time"] = [END] * len(records)
    columns["offset"] = list(range(len(records)))
    columns["key"] = [record.key for record in records]
    columns["value"] = [record.value for record in records]
    rejected = decode(pa.table(columns, schema=RECORD), ContractSettings()).rejected
    reasons = dict(zip(rejected["offset"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    planted = {place: record.headers[0][1].decode() for place, record in enumerate(records) if record.headers}
    assert reasons == planted
    assert Counter(planted.values()) == world.planted.malformed
    assert len(world.planted.malformed) == 12


def test_undecodable_records_are_refused_by_protobuf_too(world: Simulation) -> None:
    """Records planted as undecodable are undecodable for any reader of the format."""
    values = [record.value for record in world.records if record.headers == [("planted", b"undecodable")]]
    assert len({value[:4] for value in values if value}) > 2
    for value in values:
        with pytest.raises(DecodeError):
            event_pb2.Event.FromString(value)


def test_valid_events_lie_in_the_span_and_refer_to_each_other(world: Simulation) -> None:
    """No event is after the end; ratings have stars, raters and transactions; retractions name a rating of the user.

    The strangers who review-bomb a seller of the story have bought nothing.
    """
    events = {event.event_id: event for _, event in reversed(_valid(world))}
    end_us = int(END.timestamp()) * 1_000_000
    transactions = {e.metadata["transaction_id"] for e in events.values() if e.action_type == "TransactionCompleted"}
    for event in events.values():
        assert end_us - 60 * DAY_US <= _microseconds(event) <= end_us
        match event.action_type:
            case "DriverRated" | "ReviewPosted" | "RiderRated" | "BuyerRated":
                assert event.metadata["rating"] in {"1", "2", "3", "4", "5"}
                assert event.metadata["city"]
                rater, rated = (name.split("-")[0] for name in (event.metadata["rater_id"], event.user_id))
                assert rater in _RATERS[rated] or (rater, event.user_id) == ("stranger", BOMBED_USER)
                assert event.metadata.get("transaction_id") in ({None} if rater == "stranger" else transactions)
            case "RatingRetracted":
                target = events[event.metadata["target_event_id"]]
                assert target.user_id == event.user_id
                assert _microseconds(target) <= _microseconds(event)
            case "AccountSuspended" | "AccountReinstated":
                assert event.metadata["reason"]
            case _:
                assert set(event.metadata) == {"transaction_id", "city"}


@pytest.mark.slow
def test_a_suspension_ends_after_it_began(world: Simulation) -> None:
    """A reinstatement follows a suspension of the same user; some suspensions have no end."""
    changes: dict[str, dict[str, int]] = {}
    for _, event in _valid(world):
        if event.action_type.startswith("Account"):
            changes.setdefault(event.user_id, {})[event.action_type] = _microseconds(event)
    assert any("AccountReinstated" not in change for change in changes.values())
    for change in changes.values():
        assert change["AccountSuspended"] < change.get("AccountReinstated", 2**63)


def test_the_story_of_ada(world: Simulation) -> None:
    """driver-ada is suspended, drives on, is reinstated, and her one bad rating is retracted."""
    ada = {event.event_id: event for _, event in reversed(_valid(world)) if event.user_id == "driver-ada"}
    story = sorted(ada.values(), key=_microseconds)
    actions = [event.action_type for event in story]
    suspended, reinstated = actions.index("AccountSuspended"), actions.index("AccountReinstated")
    assert "DriverRated" in actions[suspended:reinstated]
    [retraction] = [event for event in story if event.action_type == "RatingRetracted"]
    assert ada[retraction.metadata["target_event_id"]].metadata["rating"] == "1"
    assert Counter(event.metadata["rating"] for event in story if event.action_type == "DriverRated")["1"] == 1


def test_without_rates_nothing_is_wrong() -> None:
    """With all rates zero, each event is there once, in order, under its user's key."""
    world_without_faults = simulate(1, 2_000, days=3, end=END, rates=FaultRates(0, 0, 0, 0, 0, 0))
    assert replace(world_without_faults.planted, users=0, actions={}) == type(world_without_faults.planted)(
        2000, 2000, 0, 0, {}, 0, 0, 0, 0, {}
    )


def test_activity_is_uneven(world: Simulation) -> None:
    """The busiest tenth of the users has far more than a tenth of the events; business grows."""
    events = [event for _, event in _valid(world)]
    counts = sorted(Counter(event.user_id for event in events).values(), reverse=True)
    assert sum(counts[: len(counts) // 10]) > 0.3 * len(events)
    middle = int(END.timestamp()) * 1_000_000 - 30 * DAY_US
    assert sum(_microseconds(event) > middle for event in events) > 0.52 * len(events)


def test_a_world_goes_through_the_broker_unchanged(bus: KafkaSettings) -> None:
    """Records arrive unchanged, by topic partition, tombstones and headers included."""
    simulation = simulate(3, 3_000, days=30, end=END, rates=FaultRates(malformed=0.02))
    ensure_topic(bus)
    produced = produce_records(bus, simulation.records)
    assert produced.records == simulation.planted.sent
    arrived = Counter((record.key, record.value, tuple(record.headers)) for record in read_topic(bus))
    assert arrived == Counter((record.key, record.value, tuple(record.headers)) for record in simulation.records)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"events": 10},
        {"days": 0},
        {"days": 20_000},
        {"end": datetime(2026, 3, 1)},  # noqa: DTZ001 # the mistake in question
        {"end": datetime(2100, 1, 1, tzinfo=UTC)},
    ],
)
def test_invalid_arguments_are_refused(arguments: dict) -> None:
    """Each mistake is a usage error."""
    with pytest.raises(UsageError):
        simulate(**({"seed": 1, "events": 1000, "end": END} | arguments))


def test_a_rate_is_a_share() -> None:
    """3 is not a share."""
    with pytest.raises(UsageError, match="duplicates=3"):
        FaultRates(duplicates=3)
