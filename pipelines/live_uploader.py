"""Uploading the warehouse of `stream` to a lake on S3, in a thread, less often than it is published on this machine.

An erasure does not wait for the interval. A failure is logged and never stops `stream`; the upload after the next
interval is a complete one, and after an erasure the next publication is uploaded.
"""

import time
from concurrent.futures import Executor, Future, wait

from pipelines.best_effort import best_effort
from pipelines.lake.stores import is_remote
from pipelines.reputation.warehouse_upload import upload_warehouse
from pipelines.settings import Settings


class LiveUploader:
    """Decides when a publication is uploaded. Not for use by several threads at once."""

    def __init__(self, settings: Settings, pool: Executor) -> None:
        self._settings, self._pool = settings, pool
        self._upload_now = best_effort(self._upload, "upload of the warehouse")
        self._due = time.monotonic()
        self._erasures: int | None = None
        """How many erasures the last upload reflects; None before the first one."""
        self._running: Future[None] | None = None

    def offer(self, publication: "Future[None]", erasures: int) -> None:
        """Upload the warehouse after a publication, if that is due; `erasures` is how many it reflects."""
        is_due = time.monotonic() >= self._due or erasures != self._erasures
        if is_due and (self._running is None or self._running.done()):
            self._submit(publication, erasures)

    def finish(self, publication: "Future[None]", erasures: int) -> None:
        """Wait for the upload in progress; upload the warehouse after the last publication if an erasure needs it."""
        if self._running is not None:
            wait([self._running])
        if erasures != self._erasures:
            self._submit(publication, erasures)
        if self._running is not None:
            wait([self._running])

    def _submit(self, publication: "Future[None]", erasures: int) -> None:
        if is_remote(self._settings.lake_root) and not self._settings.reputation.pinned:
            self._due = time.monotonic() + self._settings.reputation.upload_interval_seconds
            self._running = self._pool.submit(self._upload_now, publication, erasures)

    def _upload(self, publication: "Future[None]", erasures: int) -> None:
        if publication.exception() is None:  # else the publication that repeats it is offered
            upload_warehouse(self._settings.warehouse_path, self._settings.lake_root)
            self._erasures = erasures
