"""The only way to commit a change of a Delta table: on exactly the version of the handle.

A commit builds on the log entry of that version, which another committer may have written and not flushed yet. It is
flushed here first: after a power cut no entry is missing below one that was acknowledged (`nothing-lost`).

The library's own maintenance of the log is off: within every commit it lists the whole log, and it removes entries
before the checkpoint that replaces them is on disk. Here a checkpoint of the log is written and flushed every 20
versions, or after more where it is large, and `log_files.py` removes old entries.
"""

import logging
from collections.abc import Sequence
from math import isqrt

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from pipelines.errors import one_line
from pipelines.lake.files import make_durable
from pipelines.lake.lake_format import require_known_format
from pipelines.lake.log_files import entry_metadata, flush_checkpoint, last_checkpoint, log_folder

_LOG = logging.getLogger(__name__)
_CHECKPOINT_VERSIONS = 20
"""The least number of versions between two checkpoints of the log."""
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def commit_actions(
    table: DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    transactions: dict[str, int],
    metadata: dict[str, str] | None = None,
) -> None:
    """Commit on exactly the version of a handle, which does not move on.

    `transactions` are application transactions, version by app_id; `metadata` are further members of the entry's
    `commitInfo`. Raises CommitFailedError when the handle's version is no longer the newest, NewerFormatError when a
    newer release has upgraded the table. The new entry is not flushed: the caller does that before it acknowledges the
    commit. A crash leaves a complete entry or none; a power cut may leave a torn one.
    """
    require_known_format(table)
    base = table.version()
    make_durable([f"{log_folder(table)}/{base:020}.json"])
    table.create_write_transaction(
        list(actions),
        "append",
        table.schema(),
        table.metadata().partition_columns,
        commit_properties=CommitProperties(
            custom_metadata=entry_metadata(actions, transactions, metadata or {}),
            max_commit_retries=0,
            app_transactions=[Transaction(app_id, version) for app_id, version in transactions.items()],
        ),
        post_commithook_properties=_NO_HOOKS,
    )
    if _is_checkpoint_due(table):
        _write_checkpoint(table)


def _is_checkpoint_due(table: DeltaTable) -> bool:
    """Return whether enough versions have passed since the last checkpoint for one of the handle's version to pay.

    Writing n actions takes 6.4 us of the processor each, with the files that were replaced within
    `lake.vacuum_retention_hours`. Without a newer checkpoint, every version adds 0.3 ms to each commit with the look at
    it. Over k versions that is least per commit with k = sqrt(2 * 6.4 us * n / 0.3 ms) = sqrt(n) / 5.
    """
    version = table.version()
    if version % _CHECKPOINT_VERSIONS or not version:
        return False
    last, actions = last_checkpoint(table)
    return version - last >= isqrt(actions) // 5


def _write_checkpoint(table: DeltaTable) -> None:
    """Write a checkpoint of the handle's version, whose entry is durable. A failure is logged: opening stays dearer."""
    try:
        table.create_checkpoint()
        flush_checkpoint(table)
    except (DeltaError, OSError) as error:
        _LOG.warning("no checkpoint of the log of %s was written: %s", table.table_uri, one_line(error))
