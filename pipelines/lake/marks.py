"""Marks: numbers that a table holds as application transactions, apart from its rows."""

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import make_durable
from pipelines.lake.tables import Lake
from pipelines.lake.transactions import transactions


def save_mark(lake: Lake, table: str, handle: DeltaTable, mark: str, number: int) -> bool:
    """Set a mark of a table durably, on exactly the handle's version; return false if another commit came first."""
    try:
        commit_actions(handle, [], {mark: number})
    except CommitFailedError:
        return False
    make_durable([lake.entry_path(table, handle.version() + 1)])
    return True


def raise_mark(lake: Lake, table: str, mark: str, number: int) -> None:
    """Raise a mark of a table durably to a number, unless it is there already; an absent one is 0."""
    handle = lake.table(table)
    while transactions(handle).get(mark, 0) < number and not save_mark(lake, table, handle, mark, number):
        handle = lake.table(table)
