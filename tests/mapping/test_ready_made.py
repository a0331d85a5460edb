"""Ready-made sources, over records as the specifications publish them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigurationError
from tests.mapping.sources import NOW, events, mapping, reasons, records

# https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md, sections 3.2 and 3.3
_BINARY_HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_type", b"com.example.someevent"),
    ("ce_source", b"/mycontext/subcontext"),
    ("ce_id", b"1234-1234-1234"),
    ("ce_time", b"2018-04-05T03:56:24Z"),
    ("content-type", b"application/json; charset=utf-8"),
]
_STRUCTURED = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "source": "/mycontext/subcontext",
    "id": "1234-1234-1235",
    "time": "2018-04-05T03:56:24Z",
    "datacontenttype": "application/json",
    "data": {"user": "u1", "points": 4.50},
}


@pytest.mark.slow
def test_cloudevents_in_structured_and_binary_mode(tmp_path: Path) -> None:
    """Both modes of the Kafka protocol binding become the same kind of event; id and source identify it."""
    values = [json.dumps(_STRUCTURED).encode(), b'{"user": "u2", "points": 7}', b'{"specversion": "1.0"}']
    headers = [[("content-type", b"application/cloudevents+json; charset=UTF-8")], _BINARY_HEADERS, []]
    with mapping(tmp_path, 'topic = "m"\nlike = "cloudevents"\nuser_id = "user"\n') as decode:
        found = decode(records(values, headers=headers))
    assert events(found) == [
        ("/mycontext/subcontext/1234-1234-1235", "u1", "com.example.someevent", {"user": "u1", "points": "4.5"}),
        ("/mycontext/subcontext/1234-1234-1234", "u2", "com.example.someevent", {"user": "u2", "points": "7"}),
    ]
    assert reasons(found) == {2: "missing_event_id"}


@pytest.mark.slow
def test_cloudevents_in_a_batch(tmp_path: Path) -> None:
    """Each event of an array in the JSON batch format is one; what is none among them rejects the record as a whole."""
    batch = [_STRUCTURED | {"id": "1"}, _STRUCTURED | {"id": "2"}]
    values = [json.dumps(value).encode() for value in (batch, [*batch, {"id": "3"}], [])]
    with mapping(tmp_path, 'topic = "m"\nlike = "cloudevents"\nuser_id = "user"\n') as decode:
        found = decode(records(values))
    assert [row[0] for row in events(found)] == ["/mycontext/subcontext/1", "/mycontext/subcontext/2"]
    assert reasons(found) == {1: "missing_event_id"}
    assert found.filtered["offset"].to_pylist() == [2]


@pytest.mark.slow
def test_cloudevents_with_other_data_and_without_a_time(tmp_path: Path) -> None:
    """Data in base64 are read, data that are no object are an entry; the time, which is optional, is the record's."""
    rest = {name: value for name, value in _STRUCTURED.items() if name not in {"data", "time"}} | {"subject": "u3"}
    encoded = base64.b64encode(b'{"points": 7}').decode()
    values = [rest | {"data_base64": encoded}, rest | {"data": "text"}, rest | {"data": [1]}, rest]
    with mapping(tmp_path, 'topic = "m"\nlike = "cloudevents"\n') as decode:
        found = decode(records([json.dumps(value).encode() for value in values]))
    assert [row[3] for row in events(found)] == [{"points": "7"}, {"data": "text"}, {"data": "[1]"}, {}]
    assert set(found.events["event_time"].to_pylist()) == {NOW}


@pytest.mark.slow
def test_cloudevents_whose_subject_is_the_user(tmp_path: Path) -> None:
    """Without user_id, the attribute `subject` is the user."""
    values = [json.dumps(_STRUCTURED | {"subject": "u3"}).encode(), b"{}"]
    headers = [[], [*_BINARY_HEADERS, ("ce_subject", b"u4")]]
    with mapping(tmp_path, 'topic = "m"\nlike = "cloudevents"\n') as decode:
        assert [row[1] for row in events(decode(records(values, headers=headers)))] == ["u3", "u4"]


@pytest.mark.slow
def test_debezium_outbox(tmp_path: Path) -> None:
    """The event router's record: the aggregate's id as the key, the event's id and type in headers, the payload."""
    # https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html,
    # "Example of a Debezium outbox message", with table.fields.additional.placement = type:header:eventType
    value = (
        b'{"id": 1, "lineItems": [{"id": 1, "item": "Debezium in Action"}], '
        b'"orderDate": "2019-01-31T12:13:01", "customerId": 123}'
    )
    headers = [("id", b"406c07f3-26f0-4eea-a50c-109940064b8f"), ("eventType", b"OrderCreated")]
    text = 'topic = "outbox.event.order"\nlike = "debezium-outbox"\ntime = "orderDate"\nuser_id = "customerId"\n'
    with mapping(tmp_path, text) as decode:
        found = decode(records([value, None], keys=[b"1", b"1"], headers=[headers, headers]))
    ((event_id, user_id, action, metadata),) = events(found)
    assert (event_id, user_id, action) == ("406c07f3-26f0-4eea-a50c-109940064b8f", "123", "OrderCreated")
    assert metadata["lineItems"] == '[{"id":1,"item":"Debezium in Action"}]'
    assert found.filtered["offset"].to_pylist() == [1]


@pytest.mark.slow
def test_debezium_outbox_by_each_converter(tmp_path: Path) -> None:
    """A payload and a key in a JSON string, with a schema, or plain name the same user and time."""
    payload = {"driver": "d1", "created": "2026-01-31T12:00:00Z"}
    text = json.dumps(payload)
    values = [
        text,
        json.dumps(text),
        json.dumps({"schema": {}, "payload": text}),
        json.dumps({"schema": {}, "payload": payload}),
    ]
    keys = [b"k", b'"k"', b'{"schema": {"type": "string"}, "payload": "k"}', b"123"]
    headers = [[("id", b"e1"), ("eventType", b"OrderCreated")]] * 4
    with mapping(tmp_path, 'topic = "o"\nlike = "debezium-outbox"\ntime = "created"\n') as decode:
        found = decode(records([value.encode() for value in values], keys=keys, headers=headers))
    assert events(found) == [("e1", user, "OrderCreated", payload) for user in ("k", "k", "k", "123")]


def _change(op: str, before: Any, after: Any, lsn: int, **envelope: Any) -> bytes:
    """Return a change event of the PostgreSQL connector, as its documentation shows them."""
    source = {
        "version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1769860800000 + lsn,
        "snapshot": "false", "db": "shop", "schema": "public", "table": "ratings", "txId": 555, "lsn": lsn,
    }  # fmt: skip
    payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": 1769860800500}
    return json.dumps({"schema": {"type": "struct"}, "payload": payload} if envelope else payload).encode()


_CDC = """
topic = "shop.public.ratings"
like = "debezium-cdc"
user_id = "driver"
rated = "ReviewPosted"
time = "created"
"""


@pytest.mark.slow
@pytest.mark.parametrize("envelope", [{}, {"schemas": True}])
def test_debezium_cdc_of_a_ratings_table(tmp_path: Path, envelope: dict[str, Any]) -> None:
    """An insert rates, an update corrects and a delete retracts the event of the insert; a tombstone is filtered."""
    row = {"id": 7, "driver": "d1", "rating": 4, "created": 1769860800123456}
    values = [
        _change("c", None, row, 100, **envelope),
        _change("u", row, row | {"rating": 5}, 200, **envelope),
        _change("d", row, None, 300, **envelope),
        None,
        _change("r", None, row | {"id": 8}, 400, **envelope),
        _change("t", None, None, 500, **envelope),
    ]
    with mapping(tmp_path, _CDC) as decode:
        found = decode(records(values, keys=[b'{"id": 7}'] * 6))
    rows = events(found)
    assert [row[:3] for row in rows] == [
        ("shop.shop.public.ratings/7", "d1", "ReviewPosted"),
        ("shop.shop.public.ratings/7/u/200", "d1", "ReviewCorrected"),
        ("shop.shop.public.ratings/7/d/300", "d1", "RatingRetracted"),
        ("shop.shop.public.ratings/8", "d1", "ReviewPosted"),
    ]
    assert rows[0][3]["rating"] == "4"
    assert (rows[1][3]["target_event_id"], rows[1][3]["rating"]) == ("shop.shop.public.ratings/7", "5")
    assert rows[2][3] == {"target_event_id": "shop.shop.public.ratings/7"}
    assert found.events["event_time"][0].as_py().isoformat() == "2026-01-31T12:00:00.123456+00:00"
    assert found.filtered["offset"].to_pylist() == [3, 5]
    assert not len(found.rejected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "places",
    [
        [{"file": "bin.1", "pos": 4, "row": 0}, {"file": "bin.2", "pos": 4, "row": 0}],
        [{"change_lsn": "a", "event_serial_no": 1}, {"change_lsn": "b", "event_serial_no": 1}],
        [{"scn": "7", "rs_id": "x"}, {"scn": "8", "rs_id": "x"}],
    ],
)
def test_two_updates_of_a_row_are_two_corrections(tmp_path: Path, places: list[dict[str, Any]]) -> None:
    """In the logs of MySQL, whose positions repeat in each file, of SQL Server and Oracle, within one millisecond."""
    row = {"id": 7, "driver": "d1", "note": "__debezium_unavailable_value"}
    changes = [{"op": "u", "after": row, "source": {"table": "ratings", "ts_ms": 1769860800000} | at} for at in places]
    with mapping(tmp_path, _CDC) as decode:
        first, second = events(decode(records([json.dumps(each).encode() for each in changes])))
    assert first[0] != second[0]
    assert first[3] == {"id": "7", "driver": "d1", "target_event_id": "ratings/7"}


@pytest.mark.slow
def test_tables_of_one_name_are_distinct(tmp_path: Path) -> None:
    """Rows of one key in two servers, databases or schemas are two events, and an update names the right one."""
    places = [
        {"name": "eu", "db": "shop", "schema": "public", "table": "ratings"},
        {"name": "us", "db": "shop", "schema": "public", "table": "ratings"},
        {"name": "eu", "db": "rides", "schema": "public", "table": "ratings"},
        {"name": "eu", "db": "shop", "schema": "old", "table": "ratings"},
        {"name": "eu", "db": "mysql", "table": "ratings"},
    ]
    row = {"id": 7, "driver": "d1"}
    changes = [
        json.dumps({"op": op, "after": row, "source": place | {"ts_ms": 1769860800000, "lsn": 1}}).encode()
        for place in places
        for op in ("c", "u")
    ]
    with mapping(tmp_path, _CDC.replace('time = "created"', "")) as decode:
        found = events(decode(records(changes)))
    rated, corrected = found[::2], found[1::2]
    ids = [event_id for event_id, *_ in rated]
    assert ids == [".".join(place.values()) + "/7" for place in places]
    assert [metadata["target_event_id"] for *_, metadata in corrected] == ids


@pytest.mark.slow
def test_a_renamed_server_keeps_its_ids(tmp_path: Path) -> None:
    """`server` stands for the connector's name: a connector with another topic.prefix makes the same ids."""
    row = {"id": 7, "driver": "d1", "created": 1769860800123456}
    values = [_change("c", None, row, 100).replace(b'"name": "shop"', b'"name": "shop2"')]
    with mapping(tmp_path, _CDC + 'server = "shop"\n') as decode:
        assert events(decode(records(values)))[0][0] == "shop.shop.public.ratings/7"


@pytest.mark.slow
def test_a_delete_without_its_row_before_is_said(tmp_path: Path) -> None:
    """Without REPLICA IDENTITY FULL a delete does not name the user: a dead letter, never a lost retraction."""
    with mapping(tmp_path, _CDC) as decode:
        found = decode(records([_change("d", {"id": 7}, None, 300)], keys=[b'{"id": 7}']))
    assert reasons(found) == {0: "missing_user_id"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('like = "debezium-cd"', "did you mean 'debezium-cdc'"),
        ('like = "debezium-cdc"\nuser_id = "u"', "toml:1: rated: is missing"),
        ('like = "cloudevents"\nrated = "A"', "toml:3: rated: is not an option of cloudevents"),
        ('like = "cloudevents"\nselect = "SELECT 1"', "toml:3: select: is not an option"),
        ('like = "cloudevents"\nformat = "avro"', "toml:3: format: is json"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    """The message names the option, and those that there are."""
    with pytest.raises(ConfigurationError) as error, mapping(tmp_path, f'topic = "t"\n{text}\n'):
        pass
    assert reason in str(error.value)
