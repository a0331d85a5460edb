"""The dedup index: every event_id that the lake holds, of any age, exactly (`once`).

It is a cache of the lake: digests in sorted runs (`runs.py`), and a manifest that holds the version of `events` that
they reflect and the digest of that version's log entry, since a lake restored from a copy repeats version numbers with
other events. `catch_up` reads the files added since and removes what erasures removed since (`erased_events.py`), or
rebuilds the index if the log no longer has that entry. Deleting the folder costs time, never an event.

A crash in `extend` leaves the previous manifest and perhaps a file that it does not name; the next `catch_up` reads
what is missing from the lake. Files are flushed before a manifest names them, so a readable manifest names whole files.
Bytes that change later are noticed before they give an answer (`runs.py`): the index is rebuilt.
"""

import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from pipelines.boundary.file_lock import try_lock
from pipelines.boundary.private_files import make_inner_dir
from pipelines.contract.digest import Digests, digest, digest_ids
from pipelines.contract.schema import EVENT
from pipelines.errors import one_line
from pipelines.formats import INDEX
from pipelines.lake.erased_events import ERASED_EVENTS, Removal, read_removal, removals_since
from pipelines.lake.files import make_durable
from pipelines.lake.manifest import manifest_text, read_manifest
from pipelines.lake.run_filter import DamagedRunError
from pipelines.lake.runs import Runs, open_run
from pipelines.lake.tables import Lake, data_files, read_rows, table_id

_LOG = logging.getLogger(__name__)
_REBUILD_ROWS = 1_000_000
"""Events that are read and digested at a time."""

NEW, DUPLICATE, CONFLICT = 0, 1, 2


@dataclass(slots=True)
class DedupIndex:
    """The index in one folder, locked by this process; `open_index` creates it. Not thread-safe."""

    folder: Path
    lake: Lake
    lock: int
    """The descriptor that holds the folder's lock."""
    identity: str
    """The `table_id` of the indexed lake. The index is reset when it changes."""
    key: bytes = b""
    """The key of the digests: 16 random bytes."""
    version: int = -1
    """The version of `events` that the index reflects; -1 while it is empty."""
    entry: str | None = None
    """The digest of the log entry of `version`, which identifies the history. None if the log lacks it."""
    runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        self.runs = Runs(self.folder)

    def classify(self, events: pa.Table) -> "Classification":
        """Classify each event of a batch (EVENT columns, in order of arrival) as NEW, DUPLICATE or CONFLICT.

        Of several events with one unknown event_id, the first is NEW and the others are compared with it. The index
        does not change. Raises DamagedRunError when what it reads has changed on disk.
        """
        ids, order = sort_digests(digest(events, self.key))
        first = _first_of_each_id(ids)
        known, payload = self.runs.find(Digests(ids.high[first], ids.low[first], ids.payload[first]))
        group = np.cumsum(first) - 1
        kinds = np.where(ids.payload == payload[group], DUPLICATE, CONFLICT).astype(np.uint8)
        kinds[np.flatnonzero(first)[~known]] = NEW
        in_order_of_arrival = np.empty_like(kinds)
        in_order_of_arrival[order] = kinds
        new = kinds == NEW
        return Classification(in_order_of_arrival, Digests(ids.high[new], ids.low[new], ids.payload[new]))

    def classify_at(self, table: DeltaTable, events: pa.Table) -> "Classification":
        """Bring the index to the version of the handle `table` of `events`, and classify like `classify`.

        An index that has changed on disk is rebuilt.
        """
        self.catch_up(table)
        try:
            return self.classify(events)
        except DamagedRunError as error:
            self._log_rebuild(error)
            self.rebuild(table)
            return self.classify(events)

    def extend(self, new: Digests, version: int) -> None:
        """Add the sorted digests of the events that commit `version` added, durably."""
        try:
            if len(new):
                self.runs.add(new)
        except DamagedRunError as error:  # in a merge; the next `catch_up` rebuilds the index
            self._log_rebuild(error)
            self._reset()
        else:
            self._save(version)

    def catch_up(self, events: DeltaTable) -> None:
        """Bring the index to the version of the handle `events`, from the files added since, or from all files."""
        newest = events.version()
        if newest == self.version:
            return
        if table_id(events) != self.identity:
            self.identity = table_id(events)
            self._reset()
        try:
            for added, removal in self._changes_since(newest):
                self._add(added)
                self._apply(removal)
        except (LookupError, FileNotFoundError):
            self.rebuild(events)
        else:
            self._save(newest)

    def rebuild(self, events: DeltaTable) -> None:
        """Build the index from the files of the handle `events`."""
        self._reset()
        self._add(data_files(events))
        self._save(events.version())

    def forget_erased(self, events: DeltaTable) -> None:
        """Remove, durably, the event_ids of every erasure that the handle `events` has, without catching up.

        The version stays, so `catch_up` removes them again from what it adds, and adds replacements again. An index for
        which they are no longer known is emptied. A crash leaves the previous manifest.
        """
        try:
            self._require_history(events.version())
            for removal in removals_since(self.lake, self.version, events.version()):
                self._apply(removal)
        except (LookupError, FileNotFoundError):
            self._reset()

    def close(self) -> None:
        """Finish the merge in progress, save the index and release its folder.

        A failure to save is logged: the next start catches up from the lake.
        """
        try:
            self.runs.finish_merge()
            self._save(self.version)
        except (OSError, DamagedRunError) as error:
            _LOG.warning("the index in %s was not saved: %s", self.folder, one_line(error))
        finally:
            self.runs.close()
            os.close(self.lock)

    def _changes_since(self, newest: int) -> Iterator[tuple[list[str], Removal]]:
        """Yield, in the order of the log, files that were added and what the erasure after them removed.

        The last pair has the files after the last erasure, and an empty removal.
        """
        self._require_history(newest)
        paths: list[str] = []
        for _, actions in self.lake.read_log(self.version, newest):
            removal = read_removal(self.lake, actions, ["event_id"])
            if removal is None:
                paths += [f"{self.lake.folder('events')}/{path}" for path in _added(actions)]
            elif len(removal.removed):
                yield paths, removal
                paths = []
        yield paths, Removal(ERASED_EVENTS.empty_table(), ERASED_EVENTS.empty_table())

    def _require_history(self, newest: int) -> None:
        if self.version < 0:
            raise LookupError("an empty index starts from the files of the newest version")
        if self.version > newest or not history_includes(self.lake, self.version, self.entry):
            raise LookupError("the lake was restored from an older copy: the index may hold events that it lacks")

    def _add(self, paths: Iterable[str]) -> None:
        for rows in _prefetch(_read(paths)):
            digests, _ = sort_digests(digest(rows, self.key))
            self.runs.add(digests)

    def _apply(self, removal: Removal) -> None:
        if len(removal.removed):
            ids, _ = sort_digests(digest_ids(removal.removed["event_id"], self.key))
            self.runs.remove(ids)
        if len(removal.replacements):
            digests, _ = sort_digests(digest(removal.replacements, self.key))
            self.runs.add(digests)

    def _save(self, version: int) -> None:
        if version != self.version:
            self.version, self.entry = version, self.lake.entry_digest(version)
        manifest = {
            "format": INDEX.number,
            "identity": self.identity,
            "key": self.key.hex(),
            "version": version,
            "entry": self.entry,
            "runs": self.runs.flush(),
        }
        temporary = self.folder / "manifest.tmp"
        temporary.write_text(manifest_text(manifest), encoding="utf-8")
        make_durable([temporary])
        temporary.replace(self.folder / "manifest.json")
        make_durable([self.folder / "manifest.json"])
        self.runs.remove_replaced_files()

    def load(self) -> None:
        """Load the index from its folder; reset it if it is of another lake or history, or cannot be read."""
        try:
            manifest = read_manifest(self.folder / "manifest.json")
            if manifest["format"] != INDEX.number or manifest["identity"] != self.identity:
                return self._reset()
            if not history_includes(self.lake, manifest["version"], manifest["entry"]):
                return self._reset()
            runs = [open_run(self.folder / name, *of_run) for name, *of_run in manifest["runs"]]
            self.runs = Runs(self.folder, runs)
            self.runs.remove_stray_files()
            self.key, self.version, self.entry = bytes.fromhex(manifest["key"]), manifest["version"], manifest["entry"]
        except FileNotFoundError:
            self._reset()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log_rebuild(error)
            self._reset()

    def _log_rebuild(self, error: Exception) -> None:
        _LOG.warning("the index in %s is rebuilt from the lake: %s", self.folder, one_line(error))

    def _reset(self) -> None:
        """Empty the index, and choose a new key."""
        with suppress(DamagedRunError):
            self.runs.finish_merge()
        self.runs.close()
        self.runs, self.key = Runs(self.folder), secrets.token_bytes(16)
        self.version, self.entry = -1, None
        (self.folder / "manifest.json").unlink(missing_ok=True)
        self.runs.remove_stray_files()


@dataclass(frozen=True, slots=True)
class Classification:
    """The kind of each event of a batch, and the digests of the new ones."""

    kinds: np.ndarray
    """NEW, DUPLICATE or CONFLICT: uint8, shape (events,), in order of arrival."""
    new: Digests
    """The digests of the NEW events, sorted by (high, low)."""

    def mask(self, kind: int) -> pa.BooleanArray:
        """Return which events are of a kind."""
        return pa.array(self.kinds == kind)


def open_index(root: Path, lake: Lake, events: DeltaTable) -> DedupIndex:
    """Open the first index under `root` that no other process has locked, and bring it to the version of `events`.

    Each ingest process has an index of its own (slot-0, slot-1, ...), so none waits for another or reads what another
    has half written. The operating system releases the lock of a dead process. Raises ConfigurationError on a file
    system without locks.
    """
    slot = 0
    while (lock := _lock(root / f"slot-{slot}")) is None:
        slot += 1
    with ExitStack() as failing:
        failing.callback(os.close, lock)
        index = DedupIndex(root / f"slot-{slot}", lake, lock, table_id(events))
        index.load()
        index.catch_up(events)
        failing.pop_all()
    return index


def history_includes(lake: Lake, version: int, entry: str | None) -> bool:
    """Return whether the lake's log has the entry with this digest at a version."""
    return entry is not None and entry == lake.entry_digest(version)


def forget_erased(root: Path, lake: Lake, events: DeltaTable) -> None:
    """Remove erased event_ids from every index under `root` that no process has locked; a running process does its own.

    Repeating it is harmless. Raises OSError when the disk is full: the indexes are as before, and the next start of
    ingest removes them.
    """
    for folder in sorted(root.glob("slot-*")):
        lock = _lock(folder)
        if lock is not None:
            with closing(DedupIndex(folder, lake, lock, table_id(events))) as index:
                index.load()
                index.forget_erased(events)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of `folder`; None if another process holds it."""
    make_inner_dir(folder.parent)
    make_inner_dir(folder)
    return try_lock(folder / "lock")


def _first_of_each_id(ids: Digests) -> np.ndarray:
    first = np.ones(len(ids), bool)
    first[1:] = (ids.high[1:] != ids.high[:-1]) | (ids.low[1:] != ids.low[:-1])
    return first


def sort_digests(digests: Digests) -> tuple[Digests, np.ndarray]:
    """Return digests sorted by (high, low), and the order that sorts them (int64, shape (n,)).

    The sort is stable: equal digests stay in order of arrival.
    """
    order = np.argsort(digests.high, kind="stable")
    high, low = digests.high[order], digests.low[order]
    if ((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any():  # a chance of 1 in 2^64 for a pair: sort again
        order = np.lexsort((digests.low, digests.high))
        high, low = digests.high[order], digests.low[order]
    return Digests(high, low, digests.payload[order]), order


def _read(paths: Iterable[str]) -> Iterator[pa.Table]:
    """Yield the events of files, about `_REBUILD_ROWS` at a time."""
    tables: list[pa.Table] = []
    for path in paths:
        tables.append(read_rows("events", path, EVENT.names))
        if sum(map(len, tables)) >= _REBUILD_ROWS:
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def _prefetch(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same tables, reading the next one in a thread."""
    with ThreadPoolExecutor(1, "index-read") as thread:
        pending = thread.submit(next, tables, None)
        while (rows := pending.result()) is not None:
            pending = thread.submit(next, tables, None)
            yield rows


def _added(actions: list[dict[str, Any]]) -> Iterator[str]:
    for action in actions:
        if "add" in action and action["add"]["dataChange"]:
            yield action["add"]["path"]
