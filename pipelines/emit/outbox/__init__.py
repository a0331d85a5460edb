"""The outbox: a table in the service's own database, from which events reach the bus if their transaction commits.

A service adopts it with `outbox_table(metadata)` and `add(session, event)`; services in other languages with the SQL
file of their database beside this module. Who sends the rows, `karmalake relay` or Debezium, is no affair of a service.
"""

from pipelines.emit.outbox.adding import Event, add
from pipelines.emit.outbox.backlog import Backlog, backlog
from pipelines.emit.outbox.table import OUTBOX, outbox_table

__all__ = ["OUTBOX", "Backlog", "Event", "add", "backlog", "outbox_table"]
