"""Deriving the warehouse: rebuild it, or refresh the rows that a commit affected, and publish it whole.

Owns the life of `warehouse.duckdb`. A draft is a copy that only its holder sees: it is rebuilt or refreshed, any
number of times, and published whole. After a crash the published warehouse stays and the draft is discarded, so a step
need not be atomic. The file holds what changed since its base (`base.py`): a rebuild writes a base, refreshes make
changes, and a publication that finds many changes, or follows an erasure, folds both into a new base
(`draft_file.py`). `Draft._refresh` names the steps of a refresh in order; `refresh_steps.py` contains them.
`draft_tables.py` holds the rows of a draft; `warehouse_tables.py` defines the tables; `warehouse.py` opens a published
warehouse.
"""

import logging
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.boundary.file_lock import holder_of, is_locked
from pipelines.boundary.private_files import make_private_dir
from pipelines.boundary.text import amount
from pipelines.errors import NewerFormatError, UsageError
from pipelines.formats import release
from pipelines.lake.commit_log import with_feed
from pipelines.lake.files import compare_checksums, make_durable
from pipelines.lake.tables import Lake, Snapshot
from pipelines.reputation.database_file import writer_lock
from pipelines.reputation.draft_file import DraftFile
from pipelines.reputation.draft_tables import DraftTables
from pipelines.reputation.histories import (
    NO_USERS,
    Histories,
    delete_if_outdated,
    histories_folder,
    last_batch,
    read_commits,
)
from pipelines.reputation.lake_views import create_lake_views, stored_rows
from pipelines.reputation.merged_users import (
    NO_ALIASES,
    aliases,
    aliases_in,
    applied_merges,
    merges_mark,
    merges_of,
)
from pipelines.reputation.policy import EffectivePolicy, Policy
from pipelines.reputation.priors import update_priors, use_stored_priors
from pipelines.reputation.raters import (
    EarlierWeights,
    compute_weights,
    earlier_weights,
    first_outdated_day,
    use_stored_weights,
)
from pipelines.reputation.recent_events import recent_in_histories, recent_in_lake
from pipelines.reputation.refresh_steps import (
    changed_events,
    count_all,
    create_affected_event,
    due_days,
    erased_events,
    find_affected_users,
    keys_read,
    load_affected_events,
    moved_events,
    replace_rows,
    set_threads_for,
    users_due,
)
from pipelines.reputation.related_events import define_completions
from pipelines.reputation.resolved_histories import ResolvedHistories, resolve_rows
from pipelines.reputation.segment import ROWS
from pipelines.reputation.sorted_words import difference, union
from pipelines.reputation.sql import statement
from pipelines.reputation.steps import define_steps, epoch_us, materialize_fact, set_as_of
from pipelines.reputation.unwritten import write_info
from pipelines.reputation.warehouse import Warehouse
from pipelines.reputation.warehouse_file import Info
from pipelines.reputation.warehouse_tables import (
    ONLY_AFFECTED,
    recipe,
    trend_tables,
    user_tables,
    weight_tables,
)
from pipelines.settings import ReputationSettings

_LOG = logging.getLogger(__name__)
_DEFAULTS = ReputationSettings()
HEAVY_USER_EVENTS = 100_000
"""A user with more events takes a second or so to recompute; `refresh_light_users` defers them."""
_ALWAYS_REFRESHED = 10_000
_REBUILD_THRESHOLD = 0.2
"""If more than this share of the users, and more than _ALWAYS_REFRESHED, are affected, a rebuild costs less."""
_WEIGHTS_CHANGED = "raters have weights, and a rating arrived late, was removed or began a day"
_RATERS_MERGED = "raters have weights, and users were merged"
_PRIORS_CHANGED = "a late rating, or the end of an earlier one, changed the priors of many users"

Engine = Callable[[duckdb.DuckDBPyConnection, Snapshot, EffectivePolicy, datetime], None]
"""Creates the tables of a draft whose steps are defined, as of a moment."""


@dataclass(frozen=True, slots=True)
class DerivationResult:
    """The outcome of a rebuild or refresh."""

    path: Path
    lake_version: int
    as_of: datetime
    users: int
    events: int
    """Events before as_of, whether they earned or not."""
    counted: int
    """Events before as_of that count."""
    seconds: float
    rebuild_reason: str | None
    """Why everything was recomputed; None for a refresh of the affected users."""
    affected_users: int
    """Number of users whose rows were recomputed."""
    changed_users: pl.Series | None
    """The user_ids (String) whose row in `reputation` changed or disappeared; None: any may have, as after a rebuild or
    refreshes that were discarded."""
    has_decayed: bool
    """Whether the scores of all other users moved to a later step of decay."""


def derive(snapshot: Snapshot, policy: Policy, as_of: datetime, path: Path) -> DerivationResult:
    """Compute every table of the warehouse from one snapshot and publish it at `path`, whole or not at all.

    Readers of an older warehouse keep the file that they opened. Only one draft of a path exists at a time; others
    wait. Raises UsageError for an as_of without a time zone, or when another process holds the warehouse's lock.
    """
    with open_draft(path) as draft:
        derived = draft.rebuild(snapshot, policy, as_of)
        draft.publish()
    return derived


def derive_in_duckdb(
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,  # noqa: ARG001 - as every engine
    policy: EffectivePolicy,
    as_of: datetime,  # noqa: ARG001
) -> None:
    """Create the tables of a draft from its steps, in this process; log each step when it is done."""
    tables = user_tables(policy) | trend_tables(policy) | weight_tables(policy)
    materialize_fact(connection, policy)
    _LOG.info("contributions are computed (1 of %d steps)", len(tables) + 1)
    for number, (name, query) in enumerate(tables.items(), 2):
        connection.execute(statement("create_table", name=name, query=query))
        _LOG.info("%s is computed (%d of %d steps)", name, number, len(tables) + 1)


def is_draft_open(path: Path) -> bool:
    """Return whether a process has a draft of the warehouse at `path` open."""
    return is_locked(_lock(path))


def draft_holder(path: Path) -> str | None:
    """Return the process that has a draft of the warehouse at `path` open, such as process 17; None if none has."""
    return holder_of(_lock(path)) if is_draft_open(path) else None


def _complete(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the files of the feed, for readers of the warehouse."""
    return with_feed(Lake(snapshot.root), snapshot) if snapshot.root else snapshot


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextmanager
def open_draft(path: Path, settings: ReputationSettings = _DEFAULTS) -> "Generator[Draft]":
    """Yield the draft of the warehouse at `path`, under an exclusive lock; discard what was not published on leaving.

    settings: its `max_memory_share` limits the draft.
    A publication that was started is completed first. Raises UsageError when another process holds the lock for longer
    than a derivation takes.
    """
    make_private_dir(path.parent)
    with writer_lock(_lock(path)), ThreadPoolExecutor(1, "publication") as copying:
        draft = Draft(path, copying, settings.max_memory_share)
        try:
            draft.discard()
            yield draft
        finally:
            draft.discard()


class Draft:
    """The next warehouse, not yet published. Not for use by several threads at once."""

    def __init__(self, path: Path, copying: Executor, max_memory_share: float) -> None:
        self.path, self._file = path, DraftFile(path, copying, max_memory_share)
        self._histories: Histories | None = None
        self._aliases = NO_ALIASES
        """The merged users of the last refresh."""
        self._deferred = NO_USERS
        self._erased = ROWS.empty_table()
        """The events that were erased since the draft was derived."""
        self._snapshot: Snapshot | None = None
        self._prepared: tuple[duckdb.DuckDBPyConnection, EffectivePolicy] | None = None
        """The connection with the steps of a refresh, and their policy."""
        self._has_lost = False
        """Whether what was discarded may have been served since the last result."""

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection to the draft, for reading. Raises UsageError before the first rebuild or refresh."""
        self.tables.write_changes()
        return self.tables.connection

    @property
    def tables(self) -> DraftTables:
        """The tables of the draft. Raises UsageError before the first rebuild or refresh."""
        return self._file.tables

    def rebuild(
        self, snapshot: Snapshot, policy: Policy, as_of: datetime, engine: Engine = derive_in_duckdb
    ) -> DerivationResult:
        """Compute everything from a snapshot. Raises UsageError for an as_of without a time zone, and like `engine`."""
        return self._rebuild(snapshot, policy, as_of, "requested", engine=engine)

    def refresh(self, snapshot: Snapshot, policy: Policy, as_of: datetime) -> DerivationResult:
        """Update the draft, or a copy of the published warehouse: the result has the rows of a rebuild.

        Rebuilds where a refresh is impossible (`DerivationResult.rebuild_reason` says why) or would cost more
        (`incremental-equals-rebuild`). Raises UsageError for an as_of without a time zone.
        """
        return self._refresh(snapshot, policy, as_of, max_events=None)

    def refresh_light_users(self, snapshot: Snapshot, policy: Policy, as_of: datetime) -> DerivationResult:
        """Refresh all but the users with more than HEAVY_USER_EVENTS events, whose rows stay as they were.

        Those are deferred until the next `refresh`, which is required before the draft is published.
        """
        return self._refresh(snapshot, policy, as_of, max_events=HEAVY_USER_EVENTS)

    def deferred_users(self) -> int:
        """Return how many users are deferred, counted by their hashes."""
        return len(self._deferred)

    def as_of(self) -> datetime | None:
        """Return the as_of of the draft, or else of the published warehouse; None if there is none."""
        if self._file.is_begun():
            return self.tables.info.as_of
        try:
            with Warehouse(self.path) as warehouse:
                return warehouse.info.as_of
        except (UsageError, NewerFormatError):
            return None

    def _refresh(
        self, snapshot: Snapshot, policy: Policy, as_of: datetime, *, max_events: int | None
    ) -> DerivationResult:
        in_force = policy.at(as_of)
        if self._file.has_failed():
            self.discard()
        with self._discarded_on_error():  # after a fatal error, DuckDB refuses everything
            reason = self._rebuild_reason(snapshot, in_force, as_of)
        if reason is not None:
            return self._rebuild(snapshot, policy, as_of, reason)
        started = time.monotonic()
        with self._discarded_on_error():
            tables, connection = self.tables, self.tables.connection
            before, users = tables.info, tables.counts.users
            self._define_steps_over_affected(policy, as_of)
            links = define_completions(connection, in_force)
            self._open_histories().sync(connection, snapshot, links, keys_read(in_force))
            merges = merges_of(snapshot)
            self._aliases = aliases(merges)
            aliases_before = aliases(applied_merges(before.merges, merges))
            moved = moved_events(connection, snapshot, in_force, aliases_before, self._aliases)
            removed = resolve_rows(connection, pa.concat_tables([self._erased, moved]), aliases_before)
            moved = resolve_rows(connection, moved, self._aliases)
            histories = self._resolved_histories(connection)
            since = (before.lake_version, epoch_us(before.as_of))
            changed = changed_events(histories, in_force, since, epoch_us(as_of), removed, moved)
            has_weights = in_force.rules.raters is not None
            if has_weights and before.merges != merges_mark(merges):
                return self._rebuild(snapshot, policy, as_of, _RATERS_MERGED)
            if has_weights and (day := first_outdated_day(connection, in_force, changed, removed)):
                return self._rebuild(snapshot, policy, as_of, _WEIGHTS_CHANGED, earlier_weights(connection, day))
            affected = find_affected_users(connection, histories, in_force, since, epoch_us(as_of), changed)
            if days := due_days(in_force, since[1], epoch_us(as_of)):
                affected = union(affected, users_due(self.connection, days))
            if len(affected) > max(_ALWAYS_REFRESHED, _REBUILD_THRESHOLD * users):
                reason = f"{len(affected):,} of {amount(users, 'user')} affected"
                return self._rebuild(snapshot, policy, as_of, reason, self._weights(in_force))
            affected = self._defer(histories, affected, max_events)
            if in_force.rules.has_global_prior:
                affected = self._with_other_priors(histories, in_force, affected, removed, as_of, max_events)
                if len(affected) > max(_ALWAYS_REFRESHED, _REBUILD_THRESHOLD * users):
                    return self._rebuild(snapshot, policy, as_of, _PRIORS_CHANGED, self._weights(in_force))
            set_threads_for(connection, len(affected))
            loaded = load_affected_events(connection, histories, in_force, affected, removed)
            materialize_fact(connection, in_force, ONLY_AFFECTED)
            replaced = replace_rows(connection, tables.rows, loaded, user_tables(in_force, ONLY_AFFECTED))
            tables.replace(replaced, self._describe(connection, snapshot, policy, as_of))
            tables.recent_events = partial(recent_in_histories, connection, histories, in_force, epoch_us(as_of))
        has_decayed = in_force.decayed_to != before.decayed_to
        return self._result(started, None, len(affected), replaced.scores, has_decayed=has_decayed)

    def publish(self) -> None:
        """Replace the published warehouse by a copy of the draft, durably; the draft can be refreshed further.

        Folds many changes into a new base first. Raises UsageError while users are deferred.
        """
        self._require_all_users()
        self._file.finish_publication()
        with self._discarded_on_error():
            self._file.fold_many_changes()
        self.start_publication().result()

    def start_publication(self) -> "Future[None]":
        """Publish the draft as it is now, in a thread: refreshes may continue meanwhile.

        After an erasure it has a new base, in which the erased users never were. Many changes are folded into a new
        base in another thread; the publication after that has it. The next publication, and a rebuild, wait for this
        one. The result raises its error, after which the published warehouse is the previous one; if the draft's file
        could not be written, the next refresh starts from that. Raises UsageError while users are deferred.
        """
        assert self._snapshot is not None  # noqa: S101 - tells the type checker
        self._require_all_users()
        self._file.finish_publication()
        snapshot = _complete(self._snapshot)  # now: the feed of later refreshes is not that of the rows
        with self._discarded_on_error():
            return self._file.start_publication(snapshot)

    def discard(self) -> None:
        """Remove the draft, and what a crash left; the next refresh starts from the published warehouse."""
        self._has_lost |= self._file.is_begun()
        self._file.discard()
        if self._histories is not None:
            self._histories.close()
        self._histories, self._deferred, self._prepared = None, NO_USERS, None

    def _require_all_users(self) -> None:
        if users := self.deferred_users():
            raise UsageError(f"{users} users of {self.path} are deferred: refresh the draft before it is published")

    def _weights(self, in_force: EffectivePolicy) -> EarlierWeights | None:
        """Return the weights of the draft, none of which is outdated; None where raters have none."""
        return None if in_force.rules.raters is None else earlier_weights(self.connection)

    def _rebuild(
        self,
        snapshot: Snapshot,
        policy: Policy,
        as_of: datetime,
        reason: str,
        weights: EarlierWeights | None = None,
        engine: Engine = derive_in_duckdb,
    ) -> DerivationResult:
        started = time.monotonic()
        _LOG.info("full rebuild: %s", reason)
        self.discard()
        delete_if_outdated(histories_folder(self.path), snapshot)  # they may contain users who have been erased
        with self._discarded_on_error():
            base, connection = self._file.open_new_base()
            read_commits(connection, snapshot)
            compare_checksums(snapshot.files.get("events", ()))
            create_lake_views(connection, snapshot)
            known = aliases_in(connection)
            weigh = partial(compute_weights, earlier=weights)
            engine(connection, snapshot, define_steps(connection, policy, as_of, known=known, weigh=weigh), as_of)
            write_info(connection, self._describe(connection, snapshot, policy, as_of))
            counts = count_all(connection)
            connection.close()  # writes the file
            make_durable([base])
            self._file.continue_from(base, counts)
            self.tables.recent_events = partial(self._recent_in_lake, snapshot, policy.at(as_of), epoch_us(as_of))
        result = self._result(started, reason, 0, None, has_decayed=False)
        return replace(result, affected_users=result.users)

    def _rebuild_reason(self, snapshot: Snapshot, policy: EffectivePolicy, as_of: datetime) -> str | None:
        """Return why neither the draft nor the published warehouse can be refreshed; None if one can.

        The commits, and the events erased since, are loaded then.
        """
        if not self._file.is_begun() and (reason := self._file.continue_published()) is not None:
            return reason
        info, connection = self.tables.info, self.tables.connection
        read_commits(connection, snapshot)
        if info.recipe != recipe(policy, snapshot.lake_id):
            return "the policy, its decay epoch, the SQL or the lake changed"
        if info.lake_version > snapshot.version or info.last_batch != last_batch(connection, info.lake_version):
            return "the lake does not continue the warehouse's history"
        if as_of < info.as_of:
            return f"as_of is before the warehouse's, {info.as_of.isoformat()}"
        try:
            applied_merges(info.merges, merges_of(snapshot))
        except LookupError as error:
            return str(error)
        return self._load_erased(snapshot, info)

    def _load_erased(self, snapshot: Snapshot, info: Info) -> str | None:
        """Load the events that were erased since the draft was derived; return why they cannot be."""
        connection = self.tables.connection
        try:
            self._erased = erased_events(connection, snapshot, info.lake_version, info.erasures)
        except (LookupError, FileNotFoundError):
            return "the events that an erasure removed are no longer on record"
        self._file.has_erased |= len(self._erased) > 0
        return None

    def _recent_in_lake(
        self, snapshot: Snapshot, policy: EffectivePolicy, as_of_us: int, since: pl.DataFrame
    ) -> pl.DataFrame:
        """Return what happened to users like `recent_in_lake`: a rebuild does not follow the lake with histories."""
        connection = self.tables.connection
        read_commits(connection, snapshot)
        events = f"({stored_rows(connection, 'events', snapshot)})"
        known = aliases(merges_of(snapshot))
        return recent_in_lake(connection, (events, "committed"), known, policy, as_of_us, since)

    def _open_histories(self) -> Histories:
        self._histories = self._histories or Histories(histories_folder(self.path))
        return self._histories

    def _resolved_histories(self, connection: duckdb.DuckDBPyConnection) -> ResolvedHistories:
        return ResolvedHistories(connection, self._open_histories(), self._aliases)

    def _define_steps_over_affected(self, policy: Policy, as_of: datetime) -> None:
        """Define the steps over `affected_event`, once per policy; then move them to as_of."""
        connection, in_force = self.tables.connection, policy.at(as_of)
        if self._prepared != (connection, in_force):
            create_affected_event(connection)
            define_steps(
                connection, policy, as_of, source="affected_event", weigh=use_stored_weights, learn=use_stored_priors
            )
            self._prepared = connection, in_force
        set_as_of(connection, as_of)

    def _defer(self, histories: ResolvedHistories, users: np.ndarray, max_events: int | None) -> np.ndarray:
        """Defer users with more than `max_events` events, or (None) include those deferred; return those to refresh.

        A deferred user stays deferred until a call with None, whether affected again or not.
        """
        if max_events is None:
            users, self._deferred = union(users, self._deferred), NO_USERS
            return users
        self._deferred = union(self._deferred, users[histories.count_of(users) > max_events])
        return difference(users, self._deferred)

    def _with_other_priors(
        self,
        histories: ResolvedHistories,
        policy: EffectivePolicy,
        affected: np.ndarray,
        removed: pa.Table,
        as_of: datetime,
        max_events: int | None,
    ) -> np.ndarray:
        """Update the priors by the events of affected users; return these, and users whose ratings have other ones."""
        connection = self.tables.connection
        loaded = load_affected_events(connection, histories, policy, affected, removed)
        self.tables.settle()  # the priors are in the file
        first = update_priors(connection, self.tables.rows, loaded)
        if first is None:
            return affected
        later = datetime(first.year, first.month, first.day, tzinfo=UTC) + timedelta(days=1)
        rated = histories.users_between([(epoch_us(later), epoch_us(as_of))])
        return self._defer(histories, union(affected, rated), max_events)

    @contextmanager
    def _discarded_on_error(self) -> Generator[None]:
        with self._file.explained():
            try:
                yield
            except BaseException:
                self.discard()
                raise

    def _describe(
        self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: Policy, as_of: datetime
    ) -> Info:
        """Return what the draft reflects."""
        self._snapshot, in_force = snapshot, policy.at(as_of)
        return Info(
            lake_version=snapshot.version,
            as_of=as_of.astimezone(UTC),
            policy=policy,
            policy_version=policy.version,
            derived_at=datetime.now(UTC),
            karmalake_version=release(),
            recipe=recipe(in_force, snapshot.lake_id),
            last_batch=last_batch(connection, snapshot.version),
            decayed_to=in_force.decayed_to,
            erasures=snapshot.erasures,
            merges=merges_mark(merges_of(snapshot)),
        )

    def _result(
        self, started: float, reason: str | None, affected: int, changed: pl.Series | None, *, has_decayed: bool
    ) -> DerivationResult:
        info, counts = self.tables.info, self.tables.counts
        seconds = time.monotonic() - started
        changed, self._has_lost = None if self._has_lost else changed, False
        moment = info.lake_version, info.as_of
        return DerivationResult(self.path, *moment, *counts, seconds, reason, affected, changed, has_decayed)
