"""The one way in which a change of a Delta table is committed: on exactly the version of the handle."""

from collections.abc import Sequence

from deltalake import DeltaTable
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from pipelines.lake.torn import promised


def publish(
    table: DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    transactions: dict[str, int],
    metadata: dict[str, str] | None = None,
) -> None:
    """Commit on exactly the handle's version; raises CommitFailedError when it is no longer the newest."""
    schema = table.schema()
    table.create_write_transaction(
        list(actions),
        "append",
        schema,
        table.metadata().partition_columns,
        commit_properties=CommitProperties(
            custom_metadata=promised(actions, transactions) | (metadata or {}),
            max_commit_retries=0,
            app_transactions=[Transaction(app_id, version) for app_id, version in transactions.items()],
        ),
    )
