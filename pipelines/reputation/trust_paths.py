"""The strongest paths of trust behind a rater's weights: through whom those whom the seeds trust, trust the rater.

A path begins where trust was last at a seed, and has at most five users. The parts of different paths do not overlap,
so they and the rest add up to the weight.
"""

from datetime import date, datetime
from decimal import Decimal

import duckdb
import polars as pl

from pipelines.boundary.toml import did_you_mean
from pipelines.errors import UsageError
from pipelines.reputation.explain import EXPLAINED, load_explained_events
from pipelines.reputation.known_users import require_events
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.policy.numbers import MICRO_DIGITS
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.steps import define_steps

_DAYS = 5
_PATHS = 3
_STEPS = 4
"""Ratings of a path: paths that are longer bring little, and cost a round each."""
_PARTS = {"day": pl.Date(), "weight": pl.Decimal(7, 6), "part": pl.Decimal(7, 6), "path": pl.String()}


def trust_paths(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    user_id: str,
    rater_id: str,
    as_of: datetime,
    known_at: datetime | None = None,
) -> pl.DataFrame:
    """Return where the weights of a rater's ratings of a user come from, on the five latest days with such ratings.

    Columns: day; weight, of the rater's ratings on that day, from 0 to 1; path, a text such as `ann > bob > cyd`, from
    a seed to the rater; part, what the path brings of the weight. Of each day there are at most three paths, each the
    strongest through another one of those who trust the rater, and a row without a path: all other paths, the trust
    that a seed has from the start, and a weight that is the policy's minimum. The parts of a day add up to the weight.
    user_id: a former one stands for the current one of the person.
    rater_id: as the ratings name the rater; of a key in `contract.personal_keys` a former user_id, too.
    Raises UsageError for a policy without weights of raters, and for a rater who has not rated the user, naming the
    closest one who has; KarmalakeError for a user without events.
    """
    raters = policy.at(as_of).rules.raters
    if raters is None:
        raise UsageError(f"under the policy {policy.name} all raters weigh alike: name one that has [raters]")
    known = aliases_in(connection, known_at)
    load_explained_events(connection, user_id, [policy.at(as_of)], known)
    in_force = define_steps(connection, policy, as_of, known_at, EXPLAINED, known)
    connection.execute("SET VARIABLE explained_rater = ?", [known.at_key(raters.key, rater_id)])
    days = [day for (day,) in connection.execute(statement("trust_path_days")).fetchmany(_DAYS)]
    if not days:
        require_events(connection, user_id)
        raters_of_user = [name for (name,) in connection.execute(statement("trust_path_raters")).fetchall()]
        meant = did_you_mean(rater_id, raters_of_user) or ": the metadata of ratings name the raters"
        raise UsageError(f"{rater_id!r} has not rated {user_id!r}{meant}")
    return pl.DataFrame([row for day in days for row in _of_day(connection, in_force, day)], _PARTS, orient="row")


def _of_day(
    connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, day: date
) -> list[tuple[date, Decimal, Decimal, str | None]]:
    """Return the rows of a day; `rater_weight` has the weights."""
    connection.execute("SET VARIABLE weighed_day = CAST(? AS DATE)", [day])
    weight, trusted = one_row(connection.execute(statement("trust_path_weight")))
    paths = _paths(connection, policy, trusted)
    rest = weight - sum(part for part, _ in paths)
    rows = [*paths, (rest, None)] if rest or not paths else paths
    return [(day, _exactly(weight), _exactly(part), path) for part, path in rows]


def _paths(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, weight: int) -> list[tuple[int, str | None]]:
    """Return the strongest paths to the explained rater with their parts of a weight, in millionths."""
    assert policy.rules.raters is not None  # noqa: S101 - tells the type checker
    rounds, passed = policy.rules.raters.rounds, statement("trust_path_passed")
    first = max(0, rounds - _STEPS)
    connection.execute("SET VARIABLE explained_weight = CAST(? AS BIGINT)", [weight])
    connection.execute(statement("trust_path_opinions", opinions=statement("raters_opinions_in_force")))
    connection.execute(statement("trust_path_start", round=str(first)))
    for number in range(first + 1, rounds):
        connection.execute(statement("trust_path_step", passed=passed, round=str(number)))
    ends = statement("trust_path_ends", passed=passed, round=str(rounds), limit=str(_PATHS))
    return connection.execute(ends).fetchall()


def _exactly(millionths: int) -> Decimal:
    return Decimal(millionths).scaleb(-MICRO_DIGITS)
