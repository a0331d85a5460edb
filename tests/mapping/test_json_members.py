"""Members of a JSON value that are read together are those that each `->>` reads."""

import json
from typing import Any

import pyarrow as pa
import pytest

from pipelines.mapping import mapper
from pipelines.mapping.mapper import Mapper, MapperConfig
from pipelines.mapping.values import ValueSchema

_VALUES = [
    {"u": "a", "d": {"id": "x", "u": 1}, "l": ["u", '{"u": 7}'], "t": '{"u": "inner"}'},
    {"u": None, "d": [], "l": [], "t": "text"},
    {"d": {"id": {"u": 2}}, "t": 4},
]
_IDS = "'u' AS user_id, 'A' AS action_type, bus_time AS timestamp"
_TOGETHER = [
    """SELECT IDS, {'a': value->>'u', 'b': value->'d'->>'id', 'c': value->>'$."d"."u"'} AS metadata FROM record""",
    "SELECT IDS, {'a': value->>'u', 'b': value->>'t'} AS metadata FROM record WHERE value->>'u' IS NOT NULL",
    """SELECT value->>'t' AS user_id, 'A' AS action_type, bus_time AS timestamp FROM record
    UNION ALL SELECT coalesce(value->>'u', ''), 'B', bus_time FROM record r""",
]
_EACH = [
    "SELECT IDS, {'a': value->>'t', 'b': value->>'t'->>'u'} AS metadata FROM record WHERE value->>'t' <> 'text'",
    """SELECT IDS, {'a': list_transform(['{"u": 3}'::JSON], lambda value: value->>'u'), 'b': value->>'u',
    'c': value->>'t'} AS metadata FROM record""",
    """SELECT IDS, {'a': value->>'u', 'b': value->>'v'} AS metadata
    FROM (SELECT value->'d' AS value, bus_time FROM record)""",
    "SELECT IDS, {'a': value->>0, 'b': value->>'/d/id', 'c': value->>'$.d.*'} AS metadata FROM record",
    "SELECT * FROM (SELECT value->>'t' AS user_id, value->>'u' AS action_type, bus_time AS timestamp FROM record)",
]


def _events(select: str) -> tuple[list[Any], str]:
    """Return the events of the values, and the view that they come from."""
    values = pa.array([*(json.dumps(value).encode() for value in _VALUES), None], pa.binary())
    count = len(values)
    columns = {name: pa.nulls(count, mapper._ARROW[name]) for name in ("key", "headers")}
    columns |= {name: pa.array(["t"] * count) for name in ("topic", "topic_id")}
    columns |= {"topic_partition": pa.array([0] * count, pa.int32()), "offset": pa.array(range(count), pa.int64())}
    columns |= {"bus_time": pa.array([0] * count, pa.int64()).cast(mapper.TIMESTAMP), "value": values}
    mapping = Mapper(MapperConfig(select.replace("IDS", _IDS)))
    mapped = mapping.map(pa.table(columns), ValueSchema("json"))
    ((view,),) = mapping.connection.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'record'").fetchall()
    return [mapped.events.to_pylist(), mapped.errors], view


@pytest.mark.parametrize("select", _TOGETHER + _EACH)
def test_the_events_are_the_same(select: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where members are absent, null or not text, and where a name is a parameter or another column."""
    found, view = _events(select)
    monkeypatch.setattr(mapper, "share_members", lambda *_: None)
    assert found == _events(select)[0]
    assert found[0]
    assert ("json_extract_string" in view) == (select in _TOGETHER)
