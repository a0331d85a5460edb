"""Whether a user has events at all: a misspelt user_id is a mistake to name, not an empty answer.

An erased user is no mistake, and no other user is meant.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import duckdb
import polars as pl

from pipelines.errors import KarmalakeError, UsageError
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import EffectivePolicy
from pipelines.settings import Settings

_HAS_EVENTS = "SELECT 1 FROM events WHERE list_contains($names, user_id) LIMIT 1"
# A slip of the pen, or another case: one edit in four characters at most.
_CLOSEST = """
    SELECT user_id
    FROM (SELECT DISTINCT user_id FROM {users})
    WHERE damerau_levenshtein(lower(user_id), lower(trim($user_id))) <= greatest(1, length($user_id) // 4)
    ORDER BY user_id = $user_id DESC, damerau_levenshtein(lower(user_id), lower(trim($user_id))), user_id
    LIMIT 1
"""
_NAMED_BY_EVENTS = """
    SELECT user_id FROM events WHERE user_id IN (SELECT unnest($names))
    UNION
    SELECT metadata[$key] FROM events WHERE metadata[$key] IN (SELECT unnest($names))
"""
_USERS_AND_RATERS = "(SELECT user_id FROM events UNION SELECT metadata[$key] AS user_id FROM events)"


@contextmanager
def naming_erased(user_id: str, settings: Callable[[], Settings]) -> Generator[None]:
    """Raise UsageError in place of a plain KarmalakeError, that nothing was found, if the user was erased.

    settings: of the lake, whose tombstones are read only then.
    """
    try:
        yield
    except KarmalakeError as error:
        if type(error) is KarmalakeError and _is_erased(user_id, settings()):
            raise erased_user(user_id) from None
        raise


def erased_user(user_id: str) -> UsageError:
    """Return the error of a question about an erased user."""
    return UsageError(f"user {user_id!r} was erased: nothing is left to show")


def _is_erased(user_id: str, settings: Settings) -> bool:
    from pipelines.lake.tombstones import is_erased  # noqa: PLC0415 - loads the decoders, which readers do not need

    return is_erased(settings, user_id)


def require_events(connection: duckdb.DuckDBPyConnection, user_id: str) -> None:
    """Raise KarmalakeError, naming the closest user_id, if no event has a user_id of the person."""
    names = aliases_in(connection).names(user_id)
    if not connection.execute(_HAS_EVENTS, {"names": names}).fetchall():
        raise KarmalakeError(f"no events of user {user_id!r}: check the spelling{closest_user(connection, user_id)}")


def of_known_user(connection: duckdb.DuckDBPyConnection, user_id: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of an answer about a user; raise as `require_events` does if there are none of an event.

    A policy's start is in the explanation of anyone, in a row without an event.
    """
    if rows.is_empty() or ("event_id" in rows.columns and not rows["event_id"].count()):
        require_events(connection, user_id)
    return rows


def closest_user(connection: duckdb.DuckDBPyConnection, user_id: str) -> str:
    """Return the end of a message that asks for the user_id most like one; empty if none is, and for a known one.

    Reads the users of a warehouse, or on a connection without them the user_ids of all events.
    """
    try:
        rows = connection.execute(_CLOSEST.format(users="reputation"), {"user_id": user_id}).fetchall()
    except duckdb.CatalogException:
        rows = connection.execute(_CLOSEST.format(users="events"), {"user_id": user_id}).fetchall()
    return f"; did you mean {rows[0][0]!r}?" if rows and rows[0][0] != user_id else ""


def unknown_seeds(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> list[str]:
    """Return a sentence for each seed of `[raters]` whom no event names, as user or as rater: it passes no trust on.

    The connection has the views of the lake; all events are read, if the policy has seeds.
    """
    raters = policy.rules.raters
    if raters is None:
        return []
    known = aliases_in(connection)
    current = {seed: known.at_key(raters.key, seed) for seed in raters.seeds}
    asked = {"names": sorted({*current, *current.values()}), "key": raters.key}
    named = {name for (name,) in connection.execute(_NAMED_BY_EVENTS, asked).fetchall()}
    unknown = [seed for seed, name in current.items() if not named & {seed, name}]
    hints = {seed: _closest_rater(connection, seed, raters.key) for seed in unknown}
    return [f"no event names {seed!r} of raters.seeds: check the spelling{hint}" for seed, hint in hints.items()]


def _closest_rater(connection: duckdb.DuckDBPyConnection, name: str, key: str) -> str:
    rows = connection.execute(_CLOSEST.format(users=_USERS_AND_RATERS), {"user_id": name, "key": key}).fetchall()
    return f"; did you mean {rows[0][0]!r}?" if rows else ""
