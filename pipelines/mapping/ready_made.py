"""Ready-made sources: `like = "..."` stands for a format and a SELECT, with few options.

The shapes are those of their specifications: CloudEvents 1.0 with its Kafka protocol binding, Debezium's outbox event
router, and Debezium's change events. Options enter a SELECT only as literals.
"""
# ruff: noqa: S608

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.boundary.locked_sql import literal


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """A kind of source. `options` are its keys with their defaults; one without a default (None) is required."""

    options: Mapping[str, str | None]
    select: Callable[[Mapping[str, str]], str]
    """Returns the SELECT for the options, with `time_unit` among them."""
    time_unit: str | None = "iso"
    """The unit of the column `timestamp`; None: the SELECT converts it."""


def _path(dotted: str) -> str:
    """Return a dotted path as an SQL literal of a JSON path."""
    escaped = (part.replace("\\", "\\\\").replace('"', '\\"') for part in dotted.split("."))
    return literal("$" + "".join(f'."{part}"' for part in escaped))


def _instant(text: str, unit: str) -> str:
    """Return the SQL of a time with zone from its text."""
    to_microseconds = {"s": "* 1000000", "ms": "* 1000", "us": "", "ns": "// 1000"}
    if unit not in to_microseconds:
        return f"CAST({text} AS TIMESTAMPTZ)"
    return f"make_timestamptz(CAST({text} AS BIGINT) {to_microseconds[unit]})"


def _entries(data: str) -> str:
    """Return the SQL of metadata from JSON: the members of an object; anything else is one entry, `data`."""
    return f"""CASE coalesce(json_type({data}), 'NULL')
           WHEN 'OBJECT' THEN CAST({data} AS MAP(VARCHAR, VARCHAR))
           WHEN 'NULL' THEN CAST(MAP {{}} AS MAP(VARCHAR, VARCHAR))
           ELSE MAP {{'data': {data}->>'$'}} END"""


def _cloudevents(options: Mapping[str, str]) -> str:
    """Select from each mode: attributes are members of the value, or of each one in a batch, or headers."""
    user = options["user_id"]
    from_data = "e->>'subject'" if user == "subject" else f"d->>{_path(user)}"
    in_binary = "decode(headers['ce_subject'])" if user == "subject" else f"value->>{_path(user)}"
    without_time = "CAST(bus_time AS VARCHAR)"  # the attribute is optional
    batch = "CASE json_type(value) WHEN 'ARRAY' THEN CAST(value AS JSON[]) ELSE [value] END"
    return f"""
WITH structured AS (
    SELECT e, bus_time, coalesce(e->'data', TRY_CAST(TRY(decode(from_base64(b))) AS JSON), to_json(b)) AS d
    FROM (SELECT e, e->>'data_base64' AS b, bus_time
          FROM (SELECT unnest({batch}) AS e, bus_time, headers FROM record)
          WHERE headers['ce_id'] IS NULL AND e IS NOT NULL)
)
SELECT (e->>'source') || '/' || (e->>'id') AS event_id, {from_data} AS user_id, e->>'type' AS action_type,
       coalesce(e->>'time', {without_time}) AS timestamp, {_entries("d")} AS metadata
FROM structured
UNION ALL
SELECT decode(headers['ce_source']) || '/' || decode(headers['ce_id']), {in_binary}, decode(headers['ce_type']),
       coalesce(decode(headers['ce_time']), {without_time}), {_entries("value")}
FROM record
WHERE headers['ce_id'] IS NOT NULL"""


def _outbox(options: Mapping[str, str]) -> str:
    """Select by the router's defaults: payload as value, aggregate's id as key, event's id in a header.

    Connect's JsonConverter writes a payload of text as a JSON string, and with schemas as the member `payload`.
    """
    user = "k" if options["user_id"] == "key" else f"v->>{_path(options['user_id'])}"
    return f"""
WITH plain AS (
    SELECT {_without_schema("value")} AS v, {_without_schema("TRY_CAST(TRY(decode(key)) AS JSON)")} AS k, key, headers
    FROM record
    WHERE value IS NOT NULL
),
message AS (
    SELECT CASE json_type(v) WHEN 'VARCHAR' THEN CAST(v->>'$' AS JSON) ELSE v END AS v,
           CASE json_type(k) WHEN 'VARCHAR' THEN k->>'$' ELSE decode(key) END AS k, headers
    FROM plain
)
SELECT decode(headers[{literal(options["id_header"])}]) AS event_id, {user} AS user_id,
       decode(headers[{literal(options["type_header"])}]) AS action_type, v->>{_path(options["time"])} AS timestamp,
       CAST(v AS MAP(VARCHAR, VARCHAR)) AS metadata
FROM message"""


def _without_schema(json: str) -> str:
    """Return the SQL of JSON that Connect may have written as an object of `schema` and `payload`."""
    return f"CASE WHEN ({json}->'schema') IS NOT NULL THEN coalesce({json}->'payload', {json}) ELSE {json} END"


_PLACES = ("lsn", "file", "pos", "row", "change_lsn", "event_serial_no", "scn", "rs_id", "ssn")
"""What identifies a change in the log of a database: of PostgreSQL, MySQL, SQL Server and Db2, Oracle."""
_UNAVAILABLE = "__debezium_unavailable_value"
"""What Debezium writes for a long value that an update did not change."""


def _table_of_change(server: str) -> str:
    """Return the SQL of a table's full name; tables of one name may be in two schemas, databases or servers.

    Debezium requires that `topic.prefix`, the name of the server, differs between connectors.
    """
    name = literal(server) if server else "c->'source'->>'name'"
    outer = f"{name}, c->'source'->>'db', c->'source'->>'schema'"
    return f"(concat_ws('.', {outer}, '') || (c->'source'->>'table'))"


def _cdc(options: Mapping[str, str]) -> str:
    """Select by the operation: c and r are ratings, u corrects and d retracts the one of the same row."""
    row, user, source = options["id"], options["user_id"], "coalesce(p->'payload', p)"
    places = ", ".join(f"c->'source'->>{literal(name)}" for name in _PLACES)
    change = f"coalesce(nullif(concat_ws(':', {places}), ''), c->'source'->>'ts_ms')"
    after = f"""map_from_entries(list_filter(map_entries(CAST(c->'after' AS MAP(VARCHAR, VARCHAR))),
       lambda e: e.value IS DISTINCT FROM {literal(_UNAVAILABLE)}))"""
    table = _table_of_change(options["server"])
    first = f"{table} || '/' || (c->'after'->>{_path(row)})"
    changed = _instant("c->'source'->>'ts_ms'", "ms")
    at = _instant(f"c->'after'->>{_path(options['time'])}", options["time_unit"]) if options["time"] else changed
    before = f"coalesce(c->'before'->>{_path(row)}, k->'payload'->>{_path(row)}, k->>{_path(row)})"
    target = f"{table} || '/' || ({before})"
    after_or_before = f"coalesce(c->'after'->>{_path(user)}, c->'before'->>{_path(user)})"
    target_of_update = f"coalesce({first}, {target})"
    return f"""
WITH change AS (
    SELECT {source} AS c, TRY_CAST(TRY(decode(key)) AS JSON) AS k
    FROM (SELECT value AS p, key FROM record) WHERE p IS NOT NULL
)
SELECT {first} AS event_id, c->'after'->>{_path(user)} AS user_id, {literal(options["rated"])} AS action_type,
       {at} AS timestamp, {after} AS metadata
FROM change WHERE c->>'op' IN ('c', 'r')
UNION ALL
SELECT {target_of_update} || '/u/' || {change}, {after_or_before}, {literal(options["corrected"])}, {changed},
       map_concat({after}, MAP {{'target_event_id': {target_of_update}}})
FROM change WHERE c->>'op' = 'u'
UNION ALL
SELECT {target} || '/d/' || {change}, {after_or_before}, {literal(options["retracted"])}, {changed},
       MAP {{'target_event_id': {target}}}
FROM change WHERE c->>'op' = 'd'"""


READY_MADE: Mapping[str, ReadyMade] = {
    "cloudevents": ReadyMade({"user_id": "subject"}, _cloudevents),
    "debezium-outbox": ReadyMade(
        {"user_id": "key", "time": None, "id_header": "id", "type_header": "eventType"}, _outbox
    ),
    "debezium-cdc": ReadyMade(
        {
            "id": "id",
            "server": "",
            "user_id": None,
            "time": "",
            "rated": None,
            "corrected": "ReviewCorrected",
            "retracted": "RatingRetracted",
        },
        _cdc,
        None,
    ),
}
"""By the name that `like` gives. The actions of corrections and retractions are those of the shipped policies."""
