"""An outage of the object store under a running `stream`."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.errors import KarmalakeError
from pipelines.lake.tables import create_lake
from pipelines.operate.verify import verify
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import parse_policy
from pipelines.settings import Settings
from pipelines.stream import stream
from tests.draining import score, send, valid_records, with_ingest
from tests.services.object_store import ObjectStore
from tests.services.waiting import wait_for

pytestmark = pytest.mark.slow
_POLICY = parse_policy('name = "points"\nversion = "1"\n[actions.A]\npoints = 3\n')
_SECONDS = 120.0
"""The libraries retry a request to the store for a while before they fail."""


def _serves(settings: Settings, points: int) -> None:
    wait_for(f"u-0 to have {points} points", lambda: score(settings, "u-0") == points, _SECONDS)


def test_a_store_that_goes_away_for_a_while(settings: Settings, object_store: ObjectStore) -> None:
    """Both loops meet the outage and retry: neither ends, no event is lost or counted twice, and all are served."""
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    bus = with_ingest(settings.model_copy(update={"reputation": reputation}))
    outages: set[str] = set()
    stopping = threading.Event()

    def record_outage(loop: str, outage: KarmalakeError | None) -> None:
        if outage is not None:
            outages.add(loop)

    activate(create_lake(bus.lake_root), _POLICY)
    send(bus, valid_records(range(7)))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, bus, stopping, lambda _: None, lambda *_: None, record_outage)
        try:
            _serves(bus, 3)
            object_store.toggle_refusals()
            try:
                send(bus, valid_records(range(7, 14)))
                wait_for("the outage in both loops", lambda: done.done() or outages == {"ingest", "refresh"}, _SECONDS)
            finally:
                object_store.toggle_refusals()
            _serves(bus, 6)
        finally:
            stopping.set()
        done.result(_SECONDS)
    refresh_warehouse(bus)
    assert publish_warehouse(bus).written == 0
    assert [check for check in verify(bus) if not check.passed] == []
