"""The last entry of a log that a power cut tore: what was not acknowledged never was, and the next commit is whole."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import CorruptionError
from pipelines.lake import commit as commit_module
from pipelines.lake.commit import append
from pipelines.lake.tables import Lake
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, send, valid_records, with_ingest
from tests.lake.making import commit, make_events, stored

# What a disk may have of a file that was written, and not flushed, when the power went.
_TEARS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "half of it": lambda whole: whole[: len(whole) // 2],
    "its first line": lambda whole: whole.splitlines()[0],
    "all but its last line": lambda whole: b"\n".join(whole.splitlines()[:-1]),
    "its end in zeros": lambda whole: whole[:-40] + bytes(40),
}


class PowerCutError(Exception):
    """The end of everything."""


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake with two batches."""
    bus = with_ingest(settings, max_batch_records=1)
    for start in (0, 20):
        send(bus, valid_records(range(start, start + 25)))
    drain_all(bus)
    return bus


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_commit_is_made_again(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tear: str
) -> None:
    """Its events are there once, its checkpoint is where they end, and somebody is told (`atomic`, `nothing-lost`)."""
    send(bus, valid_records(range(40, 60)))

    def tear_it(entries: list[str]) -> None:
        (entry,) = map(Path, entries)
        if "/events/" in str(entry):
            entry.write_bytes(_TEARS[tear](entry.read_bytes()))
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "make_durable", tear_it)
        with pytest.raises(PowerCutError):
            drain_all(bus)
    with caplog.at_level(logging.WARNING):
        assert_verified(bus)
    assert "a power cut tore the last entry of a log" in caplog.text
    assert len(contents(bus)["events"]) == 45
    records = drain_all(bus)
    assert [sum(record.total(count) for record in records) for count in ("accepted", "duplicates")] == [15, 5]
    assert_verified(bus)
    assert len(contents(bus)["events"]) == 60


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_append(lake: Lake, tear: str) -> None:
    """A table beside `events` loses what did not count."""
    rows = make_events(["a"])
    append(lake, "conflicts", rows, "whole")
    append(lake, "conflicts", rows, "torn")
    entry = Path(lake.entry("conflicts", 2))
    entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    assert [row["batch_id"] for row in stored(lake, "conflicts")] == ["whole"]
    append(lake, "conflicts", rows, "again")
    assert [row["batch_id"] for row in stored(lake, "conflicts")] == ["again", "whole"]


def test_damage_within_a_log_is_not_mended(lake: Lake) -> None:
    """What is not the end of a log counted: it is reported, and nothing is set aside."""
    handle = lake.table("events")
    for number in range(3):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    entry = Path(lake.entry("events", 2))
    entry.write_bytes(entry.read_bytes()[:50])
    with pytest.raises(CorruptionError, match="events cannot be opened"):
        lake.table("events")
    assert entry.exists()
