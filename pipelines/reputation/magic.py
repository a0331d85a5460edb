"""`%%karma`, SQL as a cell of a notebook: `%load_ext pipelines` brings it."""

from typing import Any

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.warehouse import Warehouse, open_warehouse


def register(shell: Any) -> None:
    """Give an IPython shell the cell magic."""

    def karma(line: str, cell: str) -> Any:
        """Run SQL on the notebook's `warehouse`; `$name` is the variable `name`; `%%karma NAME` keeps the rows."""
        names = shell.user_ns
        rows = _warehouse(names).sql(cell, _parameters(cell, names))
        if not (kept := line.strip()):
            return rows
        if not kept.isidentifier():
            raise UsageError(f"%%karma {kept}: {kept!r} is no name of a variable; say %%karma or %%karma rows")
        names[kept] = rows
        return None

    shell.register_magic_function(karma, "cell")


def _warehouse(names: dict[str, Any]) -> Warehouse:
    """Return the notebook's warehouse, opened if it has none."""
    if not isinstance(names.get("warehouse"), Warehouse):
        names["warehouse"] = open_warehouse()
    return names["warehouse"]


def _parameters(query: str, names: dict[str, Any]) -> dict[str, Any] | None:
    wanted = {name for statement in duckdb.extract_statements(query) for name in statement.named_parameters}
    if missing := sorted(wanted - names.keys()):
        raise UsageError(f"${missing[0]} has no value: set {missing[0]} = ... in a cell before")
    return {name: names[name] for name in wanted} or None
