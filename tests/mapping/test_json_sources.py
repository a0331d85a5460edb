"""Sources of JSON without a schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import ConfigurationError
from pipelines.mapping.json_values import exact_json
from pipelines.mapping.mapper import NOT_TRIED, Mapper, MapperConfig
from pipelines.mapping.values import ValueSchema
from tests.mapping.sources import events, mapping, reasons, records

_PLAIN = """
topic = "rides"
format = "json"
event_id = "id"
user_id = "driver.id"
action_type = "DriverRated"
time = "at"
metadata = { rating = "stars", city = "driver.home city" }
"""
_BOTH = """
topic = "rides"
format = "json"
select = '''
SELECT value->>'driver' AS user_id, 'DriverRated' AS action_type, bus_time AS timestamp,
       MAP {'rating': value->>'stars'} AS metadata
FROM record WHERE value->>'state' = 'done'
UNION ALL
SELECT value->>'rider', 'RiderRated', bus_time, MAP {} FROM record WHERE value->>'state' = 'done'
'''
"""


def _ride(**fields: Any) -> bytes:
    return json.dumps({"id": "r1", "driver": {"id": "d1"}, "at": "2026-01-31T12:00:00Z"} | fields).encode()


@pytest.mark.slow
def test_plain_fields_are_paths(tmp_path: Path) -> None:
    """Dotted paths reach nested values; what is absent is left out of metadata; numbers keep their digits."""
    value = b'{"id": 7, "driver": {"id": "d1", "home city": "Kassel"}, "at": "2026-01-31T12:00:00Z", "stars": 4.50}'
    with mapping(tmp_path, _PLAIN) as decode:
        found = decode(records([value, _ride(id="r2")]))
    assert events(found) == [
        ("7", "d1", "DriverRated", {"rating": "4.50", "city": "Kassel"}),
        ("r2", "d1", "DriverRated", {}),
    ]


def test_numbers_keep_their_digits() -> None:
    """A fraction, an exponent, -0 and more than 18 digits become text; other values are unchanged (`nothing-lost`)."""
    texts = [
        '{"a": 1.10, "b": [1, -0, 2e5, "x\\"1.5"], "c": -123456789012345678}',
        "1234567890123456789",
        '"1.5"',
        "{}",
    ]
    found, errors = exact_json(pa.array([text.encode() for text in texts], pa.binary()))
    assert not errors
    assert found.to_pylist() == [
        '{"a": "1.10", "b": [1, "-0", "2e5", "x\\"1.5"], "c": -123456789012345678}',
        '"1234567890123456789"',
        '"1.5"',
        "{}",
    ]


def _at(time: str, user: str = '"u1"') -> bytes:
    return f'{{"id": "r1", "driver": {{"id": {user}}}, "at": {time}}}'.encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "time", "expected"),
    [
        ('time_zone = "Europe/Berlin"', '"2026-01-31 12:00:00"', "2026-01-31T11:00:00+00:00"),
        ('time_unit = "ns"', "1769860800000000000", "2026-01-31T12:00:00+00:00"),
        ('time_unit = "rfc2822"', '"Sat, 31 Jan 2026 13:00:00 +0100"', "2026-01-31T12:00:00+00:00"),
        ('time_format = "%d.%m.%Y %H:%M"', '"31.01.2026 12:00"', "2026-01-31T12:00:00+00:00"),
    ],
)
def test_times_are_read_like_those_of_files(tmp_path: Path, keys: str, time: str, expected: str) -> None:
    """A zone, a unit and a format are those of the options of files; without a time the record is rejected."""
    with mapping(tmp_path, f"{_PLAIN.partition('metadata')[0]}{keys}\n") as decode:
        found = decode(records([_at(time), _at("null")]))
    assert [each.isoformat() for each in found.events["event_time"].to_pylist()] == [expected]
    assert reasons(found) == {1: "missing_timestamp"}


@pytest.mark.slow
def test_a_time_in_another_form_names_the_key_that_reads_it(tmp_path: Path) -> None:
    """Seconds, and a date of another order, as in the messages about files."""
    with mapping(tmp_path, _PLAIN) as decode:
        seconds, mail = (
            decode(records([_at(time)])).rejected["detail"][0].as_py()
            for time in ("1769860800", '"Sat, 31 Jan 2026 12:00:00 GMT"')
        )
    assert "give --time-unit s (of a source or the settings: time_unit)" in seconds
    assert "'Sat, 31 Jan 2026 12:00:00 GMT'" in mail
    assert "--time-unit rfc2822" in mail


@pytest.mark.slow
def test_what_is_not_an_id_is_refused(tmp_path: Path) -> None:
    """A rounded number, a list and an object are dead letters, as in files; brackets in a name are not."""
    users = ["9.8e10", '{"b": 1}', '["x"]', '"[deleted]"', "12345678901234567890"]
    with mapping(tmp_path, _PLAIN) as decode:
        found = decode(records([_at('"2026-01-31"', user) for user in users]))
    assert [row[1] for row in events(found)] == ["[deleted]", "12345678901234567890"]
    assert reasons(found) == dict.fromkeys(range(3), "unmappable")
    assert "user_id: 9.8e10 is a rounded number, not an id: write all digits." in found.rejected["detail"][0].as_py()


@pytest.mark.slow
def test_each_record_has_one_fate(tmp_path: Path) -> None:
    """A record becomes two events, or is filtered, or is rejected; the others of its batch go on (`not-blocked`)."""
    values = [
        b'{"state": "done", "driver": "d", "rider": "r", "stars": 5}',
        b'{"state": "cancelled"}',
        b'{"state": ',
        b'{"state": "done", "driver": "d"}',
        None,
        b'{"state": "done", "driver": "d2", "rider": "r2"}',
    ]
    with mapping(tmp_path, _BOTH) as decode:
        found = decode(records(values))
    assert events(found) == [
        ("id-of-topic-0-0-0", "d", "DriverRated", {"rating": "5"}),
        ("id-of-topic-0-0-1", "r", "RiderRated", {}),
        ("id-of-topic-0-5-0", "d2", "DriverRated", {}),
        ("id-of-topic-0-5-1", "r2", "RiderRated", {}),
    ]
    assert reasons(found) == {2: "undecodable", 3: "missing_user_id"}
    assert (
        "Event 1 of 2" in found.rejected["detail"][1].as_py() or "Event 2 of 2" in found.rejected["detail"][1].as_py()
    )
    assert found.filtered["offset"].to_pylist() == [1, 4]
    assert found.mis_keyed.to_pylist() == [False] * 4


@pytest.mark.slow
def test_events_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """One by one, in two batches or in one, records become the same events with the same ids (`replay-equals-live`)."""
    values = [
        json.dumps({"state": "done", "driver": f"d{n % 3}", "rider": "r", "stars": n}).encode() for n in range(40)
    ]
    with mapping(tmp_path, _BOTH) as decode:
        whole = events(decode(records(values)))
        split = events(decode(records(values[:17]))) + events(decode(records(values[17:], first=17)))
        single = [each for n, value in enumerate(values) for each in events(decode(records([value], first=n)))]
    assert whole == split == single


@pytest.mark.slow
def test_a_record_on_which_the_select_fails_is_a_dead_letter(tmp_path: Path) -> None:
    """It alone is unmappable, with the error; bytes that are not text do not matter to the others (`not-blocked`)."""
    text = """
topic = "rides"
format = "json"
select = "SELECT value->>'u' AS user_id, 'A' AS action_type, CAST(value->>'t' AS TIMESTAMPTZ) AS timestamp FROM record"
"""
    good = b'{"u": "u", "t": "2026-01-31T12:00:00Z"}'
    values = [good] * 50 + [b'{"u": "u", "t": "yesterday"}'] + [good] * 30 + [b"\xff"]
    with mapping(tmp_path, text) as decode:
        found = decode(records(values))
    assert len(found.events) == 80
    assert reasons(found) == {50: "unmappable", 81: "undecodable"}
    assert "yesterday" in found.rejected["detail"][0].as_py()


@pytest.mark.slow
def test_a_record_cannot_end_or_stall_the_process(tmp_path: Path) -> None:
    """Memory and time of a mapping are limited: a record beyond them is a dead letter (`not-blocked`)."""
    text = """
topic = "rides"
format = "json"
select = '''SELECT 'u' || length(repeat('x', CAST(value->>'n' AS BIGINT))) AS user_id, 'A' AS action_type,
            bus_time AS timestamp FROM record'''
"""
    values = [b'{"n": 1}'] * 20 + [b'{"n": 4000000000}'] + [b'{"n": 2}'] * 20
    with mapping(tmp_path, text) as decode:
        found = decode(records(values))
        assert len(decode(records(values[:3])).events) == 3
    assert len(found.events) == 40
    assert reasons(found) == {20: "unmappable"}


def test_records_that_fail_one_by_one_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that make the SELECT fail are divided as long as a batch may take; good neighbours are tried first."""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr("pipelines.mapping.mapper.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    select = "SELECT 'u' || CAST(value AS BIGINT) AS user_id, 'A' AS action_type, bus_time AS timestamp FROM record"
    found = Mapper(MapperConfig(select)).map(records([b'"x"'] * 4000 + [b"1"] * 600), ValueSchema("json"), 300)
    assert found.divided
    assert found.events["row"].to_pylist() == list(range(4032, 4600)), "the sixteenths without a bad record"
    assert found.errors == dict.fromkeys(range(4032), NOT_TRIED)


@pytest.mark.slow
def test_equal_ids_within_a_record_have_one_order(tmp_path: Path) -> None:
    """Of its events with one id and other metadata, the same one comes first in every batch (`replay-equals-live`)."""
    text = """
topic = "rides"
format = "json"
select = '''SELECT 'e' AS event_id, 'u' AS user_id, 'A' AS action_type, bus_time AS timestamp, {'n': n} AS metadata
            FROM record, (VALUES (3), (1), (2)) AS v(n)'''
"""
    with mapping(tmp_path, text) as decode:
        assert [row[3]["n"] for row in events(decode(records([b"{}"] * 2)))] == ["1", "2", "3"] * 2


@pytest.mark.slow
def test_typed_columns(tmp_path: Path) -> None:
    """`columns` gives members a type; an absent one is null, one of another type makes the record unmappable."""
    text = """
topic = "rides"
format = "json"
event_id_from = ["user_id", "action_type"]
time_unit = "ms"
[columns]
rider = "VARCHAR"
stars = "DECIMAL(4, 2)"
at = "BIGINT"
tags = "VARCHAR[]"
"""
    select = """select = '''SELECT rider AS user_id, 'Rated' AS action_type, "at" AS timestamp,
        {'rating': stars, 'n': len(tags)} AS metadata FROM record'''
"""
    values = [
        b'{"rider": 12, "stars": 4.50, "at": 1769860800000, "tags": ["a", "b"]}',
        b'{"rider": "b", "at": 1769860800000}',
    ]
    with mapping(tmp_path, select + text) as decode:
        found = decode(records([*values, b'{"rider": "c", "stars": "many", "at": 1}']))
    rows = events(found)
    assert [row[1:] for row in rows] == [("12", "Rated", {"rating": "4.50", "n": "2"}), ("b", "Rated", {})]
    assert [len(row[0]) for row in rows] == [32, 32]
    assert reasons(found) == {2: "unmappable"}


@pytest.mark.slow
def test_metadata_of_a_struct_or_a_json_object(tmp_path: Path) -> None:
    """Both become text, without entries that have no value."""
    for metadata in (
        "{'rating': 1.50::DECIMAL(3, 2), 'none': NULL}",
        'CAST(\'{"rating":"1.50","none":null}\' AS JSON)',
    ):
        select = "SELECT 'u' AS user_id, 'A' AS action_type, bus_time AS timestamp"
        text = f"topic = 't'\nformat = 'json'\nselect = '''{select}, {metadata} AS metadata FROM record'''\n"
        with mapping(tmp_path, text) as decode:
            assert events(decode(records([b"{}"])))[0][3] == {"rating": "1.50"}


def _refused() -> Iterator[tuple[str, str]]:
    head, tail = "SELECT ", " FROM record"
    yield head + "1.5::DOUBLE AS user_id, 'A' AS action_type, bus_time AS timestamp" + tail, "user_id is DOUBLE"
    yield head + "value->'u' AS user_id, 'A' AS action_type, bus_time AS timestamp" + tail, "user_id is JSON"
    yield head + "'u' AS user_id, 'A' AS action_type, TIMESTAMP '2026-01-01' AS timestamp" + tail, "add time_zone"
    yield head + "'u' AS user_id, 'A' AS action_type, 5 AS timestamp" + tail, "add time_unit"
    yield head + "'u' AS user_id, 'A' AS action_type" + tail, "it has no column timestamp"
    yield head + "'u' AS user_id, 'A' AS action_type, bus_time AS timestamp, 1 AS x" + tail, "it has a column 'x'"
    yield (
        head + "'u' AS user_id, 'A' AS action_type, bus_time AS timestamp, 1 AS metadata" + tail,
        "metadata is INTEGER",
    )
    yield head + "zz AS user_id, 'A' AS action_type, bus_time AS timestamp" + tail, "zz"
    yield head + "now() AS timestamp" + tail, "line 1: now is another value"


@pytest.mark.slow
@pytest.mark.parametrize(("select", "reason"), list(_refused()))
def test_a_select_that_cannot_be_right_is_refused_at_once(tmp_path: Path, select: str, reason: str) -> None:
    """The message names file and key, before a record is read."""
    text = f"topic = 't'\nformat = 'json'\nselect = '''{select}'''\n"
    with pytest.raises(ConfigurationError, match=r"rides\.toml: select: ") as error, mapping(tmp_path, text):
        pass
    assert reason in str(error.value)


@pytest.mark.slow
def test_the_events_of_a_record_are_bounded(tmp_path: Path) -> None:
    """At most 10,000; one with more is unmappable, and its neighbours are events (`not-blocked`)."""
    select = """SELECT 'u' AS user_id, 'A' AS action_type, bus_time AS timestamp
FROM record, range(CAST(value->>'n' AS BIGINT))"""
    values = [json.dumps({"n": count}).encode() for count in (1, 10_000, 10_001, 1_000_000, 2)]
    with mapping(tmp_path, f"topic = 't'\nformat = 'json'\nselect = '''{select}'''\n") as decode:
        found = decode(records(values))
    assert reasons(found) == {2: "unmappable", 3: "unmappable"}
    assert len(found.events) == 10_003
    detail = found.rejected["detail"].to_pylist()[0]
    assert detail == "The source's SELECT fails on the record: it makes over 10,000 events of one record, the limit."


@pytest.mark.slow
def test_a_select_that_fails_on_each_record_is_run_little_more_than_once_for_each() -> None:
    """Records are divided into many parts, so that few runs fail for nothing."""
    runs: list[int] = []
    select = "SELECT 'u' AS user_id, 'A' AS action_type, bus_time AS timestamp FROM record WHERE value::INT > 0"
    found = Mapper(MapperConfig(select), runs.append).map(records([b'"x"'] * 256), ValueSchema("json"))
    assert len(found.errors) == 256
    assert len(runs) == 1 + 16 + 256
