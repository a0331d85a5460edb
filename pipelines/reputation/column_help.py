"""What each table and column holds, by `tables.toml`: docs/tables.md and Dagster's pages show it."""

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

_VIEW = re.compile(r"^(?:all_time|last_[0-9]+_days)_")
_LINK = re.compile(r"\[([^]]+)\]\([^)]*\)")


@cache
def table_descriptions() -> dict[str, dict[str, Any]]:
    """Return `about` and `columns` of each table of the `lake` and the `warehouse`, in Markdown."""
    text = files("pipelines.reputation").joinpath("tables.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def generic_name(table: str, column: str) -> str:
    """Return the name under which a column is described: columns of `reputation` exist once per view."""
    return _VIEW.sub("{view}_", column) if table == "reputation" else column


def describe_column(store: str, table: str, column: str) -> str | None:
    """Return what a column of the `lake` or the `warehouse` holds, without links; None for one that a policy adds."""
    columns = table_descriptions()[store][table]["columns"]
    text = columns.get(generic_name(table, column))
    return text and _LINK.sub(r"\1", text)
