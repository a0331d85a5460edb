"""Histories: the lake's events ordered by user, which a refresh reads instead of the whole lake.

A cache, opened only by the holder of the warehouse's lock: segments (`segment.py`), merged geometrically, and a
manifest that lists those on disk, with the checksums of their files. The newest rows are in memory only, up to
`_MEMORY_ROWS`; after a crash, they are read from the lake again. It is rebuilt from the lake when it is missing,
damaged, or of another lake. Every look-up
is a binary search in each segment, so the cost of a refresh depends on what changed, not on users or history.

Of the metadata only what the policy reads is held: the rest of an event may be most of it. A policy that reads another
key causes a rebuild.

For policies with a completion rule, events are also found by what they name: the value at a key of such a rule, or the
event that they retract or correct. The SQL is `sql/histories.sql`.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice, takewhile
from pathlib import Path
from shutil import rmtree

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.boundary.private_files import make_inner_dir
from pipelines.errors import one_line
from pipelines.formats import HISTORIES
from pipelines.lake.erased_events import removal_since
from pipelines.lake.files import compare_checksums
from pipelines.lake.kept_files import ChangedFileError
from pipelines.lake.manifest import manifest_text, read_manifest
from pipelines.lake.merges import Merges
from pipelines.lake.tables import Snapshot
from pipelines.reputation.chunks import CHUNK_ROWS
from pipelines.reputation.database_file import replace_durably
from pipelines.reputation.event_metadata import only_keys
from pipelines.reputation.lake_views import stored_rows
from pipelines.reputation.segment import (
    BEFORE_ALL,
    FACTS,
    NO_LINKS,
    ROWS,
    Commit,
    Segment,
    make_segment_durable,
    merge,
    new_segment,
    open_segment,
    remove_segment,
    require_unchanged_segment,
    store_segment,
    without_rows,
)
from pipelines.reputation.sorted_words import distinct, union
from pipelines.reputation.sql import arrow_rows, one_row, statement

_LOG = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_MEMORY_ROWS = 100_000
"""A segment of more rows is stored in files."""
_RECENT_VERSIONS = 10_000
"""Among so many versions there nearly always is a batch; the others are compactions."""
_FOREGROUND_MERGE_ROWS = 100_000
"""A merge of this many rows takes about a tenth of a second; the thread does larger ones."""
NO_USERS = np.empty(0, np.uint64)
IsWanted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Returns which events are wanted, by the hashes of their users, their times (microseconds since 1970) and versions."""


@dataclass(slots=True)
class _State:
    """What the segments hold."""

    lake_id: str
    erasures: int
    """How many erasures and withdrawals were applied to the events."""
    links: str
    """The rules that the links are for."""
    keys: frozenset[str]
    """The keys of the metadata that events have here."""
    through: Commit = BEFORE_ALL
    """The newest commit whose events they hold."""
    files: dict[str, int] = field(default_factory=dict[str, int])
    """The version at which each file of the lake was read."""


class Histories:
    """The histories in one folder. Not thread-safe.

    Arrays of users and of links are sorted hashes without repetitions: uint64, shape (users,) or (links,).
    """

    def __init__(self, folder: Path) -> None:
        make_inner_dir(folder)
        self._folder, self._numbers = folder, count(1)
        self._state, self._saved = _State("", 0, "", frozenset()), list[str]()
        self._merges = Merges(self._merge, self._merge_durably, _FOREGROUND_MERGE_ROWS)
        self._load()

    @property
    def segments(self) -> list[Segment]:
        """The segments, in the order of the versions of their rows."""
        return self._merges.pieces

    def sync(
        self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, links: str, keys: AbstractSet[str]
    ) -> None:
        """Follow the lake to a snapshot, whose commits `read_commits` has read: hold exactly its events.

        links: what the links depend on; other links cause a rebuild. None are stored if it is empty.
        keys: the keys of the metadata that are needed; one that events do not have here causes a rebuild.
        """
        if not self._follows(connection, snapshot, links, keys):
            self._reset(_State(snapshot.lake_id, snapshot.erasures, links, frozenset(keys)))
        if self._state.through.version < snapshot.version:
            self._append(connection, snapshot)
        self._save()

    def changed_users(self, after: int, ranges: Iterable[tuple[int, int]], until_us: int) -> np.ndarray:
        """Return the users of events that were added after a version, or whose time is in one of `ranges`.

        ranges: [start, end) in microseconds since 1970.
        until_us: later events are left out.
        Returns sorted hashes: uint64, shape (users,).
        """
        found = [segment.users[segment.rows_after(after, until_us)] for segment in self.segments]
        return distinct(np.concatenate([NO_USERS, self.users_between(ranges), *found]))

    def users_between(self, ranges: Iterable[tuple[int, int]]) -> np.ndarray:
        """Return the users of events whose time is in one of the ranges, like `changed_users`."""
        found = [segment.users_between(start, end) for start, end in ranges for segment in self.segments]
        return distinct(np.concatenate([NO_USERS, *found]))

    def count_of(self, users: np.ndarray) -> np.ndarray:
        """Return how many events each of these users (sorted hashes) has: int64, shape (users,)."""
        return sum((segment.count_of(users) for segment in self.segments), np.zeros(len(users), np.int64))

    def events_of(self, users: np.ndarray) -> pa.Table:
        """Return the events (ROWS) of users (sorted hashes)."""
        return self._take(lambda segment: segment.rows_of(users))

    def events_after(self, after: int, since_us: int, until_us: int) -> pa.Table:
        """Return the events before `until_us` that were added after a version, or with since_us <= t."""

        def rows(segment: Segment) -> np.ndarray:
            in_range = segment.rows_of(distinct(segment.users_between(since_us, until_us)))
            times = segment.take(in_range, ["t"])["t"].to_numpy()
            in_range = in_range[(times >= since_us) & (times < until_us)]
            return union(segment.rows_after(after, until_us), in_range)

        return self._take(rows)

    def facts_where(self, users: np.ndarray, is_wanted: IsWanted) -> pa.Table:
        """Return the events of users (sorted hashes) that are wanted, without their metadata: the columns FACTS."""

        def rows(segment: Segment) -> np.ndarray:
            of_users = segment.rows_of(users)
            facts = segment.take(of_users, ["t", "version"])
            wanted = is_wanted(segment.users[of_users], facts["t"].to_numpy(), facts["version"].to_numpy())
            return of_users[wanted]

        return self._take(rows, FACTS)

    def users_linked(self, links: np.ndarray) -> np.ndarray:
        """Return the users of the events with one of these links (sorted hashes), like `changed_users`."""
        found = [segment.users[segment.rows_linked(links)] for segment in self.segments]
        return distinct(np.concatenate([NO_USERS, *found]))

    def events_linked(self, links: np.ndarray) -> pa.Table:
        """Return the events with one of these links (sorted hashes)."""
        return self._take(lambda segment: segment.rows_linked(links))

    def events_with_ids(self, users: np.ndarray, event_ids: pa.Array) -> pa.Table:
        """Return the events of users (sorted hashes) with one of these event_ids."""

        def rows(segment: Segment) -> np.ndarray:
            of_users = segment.rows_of(users)
            ids = segment.take(of_users, ["event_id"])["event_id"]
            return of_users[pc.is_in(ids, event_ids).to_numpy()]

        return self._take(rows)

    def remove(self, event_ids: pa.Array, users: np.ndarray) -> None:
        """Remove events by their ids and their users (sorted hashes); the files with their bytes are deleted."""

        def without(segment: Segment) -> Segment | None:
            rows = segment.rows_of(users)
            removed = rows[pc.is_in(segment.take(rows, ["event_id"])["event_id"], event_ids).to_numpy()]
            path = None if segment.path is None else self._new_path()
            return without_rows(path, segment, removed) if len(removed) else segment

        self._merges.finish()
        self._merges.replace_each(without)
        self._save()

    def close(self) -> None:
        """Store what is in memory only, and end the thread.

        A failure is logged: the next process reads from the lake what was not stored.
        """
        try:
            self._merges.finish()
            self._store_memory()
            self._save()
        except (OSError, ChangedFileError) as error:
            _LOG.warning("the histories in %s were not saved: %s", self._folder, error)
        finally:
            self._merges.close()

    def _take(self, rows_of: Callable[[Segment], np.ndarray], columns: Sequence[str] = ROWS.names) -> pa.Table:
        taken = (segment.take(rows_of(segment), columns) for segment in self.segments)
        return pa.concat_tables([ROWS.empty_table().select(columns), *taken])

    def _follows(
        self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, links: str, keys: AbstractSet[str]
    ) -> bool:
        """Drop the events that were erased since, and merge what is due; return False if a rebuild is needed.

        It is if these are not histories of the lake, or a segment that this would write again has changed on disk.
        """
        try:
            if not (self._continues(connection, snapshot, links, keys) and self._drop_erased(connection, snapshot)):
                return False
            self._merges.merge_due()
        except ChangedFileError as error:
            _LOG.warning("the histories in %s are rebuilt: %s", self._folder, error)
            return False
        return True

    def _continues(
        self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, links: str, keys: AbstractSet[str]
    ) -> bool:
        state = self._state
        if (state.lake_id, state.links) != (snapshot.lake_id, links) or not keys <= state.keys:
            return False
        if state.through.version > snapshot.version or state.erasures > snapshot.erasures:
            return False
        return state.through.batch_id == last_batch(connection, state.through.version)

    def _drop_erased(self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> bool:
        """Remove the events erased since; return False if they are no longer on record, or some were replaced.

        Replaced events are of commits that the histories have: they are not read again without a rebuild.
        """
        try:
            removal = removal_since(snapshot, self._state.through.version, self._state.erasures)
        except (LookupError, FileNotFoundError):
            return False
        if len(removal.replacements):
            return False
        erased = removal.removed
        self._state.erasures = snapshot.erasures
        if len(erased):
            with arrow_rows(connection, erased):
                users = connection.execute(statement("histories_users")).fetchnumpy()["user_hash"]
            self.remove(erased["event_id"].combine_chunks().cast(pa.large_string()), distinct(users))
        return True

    def _append(self, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
        """Add the events of later commits; a compacted file also holds earlier ones."""
        state, files = self._state, snapshot.files.get("events", ())
        unread = tuple(file for file in files if file not in state.files)
        through = Commit(snapshot.version, last_batch(connection, snapshot.version))
        if unread:
            compare_checksums(unread)
            new = replace(snapshot, files={**snapshot.files, "events": unread})
            source = stored_rows(connection, "events", new)
            query = statement("histories_events", source=source, after=str(state.through.version))
            with closing(_read(connection, query, state.keys)) as rows:
                self._add(connection, rows, through)
        read_now = dict.fromkeys(unread, snapshot.version)
        state.files = {file: state.files[file] for file in files if file in state.files} | read_now
        state.through = through

    def _add(self, connection: duckdb.DuckDBPyConnection, rows: Iterator[pa.RecordBatch], through: Commit) -> None:
        first = list(islice(rows, 1 + _MEMORY_ROWS // CHUNK_ROWS))
        first_rows = sum(chunk.num_rows for chunk in first)
        if first_rows:
            path = self._new_path() if first_rows > _MEMORY_ROWS else None
            links = partial(_links_of, connection) if self._state.links else _no_links
            self.segments.append(new_segment(path, chain(first, rows), links, through))

    def _merge(self, older: Segment, newer: Segment) -> Segment:
        return merge(self._new_path() if len(older) + len(newer) > _MEMORY_ROWS else None, older, newer)

    def _merge_durably(self, older: Segment, newer: Segment) -> Segment:
        return make_segment_durable(self._merge(older, newer))

    def _store_memory(self) -> None:
        """Store the segments that are in memory only."""
        self.segments[:] = [
            segment if segment.path is not None else store_segment(self._new_path(), segment)
            for segment in self.segments
        ]

    def _save(self) -> None:
        """Write the manifest, durably, if it does not list the stored segments yet; remove replaced segments.

        A segment after one in memory is left out: the manifest must list all events through some commit.
        """
        stored = list(takewhile(lambda segment: segment.path is not None, self.segments))
        names = [segment.name for segment in stored]
        if not names:
            (self._folder / _MANIFEST).unlink(missing_ok=True)
        elif names != self._saved:
            durable = [each if each.checksums else make_segment_durable(each) for each in stored]
            self.segments[: len(stored)] = durable
            self._write_manifest(durable)
        self._saved = names
        for segment in self._merges.take_replaced():
            remove_segment(segment)

    def _write_manifest(self, stored: Sequence[Segment]) -> None:
        """List segments, and the lake's files whose events they hold: newer rows are in memory only."""
        version, _ = through = stored[-1].through
        manifest = {
            "format": HISTORIES.number,
            "duckdb_version": duckdb.__version__,
            "lake_id": self._state.lake_id,
            "erasures": self._state.erasures,
            "links": self._state.links,
            "keys": sorted(self._state.keys),
            "through": through,
            "files": {file: read_at for file, read_at in self._state.files.items() if read_at <= version},
            "segments": [segment.entry() for segment in stored],
        }
        next_file = self._folder / f"{_MANIFEST}.next"
        next_file.write_text(manifest_text(manifest), encoding="utf-8")
        replace_durably(next_file, self._folder / _MANIFEST)

    def _load(self) -> None:
        """Open the segments of the manifest; start empty if it cannot be read. Remove all other files."""
        try:
            manifest = read_manifest(self._folder / _MANIFEST)
            if (manifest["format"], manifest["duckdb_version"]) == (HISTORIES.number, duckdb.__version__):
                self._merges.pieces = [open_segment(self._folder, entry) for entry in manifest["segments"]]
                for segment in self.segments:
                    require_unchanged_segment(segment)
                through = Commit(*manifest["through"])
                head = (manifest["lake_id"], manifest["erasures"], manifest["links"])
                self._state = _State(*head, frozenset(manifest["keys"]), through, manifest["files"])
        except FileNotFoundError:
            self._forget()
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("the histories in %s are rebuilt: %s", self._folder, one_line(error))
            self._forget()
        self._saved = [segment.name for segment in self.segments]
        self._numbers = count(1 + max(map(int, self._saved), default=0))
        named = {self._folder / _MANIFEST} | {file for segment in self.segments for file in segment.files()}
        for file in set(self._folder.iterdir()) - named:
            file.unlink()

    def _reset(self, state: _State) -> None:
        """Start empty, for the lake and the policy of a state."""
        self._forget()
        self._state = state

    def _forget(self) -> None:
        with suppress(ChangedFileError):
            self._merges.finish()
        (self._folder / _MANIFEST).unlink(missing_ok=True)
        for segment in [*self._merges.take_replaced(), *self.segments]:
            remove_segment(segment)
        self._merges.pieces, self._saved = [], []

    def _new_path(self) -> Path:
        return self._folder / f"{next(self._numbers):08}"


def histories_folder(warehouse: Path) -> Path:
    """Return the folder that belongs to a warehouse."""
    return warehouse.with_name("histories")


def delete_if_outdated(folder: Path, snapshot: Snapshot) -> None:
    """Delete the folder if it is of another lake, or of other erasures: it may contain erased users."""
    try:
        manifest = read_manifest(folder / _MANIFEST)
        found = manifest["lake_id"], manifest["erasures"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != (snapshot.lake_id, snapshot.erasures):
        delete_histories(folder)


def delete_histories(folder: Path) -> None:
    """Delete the folder; the next refresh rebuilds it."""
    rmtree(folder, ignore_errors=True)


def read_commits(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Hold the version of each batch of a snapshot in the temporary table `committed`.

    Reads only the files that an earlier call on this connection has not read, or all files if some were replaced.
    """
    for table in ("committed", "committed_file"):
        connection.execute(statement(f"histories_{table}"))
    files = set(snapshot.files.get("commits", ()))
    read = {file for (file,) in connection.execute(statement("histories_read_files")).fetchall()}
    if not read <= files:
        connection.execute(statement("histories_forget_commits"))
        connection.execute(statement("histories_forget_files"))
        read = set[str]()
    if unread := sorted(files - read):
        compare_checksums(unread)
        new = replace(snapshot, files={"commits": tuple(unread)})
        connection.execute(statement("histories_add_commits", source=stored_rows(connection, "commits", new)))
        connection.execute(statement("histories_add_files"), [unread])


def last_batch(connection: duckdb.DuckDBPyConnection, version: int) -> str | None:
    """Return the batch_id of the newest commit up to a version, among those that `read_commits` has read.

    Looks at recent versions first: DuckDB knows which parts of a table have them, and skips the others.
    """
    for oldest in (version - _RECENT_VERSIONS, 0):
        (batch,) = one_row(connection.execute(statement("histories_last_batch"), [oldest, version]))
        if batch is not None:
            return batch
    return None


def _read(connection: duckdb.DuckDBPyConnection, query: str, keys: AbstractSet[str]) -> Generator[pa.RecordBatch]:
    """Yield the rows of a query with the columns ROWS, and the metadata at some keys.

    Until it ends or is closed, a `checkpoint` waits for it.
    """
    with connection.sql(query).to_arrow_reader(CHUNK_ROWS) as chunks:
        for chunk in chunks:
            yield from only_keys(pa.Table.from_batches([chunk.cast(ROWS)]), keys).to_batches()


def _links_of(connection: duckdb.DuckDBPyConnection, chunk: pa.RecordBatch) -> np.ndarray:
    numbers = pa.array(np.arange(len(chunk), dtype=np.uint64))
    with arrow_rows(connection, pa.Table.from_batches([chunk]).append_column("row", numbers)):
        found = connection.execute(statement("histories_links")).fetchnumpy()
    return np.stack([found["link"], found["row"]])


def _no_links(_chunk: pa.RecordBatch) -> np.ndarray:
    return NO_LINKS
