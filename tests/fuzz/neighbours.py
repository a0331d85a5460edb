"""The oracle for record values: valid events beside an invalid value are decoded correctly, whatever the value."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipelines.contract.decode import Decoded, decode
from pipelines.contract.digest import digest
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, RECORD
from pipelines.settings import ContractSettings
from tests.fuzz.finding import shape
from tests.fuzz.target import demand
from tests.verdicts import of_audit, of_ingest

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD: list[dict[str, Any]] = [
    {
        "event_id": f"good-{number}",
        "user_id": f"user-{number}",
        "action_type": "DriverRated",
        "event_time": NOON + timedelta(seconds=number),
        "metadata": [("rating", "5"), ("note", "\u00e9\u4e16\U0001f600")],
    }
    for number in range(4)
]
"""The valid events beside the bad values."""
_KEY = bytes(range(16))
_MAX_DETAIL_CHARACTERS = 10_000
_MAX_UNLIMITED_BYTES = 1_000_000


def records_of(values: Sequence[bytes | None], headers: Sequence[list[dict[str, Any]]] | None = None) -> pa.Table:
    """Return values as records of one topic partition, at consecutive offsets."""
    rows = [
        {
            "topic_id": "t",
            "topic": "t",
            "topic_partition": 0,
            "offset": offset,
            "bus_time": NOON + timedelta(minutes=1),
            "key": b"k",
            "value": value,
            "headers": headers[offset] if headers else [],
        }
        for offset, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, RECORD)


def check_neighbours(
    neighbours: Sequence[bytes],
    poison: Sequence[bytes],
    contract: ContractSettings,
    expected: Callable[[bytes], dict[str, Any] | None] = lambda _: None,
) -> str:
    """Decode bad values among valid neighbours, each bad value twice; return their outcomes.

    Each neighbour must be an event equal to its row in GOOD, and each bad value an event or a dead letter with a
    reason. `expected` returns the event of a value by a second decoder, or None if there is none.
    """
    values = [neighbours[0], *poison, *neighbours[1:3], *poison, *neighbours[3:]]
    places = (0, len(poison) + 1, len(poison) + 2, 2 * len(poison) + 3)
    decoded = decode(records_of(values), contract)
    events = {row["offset"]: row for row in decoded.events.to_pylist()}
    rejected = {row["offset"]: row for row in decoded.rejected.to_pylist()}
    demand(
        sorted([*events, *rejected]) == list(range(len(values))), f"rows {[*events]} and {[*rejected]} of {len(values)}"
    )
    for place, good in zip(places, GOOD, strict=True):
        demand(place in events, f"a neighbour is a dead letter: {rejected.get(place, {}).get('detail')}")
        demand(event_of(events[place]) == event_of(good), "a neighbour has other values")
    check_usable(decoded, contract)
    fates: list[str] = []
    for place, value in enumerate(poison, start=1):
        fates.append(_fate(place, len(poison) + 2, events, rejected, expected(value)))
        _check_audit(value, contract)
    return " ".join(sorted(set(fates)))


def event_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event that its producer chose; the order of metadata does not matter."""
    return {name: row[name] for name in EVENT.names} | {"metadata": sorted(row["metadata"])}


def _fate(place: int, stride: int, events: dict[int, Any], rejected: dict[int, Any], expected: Any) -> str:
    demand((place in events) == (place + stride in events), "the same bytes have two outcomes")
    if place in events:
        event = event_of(events[place])
        demand(expected is None or event == event_of(expected), f"accepted, but not as {expected}")
        return "accepted"
    letter = rejected[place]
    demand(expected is None, f"a valid event is a dead letter: {letter['detail']}")
    demand(letter["reason"] in set(Reason), f"the reason {letter['reason']!r} is not a code")
    demand(letter["detail"] and len(letter["detail"]) <= _MAX_DETAIL_CHARACTERS, "the detail is empty or endless")
    return f"{letter['reason']}: {shape(letter['detail'])}" if letter["reason"] == "undecodable" else letter["reason"]


def _check_audit(value: bytes, contract: ContractSettings) -> None:
    """Check that the audit and ingest read the same from a value; only ingest limits the time of large Avro values."""
    (ingested,) = of_ingest([value], contract)
    audited = of_audit(value, contract)
    limited = ingested is None and len(value) > _MAX_UNLIMITED_BYTES and contract.format == "avro"
    demand(ingested == audited or limited, f"ingest reads {ingested}, but the audit {audited}")


def check_usable(decoded: Decoded, contract: ContractSettings) -> None:
    """Check that accepted events can be digested and sorted, and satisfy the bounds that later stages rely on."""
    demand(len(digest(decoded.events, _KEY)) == len(decoded.events), "digests are missing")
    decoded.events.validate(full=True)
    decoded.rejected.validate(full=True)
    for row in decoded.events.sort_by("event_time").to_pylist():
        demand(all(row[name] for name in EVENT.names[:4]), f"accepted without a value: {row}")
        demand(row["event_time"] >= contract.earliest, f"accepted though too early: {row['event_time']}")
        reference = datetime.now(UTC) if row["bus_time"] is None else NOON
        limit = reference + timedelta(minutes=1, seconds=contract.max_ahead_seconds)
        demand(row["event_time"] <= limit, f"accepted though too late: {row['event_time']}")
