"""The format number of the lake (`formats.py`), in the configuration of each of its Delta tables.

The configuration is part of the table's log: a release that upgrades a lake commits the new number, so a running
process of an older release cannot commit to a version that it does not know (`commit_actions` checks the handle), and
ends with NewerFormatError instead. Other engines ignore the entries.
"""

from collections.abc import Callable

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import CommitProperties, PostCommitHookProperties

from pipelines.errors import TransientError
from pipelines.formats import LAKE, release
from pipelines.lake.files import make_durable
from pipelines.lake.log_files import log_folder, table_folder

_NUMBER, _RELEASE = "karmalake.format", "karmalake.release"
_MIXED = "karmalake.mixed"
"""Set where files of an older format may lack columns: readers then look at the columns of each file."""
_ATTEMPTS = 20
_ONE_ATTEMPT = CommitProperties(max_commit_retries=0)
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def configuration() -> dict[str, str]:
    """Return the entries of the configuration of a table of this format."""
    return {_NUMBER: str(LAKE.number), _RELEASE: release()}


def require_known_format(table: DeltaTable) -> None:
    """Raise NewerFormatError if a table, at the version of the handle, has a newer format."""
    found = table.metadata().configuration
    LAKE.require_known(int(found.get(_NUMBER, 0)), table_folder(table), found.get(_RELEASE))


def has_mixed_files(table: DeltaTable) -> bool:
    """Return whether files of a table may lack columns of this release."""
    return _MIXED in table.metadata().configuration


def is_current(table: DeltaTable, schema: pa.Schema) -> bool:
    """Return whether a table has the format and the columns of this release."""
    numbered = int(table.metadata().configuration.get(_NUMBER, 0)) == LAKE.number
    return numbered and not _missing_columns(table, schema)


def upgrade(open_table: Callable[[], DeltaTable], schema: pa.Schema) -> None:
    """Bring a table of an older format to this one, durably: its number first, then its columns, nested fields, too.

    No file is rewritten. Idempotent; a crash leaves a table that the next call completes. Raises TransientError if
    other processes kept committing through all attempts.
    """
    _change(open_table, lambda table: is_current(table, schema), lambda table: _alter(table, schema))


def name_replaced_files(open_table: Callable[[], DeltaTable], hours: int) -> DeltaTable:
    """Let the checkpoints of a table's log name replaced files for `hours`, as long as a vacuum keeps them.

    By default, Delta names them for a week, and each makes a checkpoint larger. Returns the table. Raises like
    `upgrade`.
    """
    entry = replaced_files(hours)
    return _change(
        open_table,
        lambda table: entry.items() <= table.metadata().configuration.items(),
        lambda table: _configure(table, entry),
    )


def replaced_files(hours: int) -> dict[str, str]:
    """Return the entry of a table's configuration that `name_replaced_files` sets."""
    return {"delta.deletedFileRetentionDuration": f"interval {hours} hours"}


def _change(
    open_table: Callable[[], DeltaTable], is_done: Callable[[DeltaTable], bool], change: Callable[[DeltaTable], None]
) -> DeltaTable:
    """Change the metadata of a table durably, unless that is done; return the table."""
    for _ in range(_ATTEMPTS):
        table = open_table()
        if is_done(table):
            return table
        base = table.version()
        make_durable([f"{log_folder(table)}/{base:020}.json"])
        try:
            change(table)
        except CommitFailedError:  # another process has committed, perhaps the same change
            continue
        table = open_table()
        make_durable([f"{log_folder(table)}/{version:020}.json" for version in range(base + 1, table.version() + 1)])
    raise TransientError(f"other writers kept committing to {open_table().table_uri}: it was not changed; try again")


def _configure(table: DeltaTable, entries: dict[str, str]) -> None:
    table.alter.set_table_properties(
        entries, raise_if_not_exists=False, commit_properties=_ONE_ATTEMPT, post_commithook_properties=_NO_HOOKS
    )


def _alter(table: DeltaTable, schema: pa.Schema) -> None:
    missing = _missing_columns(table, schema)
    mixed = {_MIXED: "true"} if missing else {}
    _configure(table, configuration() | mixed)
    if missing:
        table.alter.add_columns(
            Schema.from_arrow(pa.schema(missing)).fields,
            commit_properties=_ONE_ATTEMPT,
            post_commithook_properties=_NO_HOOKS,
        )


def _missing_columns(table: DeltaTable, schema: pa.Schema) -> list[pa.Field]:
    """Return the columns of a schema that a table lacks, whole or in part."""
    stored = pa.schema(table.schema())
    return [field for field in schema if _lacks(pa.struct(list(stored)), field)]


def _lacks(stored: pa.DataType, field: pa.Field) -> bool:
    """Return whether a struct lacks a field, or part of a nested one."""
    if stored.get_field_index(field.name) < 0:
        return True
    inner, kind = stored.field(field.name).type, field.type
    while pa.types.is_list(kind):
        inner, kind = inner.value_type, kind.value_type
    return pa.types.is_struct(kind) and any(_lacks(inner, nested) for nested in kind)
