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
    factors = {"s": 1_000_000, "ms": 1_000, "us": 1}
    if unit not in factors:
        return f"CAST({text} AS TIMESTAMPTZ)"
    return f"make_timestamptz(CAST({text} AS BIGINT) * {factors[unit]})"


def _cloudevents(options: Mapping[str, str]) -> str:
    """Select from both modes: attributes are members of the value, or headers."""
    user = options["user_id"]
    from_data = "e->>'subject'" if user == "subject" else f"e->>{_path(f'data.{user}')}"
    in_binary = "decode(headers['ce_subject'])" if user == "subject" else f"value->>{_path(user)}"
    return f"""
SELECT (e->>'source') || '/' || (e->>'id') AS event_id, {from_data} AS user_id, e->>'type' AS action_type,
       e->>'time' AS timestamp, CAST(e->'data' AS MAP(VARCHAR, VARCHAR)) AS metadata
FROM (SELECT value AS e, headers FROM record)
WHERE headers['ce_id'] IS NULL AND e IS NOT NULL
UNION ALL
SELECT decode(headers['ce_source']) || '/' || decode(headers['ce_id']), {in_binary}, decode(headers['ce_type']),
       decode(headers['ce_time']), CAST(value AS MAP(VARCHAR, VARCHAR))
FROM record
WHERE headers['ce_id'] IS NOT NULL"""


def _outbox(options: Mapping[str, str]) -> str:
    """Select by the router's defaults: payload as value, aggregate's id as key, event's id in a header."""
    user = "decode(key)" if options["user_id"] == "key" else f"value->>{_path(options['user_id'])}"
    return f"""
SELECT decode(headers[{literal(options["id_header"])}]) AS event_id, {user} AS user_id,
       decode(headers[{literal(options["type_header"])}]) AS action_type, value->>{_path(options["time"])} AS timestamp,
       CAST(value AS MAP(VARCHAR, VARCHAR)) AS metadata
FROM record
WHERE value IS NOT NULL"""


def _cdc(options: Mapping[str, str]) -> str:
    """Select by the operation: c and r are ratings, u corrects and d retracts the one of the same row."""
    row, user, source = options["id"], options["user_id"], "coalesce(p->'payload', p)"
    lsn = "coalesce(c->'source'->>'lsn', c->'source'->>'pos', c->'source'->>'ts_ms')"
    first = f"(c->'source'->>'table') || '/' || (c->'after'->>{_path(row)})"
    changed = _instant("c->'source'->>'ts_ms'", "ms")
    at = _instant(f"c->'after'->>{_path(options['time'])}", options["time_unit"]) if options["time"] else changed
    before = f"coalesce(c->'before'->>{_path(row)}, k->'payload'->>{_path(row)}, k->>{_path(row)})"
    target = f"(c->'source'->>'table') || '/' || ({before})"
    after_or_before = f"coalesce(c->'after'->>{_path(user)}, c->'before'->>{_path(user)})"
    target_of_update = f"coalesce({first}, {target})"
    return f"""
WITH change AS (
    SELECT {source} AS c, TRY_CAST(TRY(decode(key)) AS JSON) AS k
    FROM (SELECT value AS p, key FROM record) WHERE p IS NOT NULL
)
SELECT {first} AS event_id, c->'after'->>{_path(user)} AS user_id, {literal(options["rated"])} AS action_type,
       {at} AS timestamp, CAST(c->'after' AS MAP(VARCHAR, VARCHAR)) AS metadata
FROM change WHERE c->>'op' IN ('c', 'r')
UNION ALL
SELECT {target_of_update} || '/u/' || {lsn}, {after_or_before}, {literal(options["corrected"])}, {changed},
       map_concat(CAST(c->'after' AS MAP(VARCHAR, VARCHAR)), MAP {{'target_event_id': {target_of_update}}})
FROM change WHERE c->>'op' = 'u'
UNION ALL
SELECT {target} || '/d/' || {lsn}, {after_or_before}, {literal(options["retracted"])}, {changed},
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
