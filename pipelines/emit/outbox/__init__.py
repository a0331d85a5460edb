"""The transactional outbox: a table in the service's database; its events reach the bus if the transaction commits.

A Python service adopts it with `outbox_table(metadata)` and `add(session, event)`, others with the SQL file for their
database in this package. `karmalake relay` or Debezium sends the rows.
"""

from pipelines.emit.outbox.backlog import Backlog, backlog
from pipelines.emit.outbox.insert import Event, add
from pipelines.emit.outbox.table import OUTBOX, outbox_table

__all__ = ["OUTBOX", "Backlog", "Event", "add", "backlog", "outbox_table"]
