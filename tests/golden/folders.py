"""Unpacks golden data folders, and turns one into a folder of an older or a newer release."""

import json
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Field, Schema
from deltalake.schema import PrimitiveType

from pipelines.formats import LAKE, WAREHOUSE
from pipelines.lake.tables import TABLES
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.draining import answers

GOLDEN = Path(__file__).parent
EXPECTED = "expected.json"
_QUERIES = {
    "events": "SELECT event_id, user_id, epoch_us(event_time), metadata['rating'] FROM events ORDER BY event_id",
    "dead_letters": "SELECT reason, fate, count(*) FROM dead_letters GROUP BY ALL ORDER BY ALL",
    "conflicts": "SELECT event_id, user_id, first_offset FROM conflicts ORDER BY event_id",
    "commits": "SELECT sum(accepted)::INT, sum(duplicates)::INT, sum(conflicts)::INT, sum(erased)::INT FROM commits",
    "policies": "SELECT name, version FROM policies ORDER BY activated",
}


def archives() -> list[Path]:
    """Return the golden folders of all releases."""
    return sorted(GOLDEN.glob("*.tar.gz"))


def unpack(archive: Path, data_dir: Path) -> dict[str, Any]:
    """Unpack a golden folder; return what a reader of its release saw."""
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, of Debian 12, has none
        packed.extractall(data_dir)  # noqa: S202 - our own archives
    return json.loads((data_dir / EXPECTED).read_text(encoding="utf-8"))


def describe(settings: Settings) -> dict[str, Any]:
    """Return what a reader sees: rows of the lake's views, and the scores of the warehouse."""
    with Warehouse(settings.warehouse_path) as warehouse:
        scores = warehouse.sql("SELECT user_id, CAST(all_time_score AS DOUBLE) FROM reputation ORDER BY user_id").rows()
    rows = answers(settings, _QUERIES) | {"scores": scores}
    return {name: [list(row) for row in found] for name, found in rows.items()}


def _tables(data_dir: Path) -> list[str]:
    """Return the tables of a lake: earlier releases lacked some."""
    return [name for name in TABLES if (data_dir / "lake" / name).exists()]


def make_older(data_dir: Path) -> None:
    """Turn a folder into one of a release before format numbers, which lacked some columns and a nested field."""
    for name in _tables(data_dir):
        _strip(data_dir / "lake" / name, {"events": {"bus_time"}, "commits": {"note", "lost"}}.get(name, set()))
    with duckdb.connect(data_dir / "warehouse.duckdb") as connection:
        connection.execute("ALTER TABLE snapshot_info DROP COLUMN format")


def make_newer(data_dir: Path) -> None:
    """Turn a folder into one of a newer release, with a newer number for every format and an unknown column."""
    for name in _tables(data_dir):
        table = DeltaTable(data_dir / "lake" / name)
        newer = {"karmalake.format": str(LAKE.number + 1), "karmalake.release": "99.0.0"}
        table.alter.set_table_properties(newer, raise_if_not_exists=False)
        table.alter.add_columns([Field("unknown", PrimitiveType("string"), nullable=True)])
    with duckdb.connect(data_dir / "warehouse.duckdb") as connection:
        connection.execute("UPDATE snapshot_info SET format = ?, karmalake_version = '99.0.0'", [WAREHOUSE.number + 1])


def _strip(folder: Path, dropped: set[str]) -> None:
    """Remove columns and nested fields from the files and the log of a table, and the format from its log."""
    for file in folder.rglob("*.parquet"):
        if dropped and file.parent.name != "_delta_log":
            _rewrite(file, dropped)
    for entry in (folder / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
        for action in actions:
            _strip_action(folder, action, dropped)
        entry.write_text("".join(f"{json.dumps(action)}\n" for action in actions), encoding="utf-8")


def _strip_action(folder: Path, action: dict[str, Any], dropped: set[str]) -> None:
    if "metaData" in action:
        configuration = action["metaData"]["configuration"]
        action["metaData"]["configuration"] = {
            name: configuration[name] for name in configuration if not name.startswith("karmalake")
        }
        schema = pa.schema(Schema.from_json(action["metaData"]["schemaString"]))
        action["metaData"]["schemaString"] = Schema.from_arrow(_without(schema, dropped)).to_json()
    if "add" in action and (folder / action["add"]["path"]).exists():
        action["add"]["size"] = (folder / action["add"]["path"]).stat().st_size


def _rewrite(file: Path, dropped: set[str]) -> None:
    with file.open("rb") as opened:
        rows = pq.read_table(opened)
    older = _without(rows.schema, dropped)
    pq.write_table(pa.Table.from_pylist(rows.to_pylist(), older), file)


def _without(schema: pa.Schema, dropped: set[str]) -> pa.Schema:
    return pa.schema([_field_without(field, dropped) for field in schema if field.name not in dropped])


def _field_without(field: pa.Field, dropped: set[str]) -> pa.Field:
    kind = field.type
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        kept = [nested for nested in kind.value_type if nested.name not in dropped]
        return field.with_type(pa.list_(pa.struct(kept)))
    return field
