"""docs/tables.md: every table of lake and warehouse; types from the code, descriptions from `tables.toml`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from pipelines.lake.tables import COUNTS, TABLES, Snapshot
from pipelines.reputation.column_help import generic_name, table_descriptions
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse_file import attach

Columns = dict[str, str]
"""Types by name, in order."""
_HEAD = """# Tables

For authors of queries. At the end you know what each table and column holds. Generated from the code and
`pipelines/reputation/tables.toml`. Times are in UTC, with microseconds.

```console
$ karmalake sql 'DESCRIBE reputation'
```
"""
_LAKE = """## The lake

Delta tables, each in its folder of `lake/` in the data folder, or under `lake.uri`: the source of truth. Read them
through the warehouse, which shows one complete commit and only rows that count, or with any Delta reader
(`polars.scan_delta("data/lake/events")`).
"""
_WAREHOUSE = """## The warehouse

`warehouse.duckdb` in the data folder, derived from the lake: read-only, replaced atomically, never locked. It holds
changes to a file in `base/`: read it with `open_warehouse()` or `karmalake sql`, or `karmalake export` it to one file
that any DuckDB opens. Types are those of the policy `default`. One with `[raters]` adds `rater_weights`: day, user_id
and weight, in millionths, of the raters on each day with ratings, and of all users on the newest one. One with `[time]`
adds `time_starts`: user_id, the name and version of the rule, and the first_day that it counts from. One with
`prior = "global"` adds `rating_priors`: day, the number of ratings, the sums of weight and of rating times weight
(total), and the prior of the day, in millionths; and `user_ratings_given`, the same sums by user.
"""
_SQL = """
SELECT table_name, column_name, data_type FROM information_schema.columns
WHERE table_catalog = 'warehouse' AND table_schema = 'main'
"""


def tables_page() -> str:
    """Return the page. Raises KeyError for a table or column without a description."""
    descriptions = table_descriptions()
    parts = [_HEAD, _LAKE]
    for name, columns in lake_columns().items():
        parts.append(_table(f"lake.{name}", descriptions["lake"][name], columns))
    parts.append(_WAREHOUSE)
    for name, columns in warehouse_columns().items():
        parts.append(_table(f"{name}", descriptions["warehouse"][name], columns))
    return "\n".join(parts)


def lake_columns() -> dict[str, Columns]:
    """Return the columns of the lake's tables; fields of a list of structs are listed separately, except for counts."""
    return {name: dict(_flat(schema)) for name, schema in TABLES.items()}


def _flat(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    for field in schema:
        kind = field.type
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            yield field.name, "list<struct>"
            for inner in kind.value_type:
                if inner.name not in COUNTS:
                    yield f"{field.name}[].{inner.name}", str(inner.type)
        elif pa.types.is_map(kind):
            yield field.name, "map<string, string>"
        else:
            yield (
                field.name,
                str(kind).replace("[us, tz=UTC]", "").replace("list<item: ", "list<").replace("[day]", ""),
            )


def warehouse_columns() -> dict[str, Columns]:
    """Return the columns of an empty warehouse by the default policy; for views of the lake only the added columns."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "warehouse.duckdb"
        derive(Snapshot(0, {}, {}), load_policy("default"), datetime(2026, 1, 1, tzinfo=UTC), path)
        with attach(path) as connection:
            rows = connection.execute(f"{_SQL} ORDER BY table_name, ordinal_position").fetchall()
    found: dict[str, Columns] = {}
    for table, column, kind in rows:
        columns = found.setdefault(table, {})
        if table not in TABLES or column not in TABLES[table].names:
            columns.setdefault(generic_name(table, column), kind)
    return dict(sorted(found.items(), key=lambda item: (item[0] in TABLES, item[0])))


def _table(title: str, description: dict[str, Any], columns: Columns) -> str:
    lines = [f"### {title}", "", description["about"], ""]
    if columns:
        lines += ["| column | type | |", "|---|---|---|"]
    lines += [f"| `{name}` | `{kind.lower()}` | {description['columns'][name]} |" for name, kind in columns.items()]
    return "\n".join(lines) + "\n"
