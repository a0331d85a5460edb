"""A lake restored from a copy is behind what is served: the refusal names the remedy, and the remedy works."""

import re
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.errors import FencedError, exit_status_of
from pipelines.lake.copying import copy_lake
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify
from pipelines.refresh import publish_everything, publish_warehouse, refresh_warehouse
from pipelines.serving.client import connect
from pipelines.serving.publication_state import Stamp
from pipelines.serving.read import published, read_reputation
from pipelines.settings import Settings
from pipelines.stream import stream
from tests.draining import drain_all, query, send, valid_records, with_ingest
from tests.test_stream import score, serves, streaming


@pytest.fixture
def restored(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings of a restored lake, drained again: it has all events in fewer commits than what is served."""
    kafka = settings.kafka.model_copy(update={"partitions": 1})
    bus = with_ingest(settings.model_copy(update={"kafka": kafka}))
    send(bus, valid_records(range(10), "TransactionCompleted"))
    drain_all(bus)
    copy_lake(open_lake(bus.lake_root), str(tmp_path / "copy"))
    for first in range(10, 50, 10):
        send(bus, valid_records(range(first, first + 10), "TransactionCompleted"))
        drain_all(bus)
    _publish(bus)
    shutil.rmtree(bus.lake_root)
    shutil.move(tmp_path / "copy", bus.lake_root)
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(50,)]
    return bus


def test_publish_names_the_remedy(restored: Settings) -> None:
    """`publish` is refused and changes nothing; after the remedy it and all later ones succeed (`fenced`)."""
    served = _served(restored)
    refresh_warehouse(restored)
    for attempt in (publish_warehouse, publish_everything):
        with pytest.raises(FencedError) as refused:
            attempt(restored)
        assert _served(restored) == served
    assert exit_status_of(refused.value).exit_code == 83
    _follow(restored, str(refused.value))
    send(restored, valid_records(range(50, 60), "TransactionCompleted"))
    drain_all(restored)
    _publish(restored)
    assert [check for check in verify(restored) if not check.passed] == []


def test_stream_ends_and_names_the_remedy(restored: Settings) -> None:
    """`stream` ends rather than retrying; what it ingested is committed, and after the remedy it serves new events."""
    send(restored, valid_records([77], "TransactionCompleted"))
    with pytest.raises(FencedError) as refused:
        stream(restored, threading.Event(), lambda _: None, lambda *_: None)
    _follow(restored, str(refused.value))
    served = score(restored, _user(88))
    with streaming(restored):
        send(restored, valid_records([88], "TransactionCompleted"))
        serves(restored, _user(88), served + 1)


def _user(number: int) -> str:
    """Return the user of a valid record."""
    return (valid_records([number])[0].key or b"").decode()


def _served(settings: Settings) -> Stamp:
    found = published(settings)
    assert found is not None
    return found.stamp


def _publish(settings: Settings) -> None:
    refresh_warehouse(settings)
    publish_warehouse(settings)


def _follow(settings: Settings, message: str) -> None:
    """Do what a refusal says, with the key and the command taken from it."""
    remedy = re.search(r"delete the Redis key (\S+) and run `karmalake publish --full`", message)
    assert remedy, message
    with closing(connect(settings.redis)) as client:
        assert client.delete(remedy[1]) == 1
    publish_everything(settings)
    assert read_reputation("u-1", settings) is not None
