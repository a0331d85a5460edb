"""The dedup index: every event_id that the lake holds, of any age, exactly (`once`).

Digests in sorted runs (`runs.py`), and what ties them to the lake. It is a cache of the lake: its manifest carries the
version of `events` that it reflects and the digest of that version's log entry, since a lake restored from a copy
passes the same versions with other events. `catch_up` brings it to the newest version from the files that were added
since, or rebuilds it where the log no longer has that entry. Deleting the folder costs time, never an event.

A crash in `extend` leaves the manifest of the version before and perhaps a file that it does not name; the next
`catch_up` reads what is missing from the lake. Files are flushed before a manifest names them, so a manifest that can
be read describes whole files.
"""

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from pipelines.contract.digest import Digests, digest
from pipelines.contract.schema import EVENT
from pipelines.errors import ConfigurationError
from pipelines.lake.files import make_durable, read_file
from pipelines.lake.runs import Runs, open_run
from pipelines.lake.tables import Lake, data_files, identity
from pipelines.private import private_folder

_LOG = logging.getLogger(__name__)
FORMAT = 2
_REBUILD_ROWS = 1_000_000

NEW, DUPLICATE, CONFLICT = 0, 1, 2


@dataclass(slots=True)
class DedupIndex:
    """The index in one folder, held by one process; `open_index` makes it."""

    folder: Path
    lake: Lake
    lock: int
    identity: str
    """Of the lake that it is an index of: of another one, or after an erasure, it starts from nothing."""
    key: bytes = b""
    version: int = -1
    entry: str | None = None
    """The digest of the log entry of `version`: which history that version belongs to. None if the log lacks it."""
    runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        self.runs = Runs(self.folder)

    def classify(self, events: pa.Table) -> "Verdicts":
        """Tell for each event (EVENT columns, in order of arrival) whether it is NEW, a DUPLICATE or a CONFLICT.

        Of the events of this batch with one unknown event_id the first is new; the others are compared with it.
        """
        ids, order = sort_digests(digest(events, self.key))
        first = _first_of_each_id(ids)
        known, payload = self.runs.find(Digests(ids.high[first], ids.low[first], ids.payload[first]))
        group = np.cumsum(first) - 1
        verdicts = np.where(ids.payload == payload[group], DUPLICATE, CONFLICT).astype(np.uint8)
        verdicts[np.flatnonzero(first)[~known]] = NEW
        unsorted = np.empty_like(verdicts)
        unsorted[order] = verdicts
        new = verdicts == NEW
        return Verdicts(unsorted, Digests(ids.high[new], ids.low[new], ids.payload[new]))

    def extend(self, new: Digests, version: int) -> None:
        """Add the sorted digests that the commit `version` of `events` added."""
        if len(new):
            self.runs.add(new)
        self._save(version)

    def catch_up(self, events: DeltaTable) -> None:
        """Bring the index to the version of `events` (a handle), from the files added since or from all files."""
        newest = events.version()
        if newest == self.version:
            return
        if identity(events) != self.identity:
            self.identity = identity(events)
            self._forget()
        try:
            self._add(self._files_added_since(newest))
        except (LookupError, FileNotFoundError):
            self._forget()
            self._add(data_files(events))
        self._save(newest)

    def close(self) -> None:
        """Give the folder back to other processes, once the merge in hand is done.

        Where that cannot be saved, the next start catches up from the lake.
        """
        try:
            self.runs.finish()
            self._save(self.version)
        except OSError as error:
            _LOG.warning("the index in %s was not saved: %s", self.folder, error)
        finally:
            self.runs.close()
            os.close(self.lock)

    def _files_added_since(self, newest: int) -> list[str]:
        if self.version < 0:
            raise LookupError("an empty index starts from the files that are there now")
        if self.version > newest or not led_through(self.lake, self.version, self.entry):
            raise LookupError("the lake went back: the index may know events that are no longer there")
        log = self.lake.log(self.version, newest)
        return [f"{self.lake.folder('events')}/{path}" for _, actions in log for path in _added(actions)]

    def _add(self, paths: Iterable[str]) -> None:
        for rows in _one_ahead(_read(paths)):
            digests, _ = sort_digests(digest(rows, self.key))
            self.runs.add(digests)

    def _save(self, version: int) -> None:
        if version != self.version:
            self.version, self.entry = version, _entry_digest(self.lake, version)
        manifest = {
            "format": FORMAT,
            "identity": self.identity,
            "key": self.key.hex(),
            "version": version,
            "entry": self.entry,
            "runs": self.runs.flush(),
            "next_file": self.runs.next_file,
        }
        temporary = self.folder / "manifest.tmp"
        temporary.write_text(json.dumps(manifest), encoding="utf-8")
        make_durable([temporary])
        temporary.replace(self.folder / "manifest.json")
        make_durable([self.folder / "manifest.json"])
        self.runs.remove_others()

    def load(self) -> None:
        """Take up what the folder holds; start from nothing when that is of another lake or cannot be read."""
        try:
            manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT or manifest["identity"] != self.identity:
                return self._forget()
            if not led_through(self.lake, manifest["version"], manifest["entry"]):
                return self._forget()
            runs = [open_run(self.folder / name, rows) for name, rows in manifest["runs"]]
            self.runs = Runs(self.folder, runs, manifest["next_file"])
            self.key, self.version, self.entry = bytes.fromhex(manifest["key"]), manifest["version"], manifest["entry"]
        except (OSError, ValueError, KeyError, TypeError):
            self._forget()

    def _forget(self) -> None:
        """Start again from nothing, under a new key."""
        self.runs.finish()
        self.runs.close()
        self.runs, self.key = Runs(self.folder), secrets.token_bytes(16)
        self.version, self.entry = -1, None
        (self.folder / "manifest.json").unlink(missing_ok=True)
        self.runs.remove_others()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """`verdicts` has NEW, DUPLICATE or CONFLICT for each event; `new` the sorted digests of the new ones."""

    verdicts: np.ndarray
    new: Digests

    def mask(self, verdict: int) -> pa.BooleanArray:
        """Return which events got `verdict`."""
        return pa.array(self.verdicts == verdict)


def open_index(root: Path, lake: Lake, events: DeltaTable) -> DedupIndex:
    """Open the first index under `root` that no other process holds, and bring it to the version of `events`.

    Each process that ingests keeps an index of its own (slot-0, slot-1, ...), so none can wait for, or trust, a
    half-written one; the lock of a dead process is gone with it. Raises ConfigurationError where there are no locks.
    """
    slot = 0
    while (lock := _lock(root / f"slot-{slot}")) is None:
        slot += 1
    with ExitStack() as failing:
        failing.callback(os.close, lock)
        index = DedupIndex(root / f"slot-{slot}", lake, lock, identity(events))
        index.load()
        index.catch_up(events)
        failing.pop_all()
    return index


def led_through(lake: Lake, version: int, entry: str | None) -> bool:
    """Return whether the lake's history led through this very log entry (its digest) at a version."""
    return entry is not None and entry == _entry_digest(lake, version)


def _entry_digest(lake: Lake, version: int) -> str | None:
    try:
        return lake.entry_digest(version)
    except LookupError:
        return None


def forget_indexes(root: Path) -> None:
    """Remove what is in every index under `root` that no process holds; the others forget by themselves."""
    for folder in root.glob("slot-*"):
        lock = _lock(folder)
        if lock is not None:
            for path in folder.iterdir():
                if path.name != "lock":
                    path.unlink()
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of `folder`; None when another process does."""
    private_folder(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(f"{folder} cannot be locked ({error}): keep data_dir where files can be") from error
    return lock


def _first_of_each_id(ids: Digests) -> np.ndarray:
    first = np.ones(len(ids), bool)
    first[1:] = (ids.high[1:] != ids.high[:-1]) | (ids.low[1:] != ids.low[:-1])
    return first


def sort_digests(digests: Digests) -> tuple[Digests, np.ndarray]:
    """Return digests sorted by (high, low), equal ones in the order of arrival; and the order."""
    order = np.argsort(digests.high, kind="stable")
    high, low = digests.high[order], digests.low[order]
    if ((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any():  # one in 2^64 pairs, so all is sorted once more
        order = np.lexsort((digests.low, digests.high))
        high, low = digests.high[order], digests.low[order]
    return Digests(high, low, digests.payload[order]), order


def _read(paths: Iterable[str]) -> Iterator[pa.Table]:
    """Yield the events of files, some at a time."""
    waiting: list[pa.Table] = []
    for path in paths:
        waiting.append(read_file(path, EVENT.names))
        if sum(map(len, waiting)) >= _REBUILD_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _one_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same tables, the next of which a thread gets meanwhile."""
    with ThreadPoolExecutor(1, "index-read") as thread:
        coming = thread.submit(next, tables, None)
        while (rows := coming.result()) is not None:
            coming = thread.submit(next, tables, None)
            yield rows


def _added(actions: list[dict[str, Any]]) -> Iterator[str]:
    for action in actions:
        if "add" in action and action["add"]["dataChange"]:
            yield action["add"]["path"]
