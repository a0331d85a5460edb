"""Make the golden data folder of this release, `tests/golden/VERSION.tar.gz`: once per release, by `make release`.

It has a small lake with all tables (events of two files, duplicates, a conflict, dead letters, one of them discarded,
an activated policy and an erasure), its index, caches, tombstones and warehouse, and in `expected.json` what a reader
sees. Batch ids and commit times differ from run to run.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from pipelines.backfill import backfill
from pipelines.formats import release
from pipelines.lake.tables import open_lake
from pipelines.operate.dead_letters import Selection, discard
from pipelines.operate.erase import erase_without_documents
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.golden.folders import EXPECTED, GOLDEN, describe

_MAPPING = ColumnMapping("user", "time", "iso", None, "action", (("rating", "rating"),), "id", None)
_ERASED = "user-3"
_LEFT_OUT = (".lock", ".wal", "lock")


def make(data_dir: Path, rows_dir: Path) -> None:
    """Make the folder in `data_dir`; `rows_dir` is for the files of history."""
    settings = Settings(data_dir=data_dir)
    _load(settings, rows_dir / "first.csv", [_row(number) for number in range(30)] + ["e-bad,user-1,soon,Rated,5"])
    refresh_warehouse(settings)
    activate(open_lake(settings.lake_root), load_policy("default"))
    discard(settings, Selection(), "golden")
    erase_without_documents(settings, [_ERASED])
    second = [_row(number) for number in range(25, 50)]
    conflict, dead_letter = "e-1,user-1,2026-01-02T00:00:00Z,Rated,1", "e-worse,user-2,later,Rated,5"
    _load(settings, rows_dir / "second.csv", [*second, conflict, dead_letter])
    refresh_warehouse(settings)
    (data_dir / EXPECTED).write_text(json.dumps(describe(settings), indent=1), encoding="utf-8")


def _row(number: int) -> str:
    return f"e-{number},user-{number % 7},2026-01-{1 + number % 5:02}T12:00:00Z,Rated,{1 + number % 5}"


def _load(settings: Settings, file: Path, rows: list[str]) -> None:
    file.write_text("\n".join(["id,user,time,action,rating", *rows, ""]), encoding="utf-8")
    backfill(settings, file, _MAPPING, lambda _: None)


def _pack(data_dir: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted(data_dir.rglob("*")):
            if path.is_file() and not path.name.endswith(_LEFT_OUT):
                packed.add(path, path.relative_to(data_dir))


if __name__ == "__main__":
    archive = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN / f"{release()}.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "data"), Path(folder))
        _pack(Path(folder, "data"), archive)
    sys.stdout.write(f"{archive}: {archive.stat().st_size:,} bytes\n")
