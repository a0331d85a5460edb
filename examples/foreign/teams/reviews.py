"""The reviews team: it has a table in PostgreSQL, and Debezium's connector sends the table's changes.

The bytes have the published shape, without a database behind them: the JSON converter with schemas, REPLICA IDENTITY
FULL, a snapshot of the first rows, and a tombstone after each delete.
https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-events
"""

import json
import random
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import Any

from examples.foreign.teams.team import PEOPLE, Record, line, moments

TOPIC = "shop.public.reviews"
_SNAPSHOT_ROWS = 5
_OPERATIONS, _WEIGHTS = "cud", (60, 25, 15)
_ROW = {"id": "int32", "about": "string", "stars": "int16", "body": "string", "created": "int64"}
_SOURCE = {
    "version": "string", "connector": "string", "name": "string", "ts_ms": "int64", "snapshot": "string",
    "db": "string", "schema": "string", "table": "string", "txId": "int64", "lsn": "int64",
}  # fmt: skip
Row = dict[str, Any]


def changes(seed: int) -> Iterator[Record]:
    """Yield the changes of the table: rows of the snapshot, then inserts, updates and deletes."""
    rng, ids = random.Random(f"reviews {seed}"), count(1)  # noqa: S311 - reproducible
    rows: dict[int, Row] = {}
    for number, at in enumerate(moments(rng)):
        operation = "r" if number < _SNAPSHOT_ROWS else rng.choices(_OPERATIONS, _WEIGHTS)[0]
        before = rows.pop(rng.choice(list(rows))) if operation in "ud" and rows else None
        operation = operation if before or operation == "r" else "c"
        after = None if operation == "d" else _row(rng, before or {"id": next(ids), "created": _micros(at)})
        if after:
            rows[after["id"]] = after
        yield _change(operation, before, after, at, lsn=24_000_000 + 1_000 * number)
        if before and not after:
            yield Record(None, key=_key(before["id"]))


def _row(rng: random.Random, known: Row) -> Row:
    """Return a new row, or a row with other stars."""
    return {"about": rng.choice(PEOPLE)} | known | {"stars": rng.randrange(1, 6), "body": "très bien, 5 €"}


def _change(operation: str, before: Row | None, after: Row | None, at: datetime, lsn: int) -> Record:
    row, ms = after or before or {}, _micros(at) // 1_000
    source = {
        "version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": ms,
        "snapshot": "true" if operation == "r" else "false",
        "db": "shop", "schema": "public", "table": "reviews", "txId": 700 + lsn % 1_000, "lsn": lsn,
    }  # fmt: skip
    payload = {"before": before, "after": after, "source": source, "op": operation, "ts_ms": ms + 40}
    time = at if operation in "cr" else at.replace(microsecond=at.microsecond // 1_000 * 1_000)
    ref = f"{row['id']}" if operation in "cr" else f"{row['id']}/{operation}/{lsn}"
    stars = {"stars": str(after["stars"])} if after else {}
    what = {"u": "corrected", "d": "deleted"}.get(operation, "reviewed")
    value = json.dumps({"schema": _ENVELOPE, "payload": payload}).encode()
    return Record(value, (line(row["about"], what, ref, time, **stars),), _key(row["id"]))


def _key(row_id: int) -> bytes:
    schema = _struct({"id": "int32"}, "shop.public.reviews.Key")
    return json.dumps({"schema": schema, "payload": {"id": row_id}}).encode()


def _micros(at: datetime) -> int:
    """Return a time as the connector writes a timestamp: microseconds since 1970."""
    return int(at.timestamp()) * 1_000_000 + at.microsecond


def _struct(fields: dict[str, str], name: str, **more: str) -> dict[str, Any]:
    """Return the schema of a struct, as Kafka Connect's JSON converter writes it."""
    listed = [{"type": kind, "optional": False, "field": field} for field, kind in fields.items()]
    return {"type": "struct", "fields": listed, "optional": bool(more), "name": name, **more}


_ENVELOPE = {
    "type": "struct",
    "fields": [
        _struct(_ROW, "shop.public.reviews.Value", field="before"),
        _struct(_ROW, "shop.public.reviews.Value", field="after"),
        _struct(_SOURCE, "io.debezium.connector.postgresql.Source", field="source"),
        {"type": "string", "optional": False, "field": "op"},
        {"type": "int64", "optional": True, "field": "ts_ms"},
    ],
    "optional": False,
    "name": "shop.public.reviews.Envelope",
    "version": 1,
}
