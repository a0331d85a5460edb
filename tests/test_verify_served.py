"""verify's advice about what is served: followed to the letter, it makes verify pass (`fresh`)."""

from contextlib import closing

import pytest

from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.serving.client import connect
from pipelines.serving.read import read_reputation
from pipelines.settings import Settings
from pipelines.verify import Check, verify_served
from tests.draining import drain_all, send, valid_records, with_ingest


@pytest.fixture
def served(settings: Settings) -> Settings:
    """Return settings of a warehouse whose documents are published."""
    bus = with_ingest(settings)
    send(bus, valid_records(range(30), "TransactionCompleted"))
    drain_all(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    return bus


def _check(settings: Settings) -> Check:
    [check] = verify_served(settings)
    return check


@pytest.mark.parametrize("document", [None, b"{}", b"7", b"\xff"])
def test_the_advice_for_a_document_that_is_gone_or_foreign_works(served: Settings, document: bytes | None) -> None:
    """Publishing alone would write nothing, since nothing changed; what is no document is told, not raised."""
    assert _check(served).passed
    bookkeeping = f"{served.redis.prefix}.publication"
    with closing(connect(served.redis)) as client:
        key = f"{served.redis.prefix}:u-1"
        client.delete(key)
        if document is not None:
            client.set(key, document)
        failed = _check(served)
        assert failed.passed is False
        assert "\n" not in failed.evidence
        assert ".publication" in failed.evidence
        assert publish_warehouse(served).written == 0
        assert not _check(served).passed
        client.delete(bookkeeping)
    assert publish_warehouse(served).full
    assert _check(served).passed
    assert read_reputation("u-1", served) is not None
