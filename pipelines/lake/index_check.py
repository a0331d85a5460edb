"""Compare dedup indexes with the lake: each event_id with its payload, and nothing else (`once`).

Reads all events, so it is for `karmalake verify`, not for scheduled paths. It takes no lock: an index in use is read as
its manifest describes it.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.contract.digest import Digests, digest, digest_ids
from pipelines.contract.schema import EVENT
from pipelines.formats import INDEX
from pipelines.lake.erased_events import removals_since
from pipelines.lake.index import history_includes, sort_digests
from pipelines.lake.manifest import read_manifest
from pipelines.lake.runs import Run, find_in, open_run
from pipelines.lake.tables import Lake, data_files, read_rows, table_id

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class IndexComparison:
    """An index compared with the lake at the version that the index reflects."""

    slot: str
    version: int
    ids: int
    """Digests in the index."""
    missing: int
    """Events of the lake that the index lacks, or has with another payload."""
    extra: int
    """Digests of no event of the lake, except those erased since, which the index's process removes next."""


def compare_indexes(root: Path, lake: Lake, events: DeltaTable, versions: dict[str, int]) -> list[IndexComparison]:
    """Compare each index under `root` with the lake.

    `events` is a handle; `versions` are the versions of committed batches, by batch_id. The result leaves out an index
    that the next start rebuilds (of another history, or behind an erasure whose event_ids a vacuum removed), and one
    that its process replaced at each of several attempts to read it.
    """
    compared = (_compare(folder, lake, events, versions) for folder in sorted(root.glob("slot-*")))
    return [each for each in compared if each is not None]


def _compare(folder: Path, lake: Lake, events: DeltaTable, versions: dict[str, int]) -> IndexComparison | None:
    for _ in range(_ATTEMPTS):
        try:
            manifest = read_manifest(folder / "manifest.json")
            if not _is_current(manifest, lake, events):
                return None
            runs = [open_run(folder / name, *of_run) for name, *of_run in manifest["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written now, or unreadable: the next start rebuilds it
        try:
            return _count(folder.name, manifest, runs, lake, events, versions)
        except (LookupError, FileNotFoundError):
            return None
    return None


def _is_current(manifest: dict[str, Any], lake: Lake, events: DeltaTable) -> bool:
    """Return whether the lake's history includes the index's version."""
    if manifest["format"] != INDEX.number or manifest["identity"] != table_id(events):
        return False
    return manifest["version"] <= events.version() and history_includes(lake, manifest["version"], manifest["entry"])


def _count(
    slot: str, manifest: dict[str, Any], runs: list[Run], lake: Lake, events: DeltaTable, versions: dict[str, int]
) -> IndexComparison:
    key, version = bytes.fromhex(manifest["key"]), manifest["version"]
    removals = list(removals_since(lake, version, events.version()))
    erased = sum(_count_known(runs, each.removed["event_id"], key) for each in removals if len(each.removed))
    replaced = pa.array([name for each in removals for name in each.replacements["event_id"].to_pylist()], pa.string())
    reflected = pa.array([batch for batch, at in versions.items() if at <= version], pa.string())
    rows = missing = 0
    for path in data_files(events):
        stored = read_rows("events", path, [*EVENT.names, "batch_id"])
        known = stored.filter(pc.is_in(stored["batch_id"], value_set=reflected)).select(EVENT.names)
        known = known.filter(pc.invert(pc.is_in(known["event_id"], value_set=replaced))) if len(replaced) else known
        rows, missing = rows + len(known), missing + _unknown(runs, digest(known, key))
    ids = sum(map(len, runs))
    return IndexComparison(slot, version, ids, missing, max(0, ids - erased - rows + missing))


def _count_known(runs: list[Run], event_ids: pa.ChunkedArray, key: bytes) -> int:
    ordered, _ = sort_digests(digest_ids(event_ids, key))
    found, _ = find_in(runs, ordered)
    return int(np.count_nonzero(found))


def _unknown(runs: list[Run], digests: Digests) -> int:
    ordered, _ = sort_digests(digests)
    found, payload = find_in(runs, ordered)
    return int(np.count_nonzero(~found | (payload != ordered.payload)))
