"""Everything that names one user: a copy for the person who asks for their data.

What names a user is found as an erasure finds it (`lake/tokens.py`): a text, or a word of it, that is the user_id.
Names that are compressed, encrypted or encoded twice are not found.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.queue_messages import unwrap_bodies
from pipelines.contract.values import parse_values
from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.lake.tokens import contain_any, tokenize_bytes, tokenize_text
from pipelines.lake.tombstones import open_tombstones
from pipelines.operate.dead_letters import Selection, stream_dead_letters
from pipelines.refresh import policy_in_force
from pipelines.reputation.explain import explain
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.steps import materialize_fact
from pipelines.reputation.views import reputation_query
from pipelines.serving.read import read_reputation
from pipelines.settings import Settings

_OWN = "SELECT * FROM {table} WHERE list_contains($names, user_id) ORDER BY event_time, event_id"
_OF_OTHERS = """
SELECT *
FROM {table}
WHERE
    NOT list_contains($names, user_id)
    AND list_bool_or(
        list_transform(
            $names,
            lambda name: contains(
                concat_ws(chr(10), event_id, action_type, map_keys(metadata), map_values(metadata)), name
            )
        )
    )
ORDER BY event_time, event_id
"""
"""A superset of the rows that name the user: the text may be a part of a longer word."""
_MERGES = """
SELECT *
FROM merged_users
WHERE list_contains($names, user_id) OR list_contains($names, merged_into)
ORDER BY merged_at, merge_id
"""
_CHANGES = "SELECT * FROM {table} WHERE list_contains($names, user_id) ORDER BY number"
_ONLY = "WHERE user_id = getvariable('explained_user')"


def user_data(settings: Settings, user_id: str) -> dict[str, pa.Table]:
    """Return everything that names a user, by name. Reads all events and dead letters.

    A person whose accounts were merged is named by each user_id: all are searched for, and `merged_users` lists them.
    `events` are the user's own, `events_of_others` those whose metadata, event_id or action name the user;
    `conflicts` and `dead_letters` have both kinds, with bytes as text. `scores` and `explanation` are computed now, by
    the policy in force; `served` is the user's document, if there is a document store that has one.
    Raises KarmalakeError if nothing names the user, TransientError if the document store does not answer.
    """
    now, lake = datetime.now(UTC), open_lake(settings.lake_root)
    with open_lake_views(take_snapshot(lake)) as connection:
        names = aliases_in(connection).names(user_id)
        found = {
            "events": _rows(connection, _OWN, "events", names),
            "events_of_others": _of_others(connection, "events", names),
            "conflicts": pa.concat_tables(
                [_rows(connection, _OWN, "conflicts", names), _of_others(connection, "conflicts", names)]
            ),
            "dead_letters": pa.concat_tables(_dead_letters(settings, names)),
            "merged_users": _rows(connection, _MERGES, "merged_users", names),
            "score_changes": _rows(connection, _CHANGES, "score_changes", names),
        } | _scores(connection, policy_in_force(settings), user_id, now)
    if settings.has_document_store and (document := read_reputation(names[0], settings)):
        found["served"] = pa.Table.from_pylist([document])
    if not any(map(len, found.values())):
        if open_tombstones(lake, settings).contains(user_id.encode()):
            raise UsageError(f"user {user_id!r} was erased: nothing is left to export")
        raise KarmalakeError(f"nothing in the lake names user {user_id!r}: check the spelling")
    return found


def _rows(connection: duckdb.DuckDBPyConnection, query: str, table: str, names: list[str]) -> pa.Table:
    return connection.sql(query.format(table=table), params={"names": names}).to_arrow_table()


def _of_others(connection: duckdb.DuckDBPyConnection, table: str, names: list[str]) -> pa.Table:
    """Return the events or conflicts of other users that name the user."""
    rows, encoded = _rows(connection, _OF_OTHERS, table, names), {name.encode() for name in names}
    texts = rows.select(["event_id", "action_type", "metadata"]).to_pylist()
    named = [any(encoded & tokenize_text(text.encode()) for text in _texts(row)) for row in texts]
    return rows.filter(pa.array(named, pa.bool_()))


def _texts(row: dict[str, Any]) -> Iterator[str]:
    yield row["event_id"]
    yield row["action_type"]
    for key, value in row["metadata"] or ():
        yield key
        yield value


def _dead_letters(settings: Settings, names: list[str]) -> Iterator[pa.Table]:
    """Yield the dead letters that name the user, at least one empty table."""
    for wrapped in stream_dead_letters(settings, Selection(fate=None)):
        letters = unwrap_bodies(wrapped, settings.contract)
        suspects = letters.filter(contain_any(letters, names))
        yield _readable(suspects.filter(_naming(settings, suspects, names)))


def _naming(settings: Settings, letters: pa.Table, names: list[str]) -> pa.BooleanArray:
    """Return which dead letters name the user: by key, by the decoded user_id, or by a token of any part."""
    encoded = {name.encode() for name in names}
    values, headers = (letters[column].combine_chunks() for column in ("value", "headers"))
    user_ids = parse_values(values, settings.contract, headers).events["user_id"]
    decoded = pc.is_in(user_ids, value_set=pa.array(names, pa.string())).to_pylist()
    rows = letters.select(["key", "value", "headers", "detail"]).to_pylist()
    return pa.array(
        [
            is_own or row["key"] in encoded or bool(encoded & _tokens(row))
            for is_own, row in zip(decoded, rows, strict=True)
        ],
        pa.bool_(),
    )


def _tokens(letter: dict[str, Any]) -> set[bytes]:
    headers = [part for header in letter["headers"] or () for part in (header["key"].encode(), header["value"])]
    texts = [letter["key"], letter["value"], (letter["detail"] or "").encode(), *headers]
    return {token for text in texts for token in tokenize_bytes(text or b"")}


def _readable(letters: pa.Table) -> pa.Table:
    """Return dead letters with key, value and headers as text; bytes that are not UTF-8 are escaped."""
    for column in ("key", "value"):
        texts = pa.array(map(_text, letters[column].to_pylist()), pa.string())
        letters = letters.set_column(letters.schema.get_field_index(column), column, texts)
    headers = [
        [(header["key"], _text(header["value"])) for header in row or ()] for row in letters["headers"].to_pylist()
    ]
    at = letters.schema.get_field_index("headers")
    return letters.set_column(at, "headers", pa.array(headers, pa.map_(pa.string(), pa.string())))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _scores(connection: duckdb.DuckDBPyConnection, policy: Policy, user_id: str, now: datetime) -> dict[str, pa.Table]:
    """Return the user's row of scores, and the explanation of the all-time score; both empty without own events."""
    ledger = explain(connection, policy, user_id, now)
    if ledger["event_id"].count() == 0:
        ledger = ledger.clear()
    materialize_fact(connection, policy.at(now), _ONLY)
    scores = connection.sql(reputation_query(policy.at(now))).to_arrow_table()
    return {"scores": scores, "explanation": ledger.to_arrow()}
