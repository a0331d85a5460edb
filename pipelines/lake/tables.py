"""The Delta tables: their schemas, and how they are created and opened.

Owns names and columns. What is written, when and in which order is `commit.py`'s affair.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from pipelines.contract.schema import EVENT, PLACE, REJECTED, TIMESTAMP
from pipelines.errors import CorruptionError, UsageError
from pipelines.lake.files import DAY_COLUMN, make_durable, remove_files
from pipelines.lake.stores import absolute, ensure_folder_of, reached, read_text
from pipelines.lake.torn import require_whole, set_torn_aside, set_torn_checkpoint_aside

EVENTS = pa.schema([*EVENT, *PLACE, ("batch_id", pa.string()), (DAY_COLUMN, pa.date32())])
DEAD_LETTERS = pa.schema([*REJECTED, ("batch_id", pa.string())])
CONFLICTS = pa.schema([*EVENT, *PLACE, ("batch_id", pa.string())])
COUNTS = ("read", "accepted", "duplicates", "conflicts", "dead_letters", "erased", "gaps", "lost")
RANGE = pa.struct(
    [
        ("topic_id", pa.string()),
        ("topic", pa.string()),
        ("topic_partition", pa.int32()),
        ("start_offset", pa.int64()),
        ("next_offset", pa.int64()),
        *((count, pa.int64()) for count in COUNTS),
    ]
)
COMMITS = pa.schema(
    [
        ("batch_id", pa.string()),
        ("version", pa.int64()),
        ("source", pa.string()),
        ("started", TIMESTAMP),
        ("committed", TIMESTAMP),
        *((count, pa.int64()) for count in COUNTS),
        ("mis_keyed", pa.int64()),
        ("first_event_time", TIMESTAMP),
        ("last_event_time", TIMESTAMP),
        ("days", pa.list_(pa.date32())),
        ("ranges", pa.list_(RANGE)),
        ("note", pa.string()),
    ]
)
"""One row a commit of `events`. In a range, next_offset - start_offset = read + gaps + lost, and read = accepted +
duplicates + conflicts + dead_letters + erased (`nothing-lost`); gaps are offsets that hold no record for a reader
(control records, aborted or compacted ones), lost ones were given up on the record, erased ones are of users who were
erased before."""
POLICIES = pa.schema(
    [("name", pa.string()), ("version", pa.string()), ("policy", pa.string()), ("activated", TIMESTAMP)]
)
"""One row each time a policy was put in force: the whole policy as JSON. Appended to, never changed."""
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
"""One row each time something was decided about a dead letter, which batch_id and place name: requeued or discarded.
requeue_id is the topic id of a requeue: the row counts once a commit has a range of it. Appended to, never changed."""
ERASURES = pa.schema([("user_digest", pa.string()), ("asked", TIMESTAMP)])
"""One row for each user who is to be erased, without the name: a tombstone (`tombstones.py`), with its key unless that
is the lake's own id. Never removed."""
ERASED = pa.schema(
    [
        ("table_name", pa.string()),
        ("topic_id", pa.string()),
        ("topic_partition", pa.int32()),
        ("offset", pa.int64()),
        ("batch_id", pa.string()),
    ]
)
"""Where the rows stood that an erasure removed, so that everything still adds up. A row counts once it is true."""
TABLES: Mapping[str, pa.Schema] = {
    "events": EVENTS,
    "dead_letters": DEAD_LETTERS,
    "conflicts": CONFLICTS,
    "commits": COMMITS,
    "fates": FATES,
    "policies": POLICIES,
    "erasures": ERASURES,
    "erased": ERASED,
}
ERASURES_DONE = "erasures"
"""The application transaction of `events` that says how many rows of `erasures` it is free of."""
COMMIT_METADATA = "karmalake"
"""The key under which a commit of `events` carries its record, as JSON, in the log."""
_TAKE_ALONG = "copy tombstones.txt from the old one, if there is one, since it keeps erased users out,"
# Statistics of user columns would keep a user_id in the log after an erasure. Checkpoints of the log every 100
# commits keep reading it cheap; the retention bounds how far back `Lake.log` reaches.
_CONFIGURATION = {
    "delta.dataSkippingNumIndexedCols": "0",
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 30 days",
}


def data_files(table: DeltaTable) -> tuple[str, ...]:
    """Return the absolute paths (or URIs) of the files of a handle's version, which the library escapes."""
    return tuple(map(unquote, table.file_uris()))


def discard_unnamed(lake: "Lake", name: str, files: Iterable[AddAction]) -> None:
    """Remove files that were written for a commit that was not made, unless the newest version names them.

    A commit whose answer was lost looks like one that came too late.
    """
    files = list(files)
    if files:
        named = set(data_files(lake.table(name)))
        remove_files(lake.folder(name), [file for file in files if f"{lake.folder(name)}/{file.path}" not in named])


def checkpoint_id(topic_id: str, topic_partition: int) -> str:
    """Return the app_id of the application transaction that holds a topic partition's next_offset."""
    return f"ingest:{topic_id}:{topic_partition}"


def last_record_ids(topic_id: str, topic_partition: int) -> tuple[str, str, str]:
    """Return the app_ids that hold the last record read before a checkpoint: its offset, digest and leader epoch."""
    place = f"{topic_id}:{topic_partition}"
    return f"last:{place}", f"digest:{place}", f"epoch:{place}"


def erasures_done(events: DeltaTable) -> int:
    """Return how many erasures the version of `events` (a handle) is free of."""
    return int(events.transaction_version(ERASURES_DONE) or 0)


def identity(events: DeltaTable) -> str:
    """Return what caches of the lake are tied to: they are made anew when it is another lake, or after an erasure."""
    done, table_id = erasures_done(events), str(events.metadata().id)
    return f"{table_id}-{done}" if done else table_id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The lake at one version of `events`: what a reader, and every derivation, starts from.

    `files` holds absolute paths, or URIs, of Parquet files by table name. Files do not hold `event_day`: it is
    `event_time` cut to the UTC day. A file stays readable for `vacuum_retention_hours` after it was replaced.
    Rows of `commits` above `version`, and dead letters and conflicts of batches not in `commits`, are not part of it.
    """

    version: int
    files: Mapping[str, tuple[str, ...]]
    checkpoints: Mapping[tuple[str, int], int]
    """next_offset by (topic_id, topic_partition)."""
    lake_id: str = ""
    """Its `identity`."""


@dataclass(frozen=True, slots=True)
class Lake:
    """A lake; opening a table gives a handle on its newest version."""

    root: str
    """Its folder or its URI."""

    def folder(self, name: str) -> str:
        """Return where the files of one of TABLES are."""
        return f"{self.root}/{name}"

    def entry(self, name: str, version: int) -> str:
        """Return where the log of one of TABLES says what a version changed."""
        return f"{self.root}/{name}/_delta_log/{version:020}.json"

    def table(self, name: str) -> DeltaTable:
        """Open one of TABLES.

        The end of its log is mended where a power cut tore it. Raises CorruptionError when the log cannot be read,
        UsageError when it is of a state of karmalake too old.
        """
        try:
            with reached(self.root):
                table = DeltaTable(self.folder(name))
        except DeltaError as error:
            if set_torn_aside(self.folder(name)) or set_torn_checkpoint_aside(self.folder(name)):
                return self.table(name)
            said = str(error).partition("\n")[0]  # what follows is a stack without names
            raise CorruptionError(
                f"the Delta table {self.folder(name)} cannot be opened: {said}; restore it from a copy, or set "
                f"data_dir to a new folder, {_TAKE_ALONG} and drain the topic from its start"
            ) from error
        if set_torn_aside(self.folder(name), table.version()):
            return self.table(name)
        require_whole(self.folder(name), table.version())
        missing = set(TABLES[name].names) - {field.name for field in table.schema().fields}
        if missing:
            raise UsageError(
                f"{self.folder(name)} was made by an earlier state of karmalake, without {', '.join(sorted(missing))}: "
                f"set data_dir to a new folder, {_TAKE_ALONG} and drain the topic from its start"
            )
        return table

    def log(self, after: int, upto: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield (version, actions) of the commits of `events` with after < version <= upto.

        Raises LookupError when the log no longer reaches back that far.
        """
        for version in range(after + 1, upto + 1):
            yield version, [json.loads(line) for line in self._read_entry(version).splitlines()]

    def entry_digest(self, version: int) -> str:
        """Return the digest of what a version of `events` changed: another one where another history led there.

        Raises LookupError when the log no longer has the entry.
        """
        return blake2b(self._read_entry(version).encode(), digest_size=16).hexdigest()

    def _read_entry(self, version: int) -> str:
        entry = self.entry("events", version)
        try:
            return read_text(entry)
        except FileNotFoundError:
            raise LookupError(f"{entry} is gone: the log of events starts later") from None


@dataclass(frozen=True, slots=True)
class KeptOpen(Lake):
    """A lake whose tables stay open for who looks again and again: a table is brought up to date, not opened anew.

    So a handle moves on whenever its table is asked for. Not for use by several threads at once.
    """

    handles: dict[str, DeltaTable] = field(default_factory=dict[str, DeltaTable])

    def table(self, name: str) -> DeltaTable:
        """Return the handle on one of TABLES, on its newest version; opened, with what that may raise, if need be."""
        handle = self.handles.pop(name, None)
        try:
            if handle is not None:
                with reached(self.root):
                    handle.update_incremental()
        except DeltaError:
            handle = None
        self.handles[name] = handle = handle or Lake.table(self, name)
        return handle


def create_lake(root: str | PathLike[str]) -> Lake:
    """Open the lake in the folder or URI `root`, creating the tables that are not there yet.

    Safe to repeat and to run twice. A table that was created outlives a power cut.
    """
    lake = Lake(absolute(root))
    with reached(lake.root):
        ensure_folder_of(lake.folder("events"))
        missing = [name for name in TABLES if not DeltaTable.is_deltatable(lake.folder(name))]
        for name in missing:
            _create_table(lake.folder(name), TABLES[name], [DAY_COLUMN] if name == "events" else None)
    if missing:
        make_durable([lake.root, *(lake.entry(name, 0) for name in missing)])
    return lake


def _create_table(folder: str, schema: pa.Schema, partition_by: list[str] | None) -> None:
    try:
        DeltaTable.create(folder, schema, mode="ignore", partition_by=partition_by, configuration=_CONFIGURATION)
    except CommitFailedError:  # somebody else was creating it at this moment
        if not DeltaTable.is_deltatable(folder):
            raise


def is_lake(root: str | PathLike[str]) -> bool:
    """Return whether there is a lake in `root`."""
    lake = Lake(absolute(root))
    with reached(lake.root):
        return DeltaTable.is_deltatable(lake.folder("events"))


def open_lake(root: str | PathLike[str]) -> Lake:
    """Open an existing lake; one of an earlier release gets the tables that are new. UsageError when there is none."""
    if not is_lake(root):
        raise UsageError(f"there is no lake in {root} yet: run `karmalake drain` or `karmalake demo` first")
    return create_lake(root)
