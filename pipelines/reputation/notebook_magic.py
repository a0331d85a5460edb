"""The cell magic `%%karma`, which runs SQL in a notebook; `%load_ext karmalake` registers it."""

from typing import Any

import duckdb

from pipelines.errors import UsageError
from pipelines.reputation.own_tables import is_table
from pipelines.reputation.query_errors import query_error
from pipelines.reputation.warehouse import Warehouse, open_warehouse


def register(shell: Any) -> None:
    """Register the cell magic in an IPython shell, and show errors of lazy relations as sentences, too."""

    def karma(line: str, cell: str) -> Any:
        """Run SQL on the notebook's `warehouse`; `$name` is the variable `name`; `%%karma NAME` stores the rows.

        A data frame, or another table, is one of the query by its variable's name, unless the warehouse has such a one.
        """
        variables = shell.user_ns
        warehouse = _warehouse(variables)
        rows = warehouse.sql(cell, _parameters(cell, variables), _tables(warehouse, variables))
        if not (target := line.strip()):
            return rows
        if not target.isidentifier():
            raise UsageError(f"%%karma {target}: {target!r} is not a variable name; use %%karma or %%karma rows")
        variables[target] = rows
        return None

    shell.register_magic_function(karma, "cell")
    shell.set_custom_exc((duckdb.Error,), _show_error)
    shell.display_formatter.mimebundle_formatter.for_type(duckdb.DuckDBPyRelation, _display)


def _show_error(shell: Any, _: type, error: duckdb.Error, *__: Any, **___: Any) -> None:
    """Show an error of DuckDB without its traceback: that of a relation, whose rows are taken outside our calls."""
    sentence = query_error(error, str(error))
    shell.showtraceback((type(sentence), sentence, None))


def _display(relation: Any, **formats: Any) -> Any:
    """Return a relation as the notebook shows it, which runs it; an error of its rows as a sentence."""
    try:
        return relation._repr_mimebundle_(**formats)
    except duckdb.Error as error:
        sentence = query_error(error, str(error))
        return {"text/plain": f"{type(sentence).__name__} {sentence.code}: {sentence}"}


def _warehouse(variables: dict[str, Any]) -> Warehouse:
    """Return the notebook's warehouse, opened if it has none."""
    if not isinstance(variables.get("warehouse"), Warehouse):
        variables["warehouse"] = open_warehouse()
    return variables["warehouse"]


def _tables(warehouse: Warehouse, variables: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook's tables, without those that have the name of a table of the warehouse."""
    taken = warehouse.tables()
    return {name: value for name, value in variables.items() if is_table(value) and name.lower() not in taken}


def _parameters(query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
    try:
        needed = {name for statement in duckdb.extract_statements(query) for name in statement.named_parameters}
    except duckdb.Error:
        return None  # the warehouse says what is wrong with it
    if missing := sorted(needed - variables.keys()):
        raise UsageError(f"${missing[0]} has no value: set {missing[0]} = ... in an earlier cell")
    return {name: variables[name] for name in needed} or None
