"""The derivation: the steps from `events` and a policy to `contribution` and `fact`.

Owns the order of the steps, which is the order of the files `sql/step_*.sql`. Each step is a temporary view over
earlier ones, so it can be queried alone; only `fact` is materialized, because every table is computed from it. The
connection needs `events`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.level_history import contributions_with_levels
from pipelines.reputation.merged_users import NO_ALIASES, Aliases, load_aliases, resolved_events
from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.policy.tables import load_tables
from pipelines.reputation.priors import compute_priors, given_statement
from pipelines.reputation.raters import compute_weights, set_seeds, weight_of_rating
from pipelines.reputation.scopes import fact_columns, value_columns
from pipelines.reputation.sql import statement, use_utc
from pipelines.reputation.views import rating_columns

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Weigh = Callable[[duckdb.DuckDBPyConnection, EffectivePolicy, Sequence[str]], None]
"""Fills `rater_weight`, given the first steps over all events."""
Learn = Callable[[duckdb.DuckDBPyConnection, Sequence[str]], None]
"""Makes `rating_prior`, given the steps up to `rating_given` over all events."""
MACROS = (
    *("parse_micro", "utc_day", "bucket", "time_periods", "time_date", "governed", "floor_divide", "wilson"),
    *("round_half_up", "round_half_even", "round_floor", "round_ceiling"),
)


def define_steps(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    as_of: datetime,
    known_at: datetime | None = None,
    source: str = "events",
    known: Aliases = NO_ALIASES,
    weigh: Weigh = compute_weights,
    learn: Learn = compute_priors,
) -> EffectivePolicy:
    """Define the steps up to `contribution` for a policy and a moment; return the policy in force at that moment.

    Computes no rows, except where raters have weights or a measure has a prior from all ratings. All objects are
    temporary, so a read-only warehouse will do; a second call replaces them.

    connection: with the table or view `source`, and `commits` if `known_at` is given.
    as_of: only events with an earlier event time count.
    known_at: only events with an earlier commit time count; None: all.
    known: the merged users, under whose current user_ids the steps read `source`.
    weigh: fills the weights of raters, if the policy has any: from all `events`, whatever `source` is.
    learn: makes the priors of measures, if the policy has any: from all `events`, whatever `source` is.
    Raises UsageError for a moment without a time zone.
    """
    in_force = _begin(connection, policy, as_of, known)
    if known_at is not None:
        set_known_at(connection, known_at)
    committed = "" if known_at is None else statement("known_at")
    if in_force.rules.raters is not None:
        set_seeds(connection, in_force.rules.raters, known)
        weigh(connection, in_force, [*first_steps(in_force, "events", committed, known), *_given_steps(in_force)])
    if in_force.rules.has_global_prior:
        learn(connection, [*first_steps(in_force, "events", committed, known), *_rated_steps(in_force)])
    for step in (*first_steps(in_force, source, committed, known), *step_statements(in_force)):
        connection.execute(step)
    return in_force


def define_reading(
    connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime, source: str, known: Aliases
) -> tuple[EffectivePolicy, str]:
    """Define the steps that read events as they came, uncorrected; return the policy in force, and the last view.

    What a user or a rater weighs, and the rules between ratings and points, play no part. Arguments and errors as of
    `define_steps`.
    """
    in_force = _begin(connection, policy, as_of, known)
    readable, last = _readable(in_force)
    for step in (*first_steps(in_force, source, "", known), *_given_steps(in_force), *readable):
        connection.execute(step)
    return in_force, last


def _begin(connection: duckdb.DuckDBPyConnection, policy: Policy, as_of: datetime, known: Aliases) -> EffectivePolicy:
    """Set the moment and load what the steps read besides events; return the policy in force."""
    use_utc(connection)
    set_as_of(connection, as_of)
    in_force = policy.at(as_of)
    define_policy(connection, in_force)
    if known:
        load_aliases(connection, known)
    return in_force


def define_policy(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Create the tables, variables and macros of a policy, which the steps and other statements read."""
    load_tables(connection, policy)
    for macro in MACROS:
        connection.execute(statement(f"macro_{macro}"))


def first_steps(policy: EffectivePolicy, source: str, committed: str, known: Aliases) -> list[str]:
    """Return the steps up to `known_event`: one more where users were merged, so that others cost nothing.

    committed: a condition on the events, or nothing.
    """
    source_row = statement("source_row" if policy.rules.order_by else "no_source_row")
    if not known:
        return [statement("step_01_known_event", source=source, known=committed, source_row=source_row)]
    resolved = statement("view_resolved_event", query=resolved_events(known, source))
    first = statement("step_01_known_event", source="resolved_event", known=committed, source_row=source_row)
    return [resolved, first]


def set_as_of(connection: duckdb.DuckDBPyConnection, as_of: datetime) -> None:
    """Move defined steps to another moment at which the same rules are in force."""
    connection.execute("SET VARIABLE as_of = CAST(? AS BIGINT)", [epoch_us(as_of)])


def set_known_at(connection: duckdb.DuckDBPyConnection, known_at: datetime) -> None:
    """Move steps that were defined with a `known_at` to another one."""
    connection.execute("SET VARIABLE known_at = CAST(? AS BIGINT)", [epoch_us(known_at)])


def step_statements(policy: EffectivePolicy) -> list[str]:
    """Return the steps after `known_event` in order, without those that the policy does not need.

    To define a view, DuckDB binds all views below it, so a step less makes each later one cheaper.
    """
    readable, read = _readable(policy)
    gates, gated = _chain("judged", _gates(policy))
    timed, earning = _timed(policy, gated)
    caps, capped = _chain("earned", _caps(policy))
    earned = statement("earned_at_epoch") if policy.decays else "granted"
    return [
        statement("step_02_retracted_event"),
        statement("step_03_status_transition"),
        statement("step_04_status_period"),
        statement("step_05_frozen_period"),
        statement("step_06_reset_account"),
        _corrected(policy),
        _emitted(policy),
        *([given_statement(policy)] if policy.rules.has_global_prior else []),
        *readable,
        statement("step_10_judged", source=read),
        *gates,
        *timed,
        statement("step_13_earned", source=earning),
        *caps,
        statement(
            "step_15_contribution", source=capped, earned=earned, scopes=value_columns(policy), **_weights(policy)
        ),
    ]


def _given_steps(policy: EffectivePolicy) -> list[str]:
    """Return the steps up to `emitted` without corrections: what ratings said when they were given."""
    return [statement("step_02_retracted_event"), statement("step_07_nothing_corrected"), _emitted(policy)]


def _readable(policy: EffectivePolicy) -> tuple[list[str], str]:
    """Return the step after `emitted` that events with several emissions need, if any; and the last view."""
    actions = [action for edition in policy.editions for action in edition.rules.actions.values()]
    emits_several = any(len(action.emissions) > 1 for action in actions)
    return ([statement("step_09_readable")], "readable") if emits_several else ([], "emitted")


def _emitted(policy: EffectivePolicy) -> str:
    return statement("step_08_emitted", matched=_matched(policy), **_maps(policy), **_rating_weight(policy))


def _rated_steps(policy: EffectivePolicy) -> list[str]:
    """Return the steps up to `rating_given`: what ratings say as corrected."""
    return [statement("step_02_retracted_event"), _corrected(policy), _emitted(policy), given_statement(policy)]


def _corrected(policy: EffectivePolicy) -> str:
    return statement("step_07_corrected_event" if policy.rules.correction.actions else "step_07_nothing_corrected")


def _weights(policy: EffectivePolicy) -> dict[str, str]:
    """Return the columns that step_15 adds to ratings, and what it joins for them; nothing where there are none."""
    columns = {"weight": statement("weight", weight=weight_of_rating(policy)), "prior": statement("priors_column")}
    joins = ["raters_join"] if policy.rules.raters is not None else []
    joins += ["priors_join"] if policy.rules.has_global_prior else []
    return {
        "weight": "".join(f"\n    {columns[name]}" for name in rating_columns(policy)),
        "weights": "".join(f"\n{statement(name)}" for name in joins),
    }


def _maps(policy: EffectivePolicy) -> dict[str, str]:
    """Return how step_08 looks up numbers: in the metadata, and by texts if a map has any: that costs a join."""
    actions = [action for edition in policy.editions for action in edition.rules.all_actions.values()]
    maps = [emission.points.map or {} for action in actions for emission in action.emissions]
    parts = {"points_of_map": "star.points", "points_words": "", "rating_of_text": "", "rating_words": ""}
    if any(isinstance(key, str) for points in maps for key in points):
        parts |= {"points_of_map": "coalesce(star.points, points_word.value)"}
        parts |= {"points_words": statement("words", number="points")}
    if any(action.rating and action.rating.map for action in actions):
        parts |= {"rating_of_text": "WHEN rating_word.value IS NOT NULL THEN rating_word.value"}
        parts |= {"rating_words": statement("words", number="rating")}
    return parts


def _rating_weight(policy: EffectivePolicy) -> dict[str, str]:
    """Return how step_08 reads the weights of ratings; nothing where events have none."""
    if not policy.reads_weights:
        return {"weight_is_read": "", "rating_weight": ""}
    return {
        "weight_is_read": " AND rating_weight IS NOT NULL",
        "rating_weight": f",\n        {statement('rating_weight')}",
    }


def _matched(policy: EffectivePolicy) -> str:
    """Return the condition that an event meets all conditions of its action, in the version that applies to it."""
    parts: list[str] = []
    for number, edition in enumerate(policy.editions):
        for i, (_, _, condition) in enumerate(edition.rules.conditions):
            kind = "has_number" if condition.equals is None else "has_text"
            rule = {"rule": f"where_{number}_{i}", "edition": f"edition_{number}"}
            parts.append(statement("matched", has=statement(kind, **rule), **rule))
    return " AND ".join(parts) or "true"


def _timed(policy: EffectivePolicy, source: str) -> tuple[list[str], str]:
    """Return the steps that add points from time to the events that gates let through, and the last view."""
    if not policy.has_time_points:
        return [], source
    weights = {"weight": "\n    rating_weight,", "no_weight": "\n    CAST(NULL AS BIGINT),"}
    if not policy.reads_weights:
        weights = dict.fromkeys(weights, "")
    last = statement("with_time_points", source=source, **weights)
    return [statement("time_start"), statement("time_points"), last], "with_time_points"


def _chain(source: str, links: list[dict[str, str]]) -> tuple[list[str], str]:
    """Return a step per rule, each a view over the one before, so a denied event stays denied; and the last view."""
    steps: list[str] = []
    for link in links:
        name = link["rule"]
        steps.append(statement(link["file"], name=name, source=source, **link))
        source = name
    return steps, source


def _gates(policy: EffectivePolicy) -> list[dict[str, str]]:
    """Return the gates of each edition in their order: completion, then uniqueness."""
    links: list[dict[str, str]] = []
    for number, edition in enumerate(policy.editions):
        own = {"edition": f"edition_{number}"}
        rules = [f"completion_{number}_{i}" for i in range(len(edition.rules.completion))]
        links += [{"file": "step_11_rule_completed", "rule": rule, **own} for rule in rules]
        for i, once in enumerate(edition.rules.once.values()):
            direction = "ASC" if once.keep == "first" else "DESC"
            rule = f"once_{number}_{i}"
            link = {"file": "step_12_rule_once", "rule": rule, "direction": direction}
            links.append({**link, **own, "per": _per(rule, once.per)})
    return links


def _caps(policy: EffectivePolicy) -> list[dict[str, str]]:
    """Return the caps of each edition in their order."""
    links: list[dict[str, str]] = []
    for number, edition in enumerate(policy.editions):
        for i, cap in enumerate(edition.rules.caps.values()):
            points = "granted" if cap.counts == "net" else "greatest(granted, 0)"
            rule = f"cap_{number}_{i}"
            link = {"file": "step_14_rule_capped", "rule": rule, "limited_points": points}
            links.append({**link, "edition": f"edition_{number}", "per": _per(rule, cap.per)})
    return links


def _per(rule: str, keys: tuple[str, ...]) -> str:
    """Return the metadata that tell the groups of a rule apart, besides user and period."""
    return " ".join(statement("per", rule=rule, number=str(number)) for number in range(len(keys)))


def materialize_fact(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, only: str = "") -> None:
    """Compute `fact` from the defined `contribution`; `only` is a clause that restricts it to some users."""
    connection.execute(fact_statement(policy, only))


def fact_statement(policy: EffectivePolicy, only: str = "") -> str:
    """Return the statement that computes `fact`."""
    columns = {"half_life": _half_life(policy), "rating_rank": _rating_rank(policy)}
    columns["more"] = "".join(_recencies(policy)) + fact_columns(policy)
    levels = statement("without_levels") if policy.decays else contributions_with_levels(policy)
    weight = "".join(f"\n    {column}," for column in rating_columns(policy))
    return statement("step_16_fact", only=only, contributions=levels, weight=weight, **columns)


def _half_life(policy: EffectivePolicy) -> str:
    """Return the half-life of a contribution; null unless sums by half-life need it."""
    return "half_life_us" if len(policy.half_lives) > 1 else "CAST(NULL AS BIGINT)"


def _recencies(policy: EffectivePolicy) -> list[str]:
    """Return the recency of a rating among the user's, by each half-life of the measures; each after a comma."""
    return [
        f",\n    {statement('recency', among='user_id', half_life=str(length), name=f'recency_{number}')}"
        for number, length in enumerate(policy.rules.recencies_us)
    ]


def _rating_rank(policy: EffectivePolicy) -> str:
    """Return the rank of a rating from the latest; null unless a measure needs the last N, because it costs a sort."""
    return "row_number() OVER latest_first" if policy.rules.ranks_ratings else "CAST(NULL AS BIGINT)"


def epoch_us(moment: datetime) -> int:
    """Return whole microseconds since 1970-01-01T00:00Z. Raises UsageError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone: add Z or an offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)
