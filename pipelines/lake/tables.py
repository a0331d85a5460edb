"""The Delta tables: their schemas, and how they are created and opened.

Owns table names and columns. `commit.py` owns what is written, when and in which order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from os import PathLike
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from pipelines.contract.schema import EVENT, POSITION, REJECTED, TIMESTAMP
from pipelines.errors import CorruptionError, UsageError
from pipelines.lake.files import DAY_COLUMN, conform, make_durable, read_file, remove_files
from pipelines.lake.lake_format import configuration, is_current, replaced_files, require_known_format, upgrade
from pipelines.lake.log_files import last_checkpoint, list_log, read_checkpoint, read_entry
from pipelines.lake.stores import (
    absolute,
    any_exists,
    ensure_parent_folder,
    read_text,
    require_object_store,
    translate_store_errors,
)
from pipelines.lake.torn_writes import (
    quarantine_changed_checkpoint,
    quarantine_torn_checkpoint,
    quarantine_torn_entry,
    require_intact_entries,
)
from pipelines.lake.transactions import transactions

EVENTS = pa.schema([*EVENT, *POSITION, ("batch_id", pa.string()), (DAY_COLUMN, pa.date32())])
DEAD_LETTERS = pa.schema([*REJECTED, ("batch_id", pa.string())])
CONFLICTS = pa.schema([*EVENT, *POSITION, ("batch_id", pa.string())])
_COUNTS_1 = ("read", "accepted", "duplicates", "conflicts", "dead_letters", "erased", "gaps", "lost")
_COUNTS_2 = ("converted", "filtered", "made")
"""Since format 2: null in commits of format 1, where every record that is not a dead letter became one event."""
COUNTS = (*_COUNTS_1, *_COUNTS_2)
RANGE = pa.struct(
    [
        ("topic_id", pa.string()),
        ("topic", pa.string()),
        ("topic_partition", pa.int32()),
        ("start_offset", pa.int64()),
        ("next_offset", pa.int64()),
        *((count, pa.int64()) for count in _COUNTS_1),
        *((count, pa.int64()) for count in _COUNTS_2),
        ("source", pa.string()),
        ("source_digest", pa.string()),
    ]
)
WITHDRAWN = pa.struct([("batch_id", pa.string()), ("topic_id", pa.string()), ("events", pa.int64())])
"""The events of one topic that a withdrawal removed of an earlier batch."""
COMMITS = pa.schema(
    [
        ("batch_id", pa.string()),
        ("version", pa.int64()),
        ("source", pa.string()),
        ("started", TIMESTAMP),
        ("committed", TIMESTAMP),
        *((count, pa.int64()) for count in _COUNTS_1),
        ("mis_keyed", pa.int64()),
        ("first_event_time", TIMESTAMP),
        ("last_event_time", TIMESTAMP),
        ("days", pa.list_(pa.date32())),
        ("ranges", pa.list_(RANGE)),
        ("note", pa.string()),
        *((count, pa.int64()) for count in _COUNTS_2),
        ("withdrawn", pa.list_(WITHDRAWN)),
    ]
)
"""One row for each commit of `events`. A range adds up as `OffsetRange` says (`nothing-lost`)."""
POLICIES = pa.schema(
    [
        ("name", pa.string()),
        ("version", pa.string()),
        ("policy", pa.string()),
        ("activated", TIMESTAMP),
        ("operator", pa.string()),
        ("why", pa.string()),
        ("role", pa.string()),
    ]
)
"""One row for each activation of a policy, and each beginning and end of a canary. Append-only."""
MERGED_USERS = pa.schema(
    [
        ("merge_id", pa.string()),
        ("user_id", pa.string()),
        ("merged_into", pa.string()),
        ("kind", pa.string()),
        ("merged_at", TIMESTAMP),
        ("operator", pa.string()),
        ("why", pa.string()),
        ("personal_keys", pa.list_(pa.string())),
    ]
)
"""One row for each account that was merged into another, or renamed (`kind`: merge or rename). personal_keys are the
metadata keys that held user_ids then. Only an erasure removes rows."""
FATES = pa.schema(
    [
        ("topic_id", pa.string()),
        ("topic_partition", pa.int32()),
        ("offset", pa.int64()),
        ("batch_id", pa.string()),
        ("fate", pa.string()),
        ("note", pa.string()),
        ("decided", TIMESTAMP),
        ("requeue_id", pa.string()),
    ]
)
"""One row for each decision about a dead letter: requeued or discarded. batch_id, topic_id, topic_partition and offset
identify the dead letter. requeue_id is the topic id of a requeue: the row counts once a commit has a range of it.
Append-only."""
ERASURES = pa.schema([("user_digest", pa.string()), ("asked", TIMESTAMP)])
"""One row for each user to be erased: a tombstone (`tombstones.py`), which does not contain the user_id. Its key is
left out if it is the lake's own id. Rows are never removed."""
ERASED = pa.schema(
    [
        ("table_name", pa.string()),
        ("topic_id", pa.string()),
        ("topic_partition", pa.int32()),
        ("offset", pa.int64()),
        ("batch_id", pa.string()),
        ("event_digest", pa.string()),
    ]
)
"""The place of each row that an erasure removed, so that counts still reconcile. A row of this table counts once the
row that it names is gone. event_digest, of batch_id and event_id, tells the events of one record apart; it is null for
dead letters, and in rows of format 1."""
CAUSE = pa.struct([("cause", pa.string()), ("event_id", pa.string())])
"""What is behind a change: event_id is null where no event is."""
SCORE_CHANGES = pa.schema(
    [
        ("number", pa.int64()),
        ("user_id", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        ("policy", pa.string()),
        ("lake_version", pa.int64()),
        ("as_of", TIMESTAMP),
        ("recorded", TIMESTAMP),
        ("causes", pa.list_(CAUSE)),
        ("more_causes", pa.int64()),
    ]
)
"""One row for each change of a user's row of `reputation` between two publications, as JSON before and after
(`feed.enabled`). Only an erasure removes rows."""
TABLES: Mapping[str, pa.Schema] = {
    "events": EVENTS,
    "dead_letters": DEAD_LETTERS,
    "conflicts": CONFLICTS,
    "commits": COMMITS,
    "fates": FATES,
    "policies": POLICIES,
    "merged_users": MERGED_USERS,
    "score_changes": SCORE_CHANGES,
    "erasures": ERASURES,
    "erased": ERASED,
}
_UPGRADE_ORDER = (*(name for name in TABLES if name != "events"), "events")
"""`events` last: its format tells whether the lake is upgraded."""
ERASURES_DONE = "erasures"
"""The application transaction of `events` that holds how many rows of `erasures` have been applied to it."""
WITHDRAWALS_DONE = "withdrawals"
"""The application transaction of `events` that holds how many withdrawals have been applied to it."""
COMMIT_METADATA = "karmalake"
"""The member of `commitInfo` in the log of `events` that holds the record of a commit, as JSON."""
_KEEP_TOMBSTONES = "copy tombstones.txt, if it exists, from the old data_dir (it keeps erased users out),"
# Statistics of user columns would keep a user_id in the log after an erasure. `delta_commit.py` writes checkpoints of
# the log; the interval here is for other engines. The retention bounds how far back `Lake.read_log` reaches.
_CONFIGURATION = {
    "delta.dataSkippingNumIndexedCols": "0",
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 30 days",
} | replaced_files(hours=24)  # the default of lake.vacuum_retention_hours; a vacuum corrects it


def data_files(table: DeltaTable) -> tuple[str, ...]:
    """Return the absolute paths (or URIs) of the files of a handle's version, without the library's URL escapes."""
    return tuple(map(unquote, table.file_uris()))


def read_rows(name: str, location: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file of one of TABLES, or some of its columns, without `event_day`.

    Columns and nested fields that an older release did not write are null. Raises like `read_file`.
    """
    wanted = [field for field in TABLES[name] if field.name in (columns or TABLES[name].names)]
    rows = read_file(location, list(columns) if columns else None)
    if DAY_COLUMN in rows.schema.names:
        rows = rows.drop_columns(DAY_COLUMN)
    return conform(rows, pa.schema(field for field in wanted if field.name != DAY_COLUMN))


def discard_uncommitted(lake: "Lake", name: str, files: Iterable[AddAction]) -> None:
    """Remove files that were written for a failed commit, unless the newest version names them after all.

    A commit that succeeded but whose response was lost looks like one that failed.
    """
    files = list(files)
    if files:
        named = set(data_files(lake.table(name)))
        remove_files(lake.folder(name), [file for file in files if f"{lake.folder(name)}/{file.path}" not in named])


def erasures_done(events: DeltaTable) -> int:
    """Return how many erasures have been applied to `events` at the handle's version."""
    return transactions(events).get(ERASURES_DONE, 0)


def withdrawals_done(events: DeltaTable) -> int:
    """Return how many withdrawals have been applied to `events` at the handle's version."""
    return transactions(events).get(WITHDRAWALS_DONE, 0)


def table_id(events: DeltaTable) -> str:
    """Return the id of the lake, which its copies share."""
    return str(events.metadata().id)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The lake as of one commit of `events`: the input of readers and of every refresh.

    A file stays readable for `vacuum_retention_hours` after it was replaced. Rows of `commits` above `version`, and
    dead letters and conflicts of batches that are not in `commits`, are not part of the snapshot.
    """

    version: int
    files: Mapping[str, tuple[str, ...]]
    """Absolute paths, or URIs, of Parquet files by table name. Not all of them have `event_day`: it is the UTC day of
    `event_time`."""
    transactions: Mapping[str, int]
    """Those of `events`, by app_id (`transactions.py`)."""
    lake_id: str = ""
    """The lake's `table_id`."""
    mixed: frozenset[str] = frozenset()
    """The tables with files that may lack columns of this release."""
    erasures: int = 0
    """How many erasures and withdrawals have been applied. Data derived after fewer has events that were removed."""
    root: str = ""
    """The lake's root, whose log names what these removed."""


@dataclass(frozen=True, slots=True)
class Lake:
    """A lake by its root. It opens tables; each handle is at the newest version."""

    root: str
    """A folder or a URI."""

    def folder(self, name: str) -> str:
        """Return the folder or URI of one of TABLES."""
        return f"{self.root}/{name}"

    def entry_path(self, name: str, version: int) -> str:
        """Return the path or URI of the log entry of a version of one of TABLES."""
        return f"{self.root}/{name}/_delta_log/{version:020}.json"

    def table(self, name: str) -> DeltaTable:
        """Open one of TABLES.

        A last log entry or checkpoint that a power cut tore is quarantined first. Raises CorruptionError when the log
        cannot be read, NewerFormatError when a newer release wrote the table, UsageError when it is not one of ours,
        TransientError when an object store does not answer.
        """
        try:
            with translate_store_errors(self.root):
                table = DeltaTable(self.folder(name))
        except DeltaError as error:
            require_object_store(self.root)
            if quarantine_torn_entry(self.folder(name)) or quarantine_torn_checkpoint(self.folder(name)):
                return self.table(name)
            if _opens(self.folder(name)):  # now: another process has set aside what was torn
                return self.table(name)
            reason = str(error).partition("\n")[0]  # the rest is a stack trace without symbols
            raise CorruptionError(
                f"the Delta table {self.folder(name)} cannot be opened: {reason}; restore it from a copy, or set "
                f"data_dir to a new folder, {_KEEP_TOMBSTONES} and drain the topic from its start"
            ) from error
        if quarantine_torn_entry(self.folder(name), table.version()):
            return self.table(name)
        if quarantine_changed_checkpoint(self.folder(name), last_checkpoint(table)[0]):
            return self.table(name)
        require_intact_entries(self.folder(name), table.version())
        require_known_format(table)
        if TABLES[name].names[0] not in {field.name for field in table.schema().fields}:
            raise UsageError(
                f"{self.folder(name)} is a Delta table, but not of karmalake: set data_dir or lake.uri to another place"
            )
        return table

    def read_log(self, after: int, upto: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield (version, actions) of the commits of `events` with after < version <= upto.

        Raises LookupError when the log no longer has one of these entries, CorruptionError for one that is torn.
        """
        for version in range(after + 1, upto + 1):
            entry = self.entry_path("events", version)
            try:
                yield version, read_entry(entry)
            except FileNotFoundError:
                raise LookupError(f"{entry} does not exist: the log of events starts later") from None

    def entry_digest(self, version: int) -> str | None:
        """Return the digest of the log entry of a version of `events`: it differs in another history of the lake.

        None if the log no longer has that entry. Raises TransientError when an object store does not answer.
        """
        entry = self.entry_path("events", version)
        with suppress(FileNotFoundError), translate_store_errors(entry):
            return blake2b(read_text(entry).encode(), digest_size=16).hexdigest()
        return None


@dataclass(frozen=True, slots=True)
class CachedLake(Lake):
    """A lake that keeps its tables open for repeated reads: a handle is updated, not reopened.

    `table` returns the same handle each time, moved on to the newest version. Not thread-safe.
    """

    handles: dict[str, DeltaTable] = field(default_factory=dict[str, DeltaTable])

    def table(self, name: str) -> DeltaTable:
        """Return the handle of one of TABLES at its newest version; raises what `Lake.table` does."""
        handle = self.handles.pop(name, None)
        try:
            if handle is not None:
                with translate_store_errors(self.root):
                    handle.update_incremental()
        except DeltaError:
            handle = None
        if handle is not None:
            require_known_format(handle)
        self.handles[name] = handle = handle or Lake.table(self, name)
        return handle


def create_lake(root: str | PathLike[str]) -> Lake:
    """Open the lake in the folder or URI `root`; create the tables that do not exist, upgrade those of an older format.

    Idempotent, also when several processes call it at once. The tables are durable when it returns. Raises
    NewerFormatError, with nothing changed, for a lake that a newer release wrote.
    """
    lake = Lake(absolute(root))
    if is_lake(lake.root):
        return _complete_lake(lake)
    with translate_store_errors(lake.root):
        ensure_parent_folder(lake.folder("events"))
    _create_missing(lake, _UPGRADE_ORDER)  # `events` last: where it is, readers find the others
    return lake


def open_lake(root: str | PathLike[str]) -> Lake:
    """Open an existing lake like `create_lake`. Raises UsageError if none exists."""
    lake = Lake(absolute(root))
    if not is_lake(lake.root):
        raise UsageError(f"there is no lake in {root} yet: run `karmalake drain` or `karmalake demo` first")
    return _complete_lake(lake)


def _complete_lake(lake: Lake) -> Lake:
    """Create the tables that an older release did not have, and upgrade the others; never create `events`."""
    events = lake.table("events")
    _create_missing(lake, _UPGRADE_ORDER[:-1])
    if not is_current(events, EVENTS):
        for name in _UPGRADE_ORDER:
            upgrade(partial(lake.table, name), TABLES[name])
    return lake


def _create_missing(lake: Lake, names: Iterable[str]) -> None:
    with translate_store_errors(lake.root):
        missing = [name for name in names if not is_table(lake.folder(name))]
        for name in missing:
            _create_table(lake.folder(name), TABLES[name])
    if missing:
        make_durable([lake.root, *(lake.entry_path(name, 0) for name in missing)])


def _create_table(folder: str, schema: pa.Schema) -> None:
    skipping = {"delta.dataSkippingStatsColumns": DAY_COLUMN} if DAY_COLUMN in schema.names else {}
    try:
        DeltaTable.create(
            folder,
            schema,
            mode="ignore",
            configuration=_CONFIGURATION | skipping | configuration(),
            raise_if_key_not_exists=False,
        )
    except CommitFailedError:  # another process was creating it at the same time
        if not is_table(folder):
            raise


def stored_id(lake: Lake) -> str | None:
    """Return the `table_id` that a lake had at the last checkpoint of its log, or at its beginning; None if unknown.

    Opening the table would read every file that its log names. Raises TransientError when an object store does not
    answer.
    """
    with suppress(OSError, LookupError, CorruptionError):  # opening it tells what is wrong
        found = read_checkpoint(f"{lake.folder('events')}/_delta_log", ["metaData.id"])
        if found is not None:
            return str(found[1].column("metaData").combine_chunks().drop_null()[0]["id"])
        first = read_entry(lake.entry_path("events", 0))
        return next((str(action["metaData"]["id"]) for action in first if "metaData" in action), None)
    return None


def newest_version(lake: Lake) -> int:
    """Return the newest version of `events` that its log names, without opening the table; -1 without a log."""
    with translate_store_errors(lake.root):
        return max((file.version for file in list_log(f"{lake.folder('events')}/_delta_log")), default=-1)


def is_lake(root: str | PathLike[str]) -> bool:
    """Return whether there is a lake in the folder or URI `root`. Raises like `is_table`."""
    return is_table(Lake(absolute(root)).folder("events"))


def _opens(folder: str) -> bool:
    try:
        with translate_store_errors(folder):
            DeltaTable(folder)
    except DeltaError:
        return False
    return True


def is_table(folder: str) -> bool:
    """Return whether there is a Delta table in a folder or URI. Raises TransientError when a store does not answer.

    `DeltaTable.is_deltatable` would stop every thread of the process until the store answers.
    """
    log = f"{folder}/_delta_log"
    start = [f"{log}/_last_checkpoint", f"{log}/{0:020}.json"]  # one exists, unless the former was lost
    with translate_store_errors(folder):
        return any_exists(start) or _has_files(log)


def _has_files(log: str) -> bool:
    try:
        return bool(list_log(log))
    except FileNotFoundError:
        return False
