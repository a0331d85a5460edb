"""The outbox for services that emit events: the table, and adding events in the service's own transaction."""

from pipelines.boundary.extras import extra

with extra("outbox", "the outbox"):
    from pipelines.emit.outbox import OUTBOX, Backlog, Event, add, backlog, outbox_table

__all__ = ["OUTBOX", "Backlog", "Event", "add", "backlog", "outbox_table"]
