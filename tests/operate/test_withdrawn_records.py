"""Withdrawals of what a source made of records: requeued ones, erased users, and the same load more than once."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.drain import drain, open_ingest_from
from pipelines.ingest.sample import RecordSample
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import vacuum
from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.source_files import read_source
from pipelines.operate.dead_letters import Requeued, Selection, count_dead_letters, requeue
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.loads import list_loads, withdraw_loads, withdrawn_since
from pipelines.operate.verify import verify_erased, verify_index
from pipelines.settings import IngestSettings, Settings
from tests.draining import assert_verified, query
from tests.mapping.sources import records

_SOURCE = """
topic = "rides"
format = "json"
user_id = "driver"
time = "at"
time_unit = "iso"
action_type = "DriverRated"
event_id = "id"
metadata = { rating = "stars" }
"""
_COUNT = "SELECT count(*) FROM events"


@pytest.fixture
def busless(tmp_path: Path) -> Settings:
    """Return settings without a bus, with a folder of source files that has `rides`."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "rides.toml").write_text(_SOURCE)
    settings = Settings(data_dir=tmp_path / "data", ingest=IngestSettings(max_dead_letter_share=1.0))
    return settings.model_copy(update={"sources": settings.sources.model_copy(update={"folder": folder})})


def _ride(number: int, **fields: Any) -> bytes:
    ride = {"id": f"e-{number}", "driver": f"d{number % 3}", "at": "2026-01-31T12:00:00Z", "stars": number % 5}
    return json.dumps(ride | fields).encode()


@contextmanager
def _ingesting(settings: Settings) -> Generator[Callable[..., None]]:
    """Yield a function that ingests records of a topic by the source as it is now, without a bus.

    With another topic id it reads them again, as a replay does.
    """
    source = read_source(_path(settings))
    with open_mapping(source, settings) as decode:

        def ingest(values: list[bytes], topic_id: str = "id-of-topic") -> None:
            rows = records(values)
            place = rows.schema.get_field_index("topic_id")
            rows = rows.set_column(place, rows.schema.field(place), pa.array([topic_id] * len(rows)))
            with open_ingest_from(RecordSample(source, rows, decode), settings) as opened:
                drain(opened, lambda _: None)

        yield ingest


def _path(settings: Settings) -> Path:
    assert settings.sources.folder
    return settings.sources.folder / "rides.toml"


def _states(settings: Settings) -> list[tuple[str, int, str]]:
    return [(load["origin"], load["accepted"], load["state"]) for load in list_loads(settings)]


def _fates(settings: Settings) -> dict[str, int]:
    return {each.fate: each.records for each in count_dead_letters(settings, Selection(None))}


def _verify(settings: Settings) -> None:
    assert_verified(settings)
    checks = [verify_index(settings), verify_erased(settings)]
    assert all(check.passed is not False for check in checks), checks


@pytest.mark.slow
def test_a_withdrawn_requeue_opens_its_dead_letters(busless: Settings) -> None:
    """They can be requeued again by another text, and close with the load that they are of (`nothing-lost`)."""
    nested = [_ride(n, driver=None, who={"driver": f"d{n}"}) for n in range(3)]
    with _ingesting(busless) as ingest:
        ingest([*(_ride(n) for n in range(10, 20)), *nested])
    assert _fates(busless) == {"open": 3}
    (first,) = list_loads(busless)
    _path(busless).write_text(_SOURCE.replace('"driver"', '"who.driver"').replace("DriverRated", "Wrong"))
    assert requeue(busless, Selection()) == Requeued(3, 0, 0, still_rejected=0)
    assert _fates(busless) == {"requeued": 3}
    second = list_loads(busless)[-1]
    assert (second["load"] == first["load"], second["accepted"]) == (False, 3)
    assert withdraw_loads(busless, [second["load"]], "the action was wrong").closed == 0
    assert _fates(busless) == {"open": 3}
    assert query(busless, _COUNT) == [(10,)]
    _verify(busless)
    _path(busless).write_text(_SOURCE.replace('"driver"', '"who.driver"'))
    assert requeue(busless, Selection()) == Requeued(3, 0, 0, still_rejected=0)
    assert query(busless, "SELECT action_type, count(*) FROM events GROUP BY ALL") == [("DriverRated", 13)]
    _verify(busless)
    withdraw_loads(busless, [list_loads(busless)[-1]["load"]], "again")
    assert withdraw_loads(busless, [first["load"]], "all of it").closed == 3
    assert (query(busless, _COUNT), _fates(busless)) == ([(0,)], {"discarded": 3})
    _verify(busless)


@pytest.mark.slow
def test_an_erased_user_of_a_withdrawn_load_stays_out(busless: Settings) -> None:
    """Whichever comes first, erasure or withdrawal, and when the load returns; the account adds up (`erasable`)."""
    values = [_ride(n) for n in range(12)]
    with _ingesting(busless) as ingest:
        ingest(values)
        erase_without_documents(busless, ["d0"])
        (load,) = [each["load"] for each in list_loads(busless)]
        done = withdraw_loads(busless, [load], "wrong")
        assert done.record is not None
        assert [each.events for each in done.record.withdrawn] == [8]
        erase_without_documents(busless, ["d1"])
        _verify(busless)
        vacuum(open_lake(busless.lake_root), 0)
        ingest(values, "replay-1")
    assert query(busless, "SELECT DISTINCT user_id FROM events") == [("d2",)]
    _verify(busless)


@pytest.mark.slow
def test_a_load_is_withdrawn_again_and_again(busless: Settings) -> None:
    """Each time what came since the last one, and nothing twice; an answer as of before says what it lacks (`once`)."""
    values = [_ride(n) for n in range(10)]
    with _ingesting(busless) as ingest:
        ingest(values)
        loaded = datetime.now(UTC)
        (load,) = {each["load"] for each in list_loads(busless)}
        for again in (1, 2):
            done = withdraw_loads(busless, [load], f"reason {again}")
            assert done.record is not None
            assert [each.events for each in done.record.withdrawn] == [10]
            assert withdraw_loads(busless, [load], "twice").record is None
            assert query(busless, _COUNT) == [(0,)]
            ingest(values, f"replay-{again}")
            assert query(busless, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(10, 10)]
    _verify(busless)
    assert query(busless, "SELECT sum(events)::INT, count(*) FROM withdrawn") == [(20, 2)]
    assert (withdrawn_since(busless, loaded), withdrawn_since(busless, datetime.now(UTC))) == (10, 0)
