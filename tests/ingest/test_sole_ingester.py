"""A running ingester keeps its topic: one that comes later is refused, and a kill leaves nothing behind (`fenced`)."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.errors import FencedError
from pipelines.ingest import sole_ingester
from pipelines.ingester import ingest
from pipelines.settings import Settings
from pipelines.stream import stream
from tests.commands import KARMALAKE, Started
from tests.draining import assert_verified, drain_all, query, send, valid_records
from tests.services.process import ended
from tests.services.waiting import wait_for
from tests.test_crashes import environment


def _nothing(*_: object) -> None:
    """Report nothing."""


def _stream(settings: Settings) -> None:
    stream(settings, threading.Event(), _nothing, _nothing)


def _ingest(settings: Settings) -> None:
    ingest(settings, threading.Event(), _nothing)


def test_the_newcomer_is_refused(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stream`, `ingest` and `drain`, as Dagster calls it, name the one that runs; it goes on, until it is killed."""
    monkeypatch.setattr(sole_ingester, "_WAIT_SECONDS", 0)
    newcomers: list[Callable[[Settings], object]] = [_stream, _ingest, drain_all]
    ensure_topic(settings.kafka)
    send(settings, valid_records(range(10)))
    with ended(Started([*KARMALAKE, "ingest"], env=environment(settings), cwd=tmp_path)) as running:
        wait_for("its first commit", lambda: _stored(settings) == 10)
        for newcomer in newcomers:
            with pytest.raises(
                FencedError, match=rf"^process {running.pid} has ingested {settings.kafka.topic} into .* since"
            ):
                newcomer(settings)
        send(settings, valid_records(range(10, 20)))
        wait_for("it to go on", lambda: _stored(settings) == 20)
        other = settings.model_copy(
            update={"kafka": settings.kafka.model_copy(update={"topic": f"{settings.kafka.topic}-2"})}
        )
        ensure_topic(other.kafka)
        send(other, valid_records(range(20, 25)))
        assert sum(record.total("accepted") for record in drain_all(other)) == 5
        running.send_signal(signal.SIGKILL)
        running.wait()
    send(settings, valid_records(range(30, 35)))
    assert sum(record.total("accepted") for record in drain_all(settings)) == 5
    assert_verified(settings)


def _stored(settings: Settings) -> int:
    return (
        query(settings, "SELECT count(*) FROM events")[0][0] if (settings.data_dir / "lake" / "events").is_dir() else 0
    )
