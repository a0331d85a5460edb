"""Reading a published warehouse, from Python and notebooks.

Owns the questions about reputations; `warehouse_session.py` holds the connection and runs readers' SQL,
`warehouse_file.py` opens the file, and `derive.py` creates it. A warehouse is immutable: a reader neither blocks the
pipeline nor sees changes, however many newer ones are published.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.boundary.extras import extra
from pipelines.contract.time_like import TimeLike, require_order, to_utc
from pipelines.errors import UsageError
from pipelines.reputation.activation import activated_in
from pipelines.reputation.as_of import AnyPolicy, AsOf
from pipelines.reputation.compare import change_between
from pipelines.reputation.event_metadata import with_fields
from pipelines.reputation.explain import explain_change, ratings_given
from pipelines.reputation.known_users import naming_erased, of_known_user, require_events
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.query_errors import check_count, explained
from pipelines.reputation.shown import ShownChange, explain_shown, shown_scores
from pipelines.reputation.trends import find_trend, run_trend, trends
from pipelines.reputation.warehouse_file import Access
from pipelines.reputation.warehouse_session import Session, running
from pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.reputation.plots import Plots

_EVENTS = """
    SELECT * FROM events
    WHERE ($user_id IS NULL OR user_id = $user_id)
        AND ($action_type IS NULL OR action_type = $action_type)
        AND ($since IS NULL OR event_time >= $since)
        AND ($until IS NULL OR event_time < $until)
    ORDER BY event_time, event_id
"""


_CHANGES = """
    SELECT
        number,
        user_id,
        CAST(before ->> 'all_time_score' AS DOUBLE) AS score_before,
        CAST(after ->> 'all_time_score' AS DOUBLE) AS score_after,
        before,
        after,
        policy,
        lake_version,
        as_of,
        recorded,
        causes,
        more_causes
    FROM score_changes
    WHERE ($user_id IS NULL OR user_id = $user_id) AND ($since IS NULL OR as_of >= $since)
    ORDER BY number
"""

_SAMPLE = """
    FROM reputation
    ORDER BY md5(concat($seed, ' ', user_id)), user_id
    LIMIT $users
"""


def open_warehouse(data_dir: Path | str | None = None, *, allow_files: bool = False) -> "Warehouse":
    """Open the published warehouse of a data directory, or of a lake on S3 from any machine; it is only read.

    data_dir: a folder, or s3://bucket/folder, the `lake.uri` of the publisher: the warehouse is downloaded to
    `~/.cache/karmalake` (or `$XDG_CACHE_HOME/karmalake`) unless it is there, and the lake's events are read on S3.
    Credentials come from the AWS_* variables. None means the data directory of the settings.
    allow_files: queries may read any file, such as your own CSV to join with, and load extensions. Use it only for
    queries that you write yourself.
    The limits of the settings apply: queries.max_memory_share, queries.max_spill_bytes.
    Raises UsageError when no warehouse has been published there or an earlier release wrote it, NewerFormatError when a
    newer one did, TransientError when S3 does not answer or refuses the credentials, and ConfigurationError for a wrong
    setting, as in a broken karmalake.toml.
    """
    settings = load_settings()
    access = Access(all_files=allow_files, limits=settings.queries)
    if data_dir is None:
        return Warehouse(settings.warehouse_path, access=access)
    if "://" in str(data_dir):
        return Warehouse.on_s3(str(data_dir).rstrip("/"), access)
    return Warehouse(Path(data_dir) / "warehouse.duckdb", access=access)


class Warehouse(Session):
    """A published warehouse: the tables of the reputations, and the lake's `events`, `commits`, ... as views.

    Its contents stay the same while newer warehouses are published, until `refresh()`. Results are polars data frames;
    `arrow()`, `pandas()` and `relation()` return other types. SQL is one query, which reads only the warehouse and the
    lake's files of this snapshot, unless the warehouse was opened with `allow_files`. Moments are datetimes, days or
    ISO 8601 text, and UTC unless they have a zone or offset. A policy may be given by name or file. Notebooks show the
    progress of calls longer than two seconds. Not for use by several threads at once: give each its own
    `snapshot()`. What is asked of one user raises KarmalakeError, with the most similar user_id, if no event is of
    that user, and UsageError if the user was erased.
    """

    def events(
        self,
        user_id: str | None = None,
        action_type: str | None = None,
        since: TimeLike | None = None,
        until: TimeLike | None = None,
    ) -> pl.DataFrame:
        """Return events of the lake, by event_time in [since, until), oldest first.

        Columns: event_id, user_id, action_type, event_time (UTC); metadata, a struct with a text for each key of these
        events, null where an event lacks it; topic_id, topic, topic_partition, offset, bus_time (UTC), batch_id and
        event_day, where the event comes from. `.unnest("metadata")` makes a column of each key, as files of CSV need;
        with `separator="."` it calls them `metadata.rating` and so on, where a key is the name of another column.

        Raises UsageError if these events have more than 500 keys, and unless since is before until.
        """
        begin, end = (None if moment is None else to_utc(moment) for moment in (since, until))
        require_order(begin, end)
        values = {"user_id": user_id, "action_type": action_type, "since": begin, "until": end}
        return with_fields(self._of_known(user_id, self.sql(_EVENTS, values)))

    def changes(self, user_id: str | None = None, since: TimeLike | None = None) -> pl.DataFrame:
        """Return what publications changed of one user, or of all, from a moment of publication on, by number.

        Columns: number; user_id; score_before and score_after, all-time, in points (Float64; null if there was no row,
        or is none any more); before and after, the whole rows of `reputation` as JSON; policy; lake_version and as_of
        (UTC) of the publication; recorded (UTC); causes, a list of structs of cause and event_id (null where no event
        is behind it), and more_causes, how many are not named. No row unless `feed.enabled` was set.
        """
        moment = None if since is None else to_utc(since)
        return self._of_known(user_id, self.sql(_CHANGES, {"user_id": user_id, "since": moment}))

    def sample(self, users: int = 100, seed: int = 0) -> pl.DataFrame:
        """Return status and scores of users at random, the same ones for the same seed; columns as of `scores()`.

        A user who is in a sample stays in it in later warehouses, unless new users take the place. Pass the result as
        a table to join their events: `sql("FROM events SEMI JOIN few USING (user_id)", tables={"few": sample})`.
        Raises UsageError unless `users` is a whole number from 0 to 1,000,000,000.
        """
        check_count("users", users)
        return self.sql(_SAMPLE, {"seed": str(seed), "users": users})

    def timeline(self, user_ids: str | Iterable[str]) -> pl.DataFrame:
        """Return what each event of some users did to their scores, by user and in the order of events.

        Columns: user_id, then those of `explain()`, without rows that belong to no event; `score` is the running sum of
        points. Raises UsageError for no user_id.
        """
        asked = dict.fromkeys([user_ids] if isinstance(user_ids, str) else user_ids)
        named = [self.explain(user).select(pl.lit(user).alias("user_id"), pl.all()) for user in asked]
        if not named:
            raise UsageError("timeline() needs at least one user_id")
        return pl.concat(named).filter(pl.col("event_id").is_not_null())

    def reputation(self, user_id: str | None = None) -> pl.DataFrame:
        """Return status and scores of one user, or of all, a row per user; columns as of `scores()`."""
        if user_id is None:
            return self.sql("FROM reputation ORDER BY user_id")
        return self._of_known(user_id, self.sql("FROM reputation WHERE user_id = ?", [user_id]))

    def _of_known(self, user_id: str | None, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of an answer. Raises KarmalakeError if there are none, since no event is of this user."""
        if user_id is None:
            return rows
        with explained(), naming_erased(user_id, self._settings):
            return of_known_user(self._connection, user_id, rows)

    def user_ids(self, user_id: str) -> list[str]:
        """Return every user_id of the person whom a user_id names, the current one first; itself if none was merged."""
        return aliases_in(self._connection).names(user_id)

    def as_of(self, moment: TimeLike | None = None, known_at: TimeLike | None = None) -> "AsOf":
        """Return a handle on the scores of another moment.

        Both are a text, a date or a datetime, in UTC unless they say otherwise.

        moment: event time; None means the warehouse's as_of.
        known_at: only events committed before it count, by the rules in force then: what was served then. None: all
        events of the snapshot count, including late events and retractions.
        """
        then = self.info.as_of if moment is None else to_utc(moment)
        known = None if known_at is None else to_utc(known_at)
        return AsOf(self._connection, then, known, self._policy(known), self._settings)

    def scores(self, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Compute the scores of all users as of the warehouse's moment, by another policy if given.

        Columns: user_id, status (`active` or `suspended`), then for each view (`all_time`, `last_{N}_days`)
        `{view}_score` (points), `{view}_events` (events that count), `{view}_rating_average` (in the policy's unit;
        null without ratings), the policy's other measures, and `{view}_rating_count`. A score is Int64 if the policy
        has only whole points, Float64 if points decay, else Decimal.
        """
        return self.as_of().scores(policy)

    def compare(self, policy: AnyPolicy, before: AnyPolicy | None = None) -> pl.DataFrame:
        """Return the all-time score and rank of all users by `before` (None: the warehouse's policy) and by `policy`.

        Columns: user_id; score_before, score_after and change in points; rank_before and rank_after (1 is the highest
        score; equal scores share the better rank). The largest change comes first. Publishes nothing.
        """
        return self.as_of().compare(policy, before)

    def change(self, since: TimeLike, until: TimeLike | None = None) -> pl.DataFrame:
        """Return the all-time score and rank of all users at two moments, as known now, the largest change first.

        Columns: user_id; score_before, score_after and change in points; rank_before and rank_after (1 is the highest
        score; equal scores share the better rank). Users whose first event is not before `since` have no score_before
        and rank_before, and change from the policy's start. `explain_change()` says why for one user.

        until: None means the warehouse's as_of. Raises UsageError unless since is before until.
        """
        end = self.info.as_of if until is None else to_utc(until)
        with running("the changes of all users"):
            return change_between(self._connection, self.info.policy, to_utc(since), end)

    def explain(
        self, user_id: str, policy: AnyPolicy | None = None, view: str = "all_time", scope: str | None = None
    ) -> pl.DataFrame:
        """Return every contribution to a user's score with its reason, in the order of events.

        `earned` adds up to the score exactly. Columns:

        - event_time (UTC), event_id, action_type: the event; null in rows that no event earned, except that points from
          time have a time, and the name of their rule as action_type
        - emission_no: which of the event's emissions, from 0; null without a rule
        - policy_version: the version of the policy that was in force at the event
        - reason: why it counted or not, such as `granted` or `retracted`; `start`, `bounds` and `hidden` are the part
          of the score that no event earned
        - rule: the cap or gate that decided, by its name in the policy; null if none did
        - related_event_id: the retraction that withdrew the event; of a retraction or correction, the event it names
        - points: points before caps and decay
        - rating: in the policy's unit, such as stars; null without one
        - weight: how much the rating counts in measures: its own weight times that of its rater on the day; only where
          the policy has weights
        - prior: that of the rating's day; only where a measure has a prior from all ratings
        - earned: points that it adds to the score now
        - score: points so far, the running sum of `earned`
        - level: the level after the event; null without levels, and in other views than `all_time`

        policy: another one than the warehouse's.
        view: `all_time` or `last_N_days`.
        scope: a scope of the policy with a value, such as `city=berlin`: the contributions to the score there.
        Raises UsageError and PolicyError for a policy that cannot be read, UsageError for an unknown view or scope,
        KarmalakeError for a value of the scope that no event of the user has.
        """
        return self.as_of().explain(user_id, policy, view, scope)

    def ratings_given(self, user_id: str) -> pl.DataFrame:
        """Return event_id and rating of each event of a user that gave a rating, whether it counts or not.

        Ratings are as they came, before corrections, and as the warehouse's policy reads them.
        Raises KarmalakeError for an unknown user.
        """
        with running(f"the ratings given to {user_id}"), naming_erased(user_id, self._settings):
            given = ratings_given(self._connection, self.info.policy, user_id, self.info.as_of)
            return of_known_user(self._connection, user_id, given)

    def trust_paths(self, user_id: str, rater_id: str, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Return through whom a rater is trusted on the five latest days with ratings of a user by the rater.

        Of each day there are at most three paths, each the strongest one through another of those who trust the rater,
        and a row for the rest. Columns:

        - day: of the ratings (UTC)
        - weight: of the rater's ratings on that day, from 0 to 1
        - part: what the path brings of the weight; the parts of a day add up to it
        - path: from a seed of the policy to the rater, at most five users, such as `ann > bob > cyd`; null for the
          rest: other paths, the trust that a seed has of its own, and the minimum of the policy

        policy: another one than the warehouse's.
        Raises UsageError for a policy whose raters weigh alike, and for a rater who has not rated the user.
        """
        return self.as_of().trust_paths(user_id, rater_id, policy)

    def explain_change(
        self, user_id: str, since: TimeLike, until: TimeLike | None = None, view: str = "all_time"
    ) -> pl.DataFrame:
        """Return the contributions to a user's score that were added, removed or expired between two moments.

        Both moments are as known now, by the warehouse's policy; `explain_shown()` compares what was served. `change`
        adds up to the difference of the two scores.
        Columns: event_time (UTC), event_id, action_type, emission_no, as of `explain()`; reason, related_event_id and
        earned (points) at `until`; reason_before and earned_before at `since`; change, earned - earned_before in
        points.

        until: None means the warehouse's as_of.
        view: `all_time` or `last_N_days`.
        Raises UsageError unless since is before until.
        """
        end = self.info.as_of if until is None else to_utc(until)
        require_order(to_utc(since), end)
        with running(f"what changed for {user_id}"), naming_erased(user_id, self._settings):
            changes = explain_change(self._connection, self.info.policy, user_id, to_utc(since), end, view)
            return of_known_user(self._connection, user_id, changes)

    def explain_shown(
        self, user_id: str, since: TimeLike, until: TimeLike | None = None, view: str = "all_time"
    ) -> ShownChange:
        """Return what was shown of a user at two moments, and each cause of the difference; see `ShownChange`.

        until: None means the warehouse's as_of.
        view: `all_time` or `last_N_days`.
        Raises UsageError for moments in the wrong order, before the first commit or after the warehouse's as_of, and
        for an unknown view; KarmalakeError if nothing was shown of the user at either moment.
        """
        begin, end = to_utc(since), self.info.as_of if until is None else to_utc(until)
        if end > self.info.as_of:
            raise UsageError(f"{end} is after {self.info.as_of}, the as_of of this warehouse: refresh() it first")
        with running(f"what was shown of {user_id}"), naming_erased(user_id, self._settings):
            unrecorded = self._unrecorded_policy
            return explain_shown(self._connection, user_id, begin, end, unrecorded, self._settings(), view)

    def shown_scores(self, user_id: str, view: str = "all_time") -> pl.DataFrame:
        """Return the score that was shown of a user at each `moment` at which it may have changed, oldest first.

        Columns: moment, score (Float64; null while the policy in force lacked the view). The last moment is the
        warehouse's as_of; of more than 60, those of the newest days remain, one for each day.
        """
        with running(f"the scores shown of {user_id}"), naming_erased(user_id, self._settings):
            require_events(self._connection, user_id)
            rules = self._unrecorded_policy()
            return shown_scores(self._connection, user_id, self.info.as_of, rules, self._settings(), view)

    def trend(
        self, name: str = "daily", since: TimeLike | None = None, until: TimeLike | None = None, **parameters: Any
    ) -> pl.DataFrame:
        """Return the rows of a trend whose UTC day (or first day) lies in [since, until); `trends()` lists the names.

        Raises UsageError for an unknown trend or parameter, and unless since is before until.
        """
        with running(f"the trend {name}"):
            return run_trend(self._connection, find_trend(name), since, until, parameters)

    @property
    def plot(self) -> "Plots":
        """Charts of this warehouse, one call each: Altair charts, to be shown as they are or changed further.

        `plot.trend(name, ...)` draws a trend, `plot.timeline(user_ids)` the running scores of users and
        `plot.change(since, until, top)` the largest changes, each with the arguments of the method of that name.
        Raises ConfigurationError unless `karmalake[notebooks]` is installed.
        """
        with extra("notebooks", "a chart"):
            from pipelines.reputation.plots import Plots  # noqa: PLC0415 - not needed by servers
        return Plots(self)

    def trends(self) -> pl.DataFrame:
        """Return the available trends: name, meaning, and parameters with their defaults."""
        rows = [(trend.name, trend.meaning, trend.signature) for trend in trends().values()]
        return pl.DataFrame(rows, ["trend", "meaning", "parameters"], orient="row")

    def _settings(self) -> Settings:
        """Return the settings, with the folder and the lake of this warehouse."""
        settings = load_settings()
        lake = settings.lake.model_copy(update={"uri": self._lake_uri or settings.lake.uri})
        return settings.model_copy(update={"data_dir": self.path.parent, "lake": lake})

    def _policy(self, known_at: datetime | None) -> Policy:
        """Return the policy in force at a moment; the warehouse's for None."""
        if known_at is None:
            return self.info.policy
        return activated_in(self._connection, known_at) or self._unrecorded_policy()

    def _unrecorded_policy(self) -> Policy:
        """Return the policy in force before the first activation: without any, the warehouse's, else the settings'."""
        return load_policy(load_settings().reputation.policy) if activated_in(self._connection) else self.info.policy
