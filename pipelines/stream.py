"""The long-lived process: drain for ever, and keep what is served current.

Two loops beside each other. Ingest commits whenever records come; the refresh derives and publishes whatever has been
committed by the time it is free, and at least every `derive_interval_seconds`, because windows move by themselves.
Ingest never waits for Redis: when publishing fails, that is reported and tried again (`isolated`).
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipelines.drain import drain_once, open_ingest
from pipelines.errors import TransientError
from pipelines.lake.commit import CommitRecord
from pipelines.refresh import derive_warehouse, publish_warehouse
from pipelines.reputation.derive import Derived
from pipelines.serving.publish import Published
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0


def stream(
    settings: Settings,
    stopping: threading.Event,
    on_commit: Callable[[CommitRecord], None],
    on_refresh: Callable[[Derived, Published], None],
) -> None:
    """Ingest and refresh until `stopping` is set; then finish the batch in hand, publish it, and return.

    Brokers and cache may come and go: each loop retries what is transient. Any other error ends both loops.
    """
    committed = threading.Event()
    with ThreadPoolExecutor(1, "refresh") as pool:
        refreshing = pool.submit(_refresh_loop, settings, stopping, committed, on_refresh)
        refreshing.add_done_callback(lambda _: stopping.set())
        try:
            _ingest_loop(settings, stopping, committed, on_commit)
        finally:
            stopping.set()
            committed.set()
        refreshing.result()


def _ingest_loop(
    settings: Settings, stopping: threading.Event, committed: threading.Event, on_commit: Callable[[CommitRecord], None]
) -> None:
    while not stopping.is_set():
        try:
            with open_ingest(settings) as ingest:
                while not stopping.is_set():
                    record = drain_once(ingest)
                    if record is not None:
                        on_commit(record)
                        committed.set()
        except TransientError as error:
            _LOG.warning("ingest: %s; trying again in %.0f s", error, _RETRY_SECONDS)
            stopping.wait(_RETRY_SECONDS)


def _refresh_loop(
    settings: Settings,
    stopping: threading.Event,
    committed: threading.Event,
    on_refresh: Callable[[Derived, Published], None],
) -> None:
    last = False
    while not last:
        committed.wait(settings.reputation.derive_interval_seconds)
        last = stopping.is_set()
        committed.clear()
        try:
            on_refresh(derive_warehouse(settings), publish_warehouse(settings))
        except TransientError as error:
            _LOG.warning("refresh: %s; trying again in %.0f s", error, _RETRY_SECONDS)
            committed.set()
            stopping.wait(_RETRY_SECONDS)
