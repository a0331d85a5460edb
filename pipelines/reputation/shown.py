"""Why the shown score of a user changed from one moment to a later one: every cause with its points.

What is shown at a moment is what a refresh at that moment publishes: the events committed before it, as of it, by the
policy in force then. Readers see it as soon as that refresh has run, and until then the one before.

The difference is divided in steps, so that each has one kind of cause: time passes (events leave a window, penalties
expire, points decay), then what was committed meanwhile arrives, then users are merged, then the policy changes. The
contributions before and after a step are joined by event, and the first rule of `_RULES` that holds names the cause.
The changes of a step add up to the difference of its totals, so all of them add up to the difference of the two scores.
Measures, such as a mean, have no such parts: they are returned as they were, beside the ratings that changed.
Owns causes; `explain.py` computes contributions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.withdrawn_events import WITHDRAWN_EVENTS, read_withdrawn_events
from pipelines.reputation.activation import activated_in
from pipelines.reputation.explain import contributions, load_explained_events, set_explained_user
from pipelines.reputation.known_users import closest_user
from pipelines.reputation.merged_users import Aliases, Merge, aliases, merges_in
from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.policy.decay import SCORE_DIGITS
from pipelines.reputation.sql import arrow_rows, statement, use_utc
from pipelines.reputation.steps import define_steps, materialize_fact, set_as_of, set_known_at
from pipelines.reputation.views import find_view, reputation_query, view_columns, views
from pipelines.settings import Settings

_SOURCE = "shown_event"
_MAX_MOMENTS = 60
"""Each takes some 30 ms."""
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_ONLY_USER = "WHERE user_id = getvariable('explained_user')"
_POINTS = pl.Decimal(38, SCORE_DIGITS)
_KEYS = ["event_time", "event_id", "action_type", "emission_no", "mark"]
"""What identifies a contribution; `mark` is the reason of one of no moment, such as the start of the score."""
_LINKS = ["retracted_by", "corrected_by", "suspended_by", "reinstated_by", "withdrawn_because"]
_MEASURED = ["rating", "weight", "prior"]
"""What a contribution adds to measures."""
_COMPARED = ["reason", "rule", *_MEASURED, "earned", "granted", "committed", *_LINKS]
_COLUMNS = [
    *("cause", "caused_by", "event_time", "committed", "event_id", "action_type", "emission_no"),
    *(f"{name}{side}" for name in ("reason", *_MEASURED, "earned") for side in ("_before", "")),
    "change",
]
_ROUNDING = "rounding"
_ORDER = ["event_time", "event_id", "emission_no", "step", "cause"]
"""The changes of one contribution are in the order of the steps that made them."""
_FROZEN = ["suspended", "reset"]


def _either(reason: str) -> pl.Expr:
    return (pl.col("reason") == reason) | (pl.col("reason_before") == reason)


def _latest(column: str) -> pl.Expr:
    return pl.coalesce(column, f"{column}_before")


_NOTHING = pl.lit(None, pl.String)
_UNKNOWN = [pl.col("reason").is_null(), pl.col("reason_before").is_null()]
_IS_OF_TIME = pl.col("mark").is_null() & pl.col("event_id").is_null()
_RULES: tuple[tuple[str, pl.Expr, pl.Expr], ...] = (
    ("start", pl.col("mark") == "start", _NOTHING),
    ("bounds", pl.col("mark") == "bounds", _NOTHING),
    ("suspension", (pl.col("mark") == "hidden") & pl.col("reason").is_not_null(), _NOTHING),
    ("reinstatement", pl.col("mark") == "hidden", _NOTHING),
    ("points from time", _IS_OF_TIME & pl.col("reason_before").is_null() & pl.col("time_passes"), _NOTHING),
    ("first event", _IS_OF_TIME & pl.any_horizontal(_UNKNOWN) & ~pl.col("time_passes"), _NOTHING),
    ("late event", pl.col("reason_before").is_null() & pl.col("is_late"), _NOTHING),
    ("new event", pl.col("reason_before").is_null(), _NOTHING),
    ("left the window", pl.col("reason").is_null() & pl.col("time_passes"), _NOTHING),
    ("withdrawn", pl.col("reason").is_null(), _latest("withdrawn_because")),
    ("retraction", _either("retracted"), _latest("retracted_by")),
    ("suspension", pl.col("reason").is_in(_FROZEN), _latest("suspended_by")),
    ("reinstatement", pl.col("reason_before").is_in(_FROZEN), _latest("reinstated_by")),
    ("correction", pl.col("corrected_by").ne_missing(pl.col("corrected_by_before")), _latest("corrected_by")),
    ("penalty expired", pl.col("reason") == "expired", _NOTHING),
    ("completion", _either("not completed"), _latest("rule")),
    ("once", _either("superseded"), _latest("rule")),
    ("cap", pl.col("granted").ne_missing(pl.col("granted_before")), _latest("rule")),
    ("decay", pl.col("time_passes") & (pl.col("change") != 0), _NOTHING),
    ("trust in the rater", pl.col("weight").ne_missing(pl.col("weight_before")), _NOTHING),
    ("prior", pl.col("prior").ne_missing(pl.col("prior_before")), _NOTHING),
    (_ROUNDING, pl.col("change") != 0, _NOTHING),
    ("ruling", pl.lit(True), _NOTHING),  # noqa: FBT003 - of an event without points, such as a retraction
)
"""The causes of a change while time passes or events arrive: name, condition, and what caused it; the first holds."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What was shown of a user at one moment, in one view."""

    moment: datetime
    lake_version: int
    policy: str
    """NAME@VERSION of the policy in force."""
    status: str | None
    """`active` or `suspended`; None if there was no document of the user."""
    level: str | None
    """The level of the all-time score; None below the first, if it was hidden, and without levels in the policy."""
    numbers: dict[str, Any]
    """The columns of the view: score, events, measures and rating_count; empty if the view was not shown."""

    @property
    def score(self) -> float | Decimal | None:
        """The score; None if none was shown."""
        return self.numbers.get("score")


@dataclass(frozen=True, slots=True)
class ShownChange:
    """What was shown of a user at two moments, and each cause of the difference."""

    user_id: str
    """As asked; a former one stands for the person's current one of each moment."""
    view: str
    before: Shown
    after: Shown
    causes: pl.DataFrame = field(repr=False)
    """A row for each contribution that a cause changed, in the order of events: cause, caused_by (the event, rule,
    policy or merge of users behind it), event_time, committed, event_id, action_type, emission_no, and reason, rating,
    the rating's weight and prior (null where the policy has none), and earned points before and after. `change` adds up
    to the difference of the two scores; a score that was not shown counts as 0."""
    unread: int
    """How many events, of any user, were in the lake at one of the moments, were withdrawn since, and cannot be read
    any more, because a vacuum has deleted them: what was shown differs by those of this user."""

    def summary(self) -> pl.DataFrame:
        """Return `changes`, the number of rows of `causes`, and their sum `change` by cause, the largest sum first."""
        sums = self.causes.group_by("cause").agg(pl.len().alias("changes"), pl.col("change").sum())
        return sums.sort(pl.col("change").cast(pl.Float64).abs(), "cause", descending=[True, False])


@dataclass(frozen=True, slots=True)
class _State:
    """A user under one policy, as of one moment, as known at one moment: `rows` are the contributions to the view."""

    policy: EffectivePolicy
    status: str | None
    level: str | None
    numbers: dict[str, Any]
    rows: pl.DataFrame


def explain_shown(
    connection: duckdb.DuckDBPyConnection,
    user_id: str,
    since: datetime,
    until: datetime,
    unrecorded: Callable[[], Policy],
    settings: Settings,
    view: str = "all_time",
) -> ShownChange:
    """Return what was shown of a user at two moments, and every cause of the difference with its points.

    connection: with the views of the lake; the call leaves temporary objects in it.
    unrecorded: returns the policy in force before the first activation, which the lake does not record; called only if
    `since` is before that.
    settings: of the lake, whose log names the files of withdrawn events.
    view: `all_time` or `last_N_days`.
    Raises UsageError if `since` is not before `until` or is before the first commit, or if neither policy has the view;
    KarmalakeError if nothing was shown of the user at either moment.
    """
    versions = _lake_versions(connection, since, until)
    first = activated_in(connection, since) or unrecorded()
    old, new = _fixed(first, since), _fixed(activated_in(connection, until) or first, until)
    _require_view(view, old.at(since), new.at(until))
    merges = merges_in(connection, until)
    then, now = (aliases(_before(merges, moment)) for moment in (since, until))
    of_others = load_explained_events(connection, user_id, [old.at(since), old.at(until), new.at(until)], now)
    unread = _load_withdrawn_events(connection, settings, now.names(user_id), of_others, (since, until))
    cases = [(old, since, since, then), (old, until, since, then), (old, until, until, then)]
    if merged := _merged_meanwhile(merges, since, now.names(user_id)):
        cases.append((old, until, until, now))
    if old.at(until) != new.at(until):
        cases.append((new, until, until, now))
    steps = _Steps(connection, user_id)
    states = [_state(connection, view, steps.move(*case)) for case in cases]
    if all(state.status is None for state in (states[0], states[-1])):
        raise KarmalakeError(_nothing_shown(user_id, since, until) + closest_user(connection, user_id))
    before, after = (
        Shown(
            moment,
            version,
            f"{state.policy.name}@{state.policy.rules.version}",
            state.status,
            state.level,
            state.numbers,
        )
        for moment, version, state in zip((since, until), versions, (states[0], states[-1]), strict=True)
    )
    return ShownChange(user_id, view, before, after, _causes(states, since, merged), unread)


def shown_scores(
    connection: duckdb.DuckDBPyConnection,
    user_id: str,
    until: datetime,
    unrecorded: Policy,
    settings: Settings,
    view: str = "all_time",
) -> pl.DataFrame:
    """Return the score that was shown of a user at each `moment` at which it may have changed, oldest first.

    Columns: moment, score (Float64; null while the policy in force lacked the view). The last moment is `until`. Of
    more than `_MAX_MOMENTS`, those of the newest days remain, one for each day. Withdrawn events whose files a vacuum
    has deleted are missing. unrecorded: the policy in force before the first activation. Other arguments as of
    `explain_shown`.
    """
    recorded = connection.execute("SELECT DISTINCT policy FROM policies WHERE role IS NULL").fetchall()
    rules = [unrecorded, *(Policy.model_validate_json(policy) for (policy,) in recorded)]
    versions = [policy.at(each.effective_from or until) for policy in rules for each in policy.versions]
    merges = merges_in(connection, until)
    of_others = load_explained_events(connection, user_id, versions, aliases(merges))
    _load_withdrawn_events(connection, settings, aliases(merges).names(user_id), of_others, (_FIRST, until))
    connection.execute("SET VARIABLE merged_at = CAST(? AS TIMESTAMPTZ[])", [[merge.merged_at for merge in merges]])
    steps, scores = _Steps(connection, user_id), list[tuple[datetime, float | None]]()
    for moment in _moments(connection, until):
        known = aliases(_before(merges, moment))
        in_force = steps.move(activated_in(connection, moment) or unrecorded, moment, moment, known)
        scores.append((moment, _document(connection, in_force).get(f"{view}_score")))
    return pl.DataFrame(scores, {"moment": pl.Datetime("us", "UTC"), "score": pl.Float64}, orient="row", strict=False)


def _moments(connection: duckdb.DuckDBPyConnection, until: datetime) -> list[datetime]:
    use_utc(connection)
    connection.execute("SET VARIABLE shown_until = ?", [until])
    moments = connection.sql(statement("shown_moments")).pl()
    if moments.height > _MAX_MOMENTS:
        moments = moments.group_by(pl.col("moment").dt.date().alias("day"), maintain_order=True).last()
    return [*moments["moment"].tail(_MAX_MOMENTS), until]


class _Steps:
    """The steps over `shown_event`, defined once for each set of rules and moved from moment to moment."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, user_id: str) -> None:
        self._connection, self._user_id = connection, user_id
        self._defined: tuple[EffectivePolicy, Aliases] | None = None

    def move(self, policy: Policy, as_of: datetime, known_at: datetime, known: Aliases) -> EffectivePolicy:
        """Move to a moment, and compute `fact` of the explained user; return the policy in force."""
        in_force = policy.at(as_of)
        learned = in_force.rules.raters is not None or in_force.rules.has_global_prior  # from the events of a moment
        if (in_force, known) == self._defined and not learned:
            set_as_of(self._connection, as_of)
            set_known_at(self._connection, known_at)
        else:
            set_explained_user(self._connection, self._user_id, known)
            define_steps(self._connection, policy, as_of, known_at, _SOURCE, known)
        self._defined = in_force, known
        materialize_fact(self._connection, in_force, _ONLY_USER)
        return in_force


def _document(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> dict[str, Any]:
    """Return the row of `reputation` of the explained user, from `fact`; empty if nothing is shown."""
    rows = connection.sql(reputation_query(policy)).pl()
    return rows.row(0, named=True) if rows.height else {}


def _lake_versions(connection: duckdb.DuckDBPyConnection, *moments: datetime) -> list[int]:
    since, until = moments
    if since >= until:
        raise UsageError(f"{_text(since)} is not before {_text(until)}: swap them")
    use_utc(connection)
    found = [connection.sql(statement("shown_commits"), params=[moment]).pl().row(0) for moment in moments]
    first = found[0][1]
    if first is None:
        raise UsageError("the lake has no commit, so nothing was shown yet: run `karmalake drain`")
    if first >= since:
        raise UsageError(
            f"nothing was shown at {_text(since)}: the first commit is of {_text(first)}; begin after it, or compare "
            "event times, as known now: `karmalake explain --from`, explain_change()"
        )
    return [version for version, _ in found]


def _load_withdrawn_events(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    names: Collection[str],
    of_others: Collection[str],
    span: tuple[datetime, datetime],
) -> int:
    """Create `shown_event`: what the lake holds, and what it held at one of the moments; return how many are lost."""
    since, until = span
    unread, found = 0, [WITHDRAWN_EVENTS.empty_table()]
    for version, events in connection.sql(statement("shown_withdrawals"), params=[until, since]).fetchall():
        try:
            rows = read_withdrawn_events(settings, version, names, of_others)
        except (FileNotFoundError, LookupError):
            unread += events
        else:
            found.append(rows)
    with arrow_rows(connection, pa.concat_tables(found)):
        connection.execute(statement("table_withdrawn_event"))
    connection.execute(statement("view_shown_event"))
    return unread


def _before(merges: Sequence[Merge], moment: datetime) -> list[Merge]:
    return [merge for merge in merges if merge.merged_at < moment]


def _merged_meanwhile(merges: Sequence[Merge], since: datetime, names: Collection[str]) -> str:
    """Return the merges since a moment as a text: those of the person, or else all; empty without any."""
    new = [merge for merge in merges if merge.merged_at >= since]
    own = [merge for merge in new if merge.user_id in names]
    return "; ".join(f"{merge.user_id} into {merge.merged_into}" for merge in own or new)


def _fixed(policy: Policy, moment: datetime) -> Policy:
    """Return a policy without the versions that come into force after a moment."""
    first, *others = policy.versions
    known = (rules for rules in others if rules.effective_from is not None and rules.effective_from <= moment)
    return policy.model_copy(update={"versions": (first, *known)})


def _require_view(view: str, old: EffectivePolicy, new: EffectivePolicy) -> None:
    if view not in {each.name for each in views(old)}:
        find_view(new, view)


def _state(connection: duckdb.DuckDBPyConnection, view: str, policy: EffectivePolicy) -> _State:
    """Return the explained user's state, from `fact`; without rows if nothing is shown of the user in the view."""
    document = _document(connection, policy)
    found = next((each for each in views(policy) if each.name == view), None)
    rows = _linked(connection, contributions(connection, policy, found or views(policy)[0]))
    if found is None or not document:
        return _State(policy, document.get("status"), document.get("level"), {}, rows.clear())
    numbers = {column: document[f"{view}_{column}"] for column in view_columns(policy)}
    return _State(policy, document["status"], document.get("level"), numbers, rows)


def _linked(connection: duckdb.DuckDBPyConnection, rows: pl.DataFrame) -> pl.DataFrame:
    """Return contributions with `mark` and `_COMPARED`, under `_KEYS`; an event without a rule has emission 0."""
    links = connection.sql(statement("shown_links")).pl()
    joined = rows.join(links, on=["event_time", "event_id", "action_type", "emission_no"], how="left", nulls_equal=True)
    absent = [pl.lit(None, pl.Float64).alias(name) for name in _MEASURED if name not in rows.columns]
    return joined.with_columns(absent).select(
        pl.col("event_time", "event_id", "action_type"),
        pl.when(pl.col("event_time").is_not_null()).then(pl.col("emission_no").fill_null(0)).cast(pl.Int64),
        pl.when(pl.col("event_time").is_null()).then(pl.col("reason")).alias("mark"),
        pl.col(_COMPARED).exclude("earned"),
        pl.col("earned").cast(_POINTS),
    )


def _causes(states: Sequence[_State], since: datetime, merged: str) -> pl.DataFrame:
    """Return the changes from each state to the next, with their causes; the third step is of the merges, if any."""
    passed, arrived, *changed = (_compared(before, after) for before, after in pairwise(states))
    steps = [_classified(passed, since, time_passes=True), _classified(arrived, since, time_passes=False)]
    policy = states[-1].policy
    named = [("account merged", merged)] if merged else []
    named.append(("policy", f"{policy.name}@{policy.rules.version}"))
    for rows, (cause, by) in zip(changed, named, strict=False):
        steps.append(rows.with_columns(cause=pl.lit(cause), caused_by=pl.lit(by)))
    numbered = (rows.select(*_COLUMNS, step=pl.lit(number)) for number, rows in enumerate(steps))
    return pl.concat(numbered).sort(_ORDER, nulls_last=True, maintain_order=True).select(_COLUMNS)


def _compared(before: _State, after: _State) -> pl.DataFrame:
    """Return the contributions that differ between two states, under `_KEYS`, with `_COMPARED` of both."""
    left = before.rows.rename({column: f"{column}_before" for column in _COMPARED})
    joined = after.rows.join(left, on=_KEYS, how="full", nulls_equal=True, coalesce=True)
    amounts = joined.with_columns(pl.col("earned", "earned_before").fill_null(0), committed=_latest("committed"))
    differs = [pl.col(name).ne_missing(pl.col(f"{name}_before")) for name in ("earned", "reason", *_MEASURED)]
    return amounts.with_columns(change=pl.col("earned") - pl.col("earned_before")).filter(pl.any_horizontal(differs))


def _classified(rows: pl.DataFrame, since: datetime, *, time_passes: bool) -> pl.DataFrame:
    """Add `cause` and `caused_by` by the first rule that holds; changes that are only rounding become one row."""
    facts = rows.with_columns(
        is_late=(pl.col("event_time") < since) & (pl.col("committed") >= since), time_passes=pl.lit(time_passes)
    )
    found = [
        pl.when(holds).then(pl.struct(pl.lit(name).alias("cause"), by.alias("caused_by"))) for name, holds, by in _RULES
    ]
    named = facts.with_columns(pl.coalesce(found).alias("found")).unnest("found")
    is_rounding = pl.col("cause") == _ROUNDING
    return pl.concat([named.filter(~is_rounding), _in_one_row(named.filter(is_rounding))])


def _in_one_row(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the sum of changes as a row without an event; no row for none."""
    nulls = rows.head(1).with_columns(pl.when(pl.lit(False)).then(pl.exclude("cause")).name.keep())  # noqa: FBT003
    return nulls.with_columns(change=pl.lit(rows["change"].sum(), _POINTS))


def _nothing_shown(user_id: str, since: datetime, until: datetime) -> str:
    return (
        f"nothing was shown of user {user_id!r} at {_text(since)} or at {_text(until)}: the lake holds no event of "
        "this user committed by then; check the spelling"
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"
