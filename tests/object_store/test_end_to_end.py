"""End to end with the lake on an object store: it holds the same rows as a lake on disk."""

import random
import signal
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import duckdb
import pytest

from pipelines.errors import (
    IO,
    ConfigurationError,
    CorruptionError,
    TransientError,
    UsageError,
    exit_status_of,
    is_transient,
    one_line,
)
from pipelines.lake.copying import copy_lake
from pipelines.lake.stores import register_s3, resolve_store
from pipelines.lake.tables import data_files, open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase
from pipelines.operate.verify import verify
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import open_warehouse
from pipelines.serving.read import read_reputation
from pipelines.settings import Settings, load_settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.commands import KARMALAKE, Started
from tests.draining import assert_verified, contents, drain_all, query, send, valid_records, with_ingest
from tests.services.object_store import ObjectStore
from tests.test_crashes import environment

_FAULTS = FaultRates(duplicates=0.1, conflicts=0.02, mis_keyed=0.01, malformed=0.02)
pytestmark = pytest.mark.slow
_KILLS = 6
_SEED = 20260302


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings with one record batch of the producer in each batch."""
    return with_ingest(settings, max_batch_records=1)


def _on_disk(bus: Settings, folder: Path) -> Settings:
    """Return settings of the same topic with a lake in a local folder."""
    return bus.model_copy(update={"lake": bus.lake.model_copy(update={"uri": None}), "data_dir": folder})


def test_end_to_end(bus: Settings, tmp_path: Path) -> None:
    """Rows are those of a lake on disk, scores are served, and compaction, erasure and vacuum work as on disk."""
    records = list(simulate(_SEED, 400, days=2, rates=_FAULTS).records)
    for start in range(0, len(records), 150):
        send(bus, records[start : start + 150])
    disk = _on_disk(bus, tmp_path / "disk")
    drain_all(bus)
    drain_all(disk)
    expected = contents(disk)
    assert contents(bus) == expected
    assert compact(open_lake(bus.lake_root), 2)
    assert contents(bus) == expected
    refresh_warehouse(bus)
    publish_warehouse(bus)
    assert [check for check in verify(bus) if not check.passed] == []
    assert audit(bus).passed
    ((user_id,),) = query(bus, "SELECT min(user_id) FROM events")
    with open_warehouse(bus.data_dir) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM events").item() == len(expected["events"])
    assert read_reputation(user_id, bus)
    erase(bus, [user_id])
    vacuum(open_lake(bus.lake_root), 1)
    assert query(bus, "SELECT user_id FROM events").count((user_id,)) == 0
    assert read_reputation(user_id, bus) is None
    assert_verified(bus)


@contextmanager
def _draining(bus: Settings, name: str) -> Generator[Started]:
    """Yield a process that drains with its own data folder, as on another host, and kill it at the end."""
    settings = bus.model_copy(update={"data_dir": bus.data_dir / name})
    values = environment(settings) | {"KARMALAKE_LAKE_URI": str(bus.lake.uri)}
    output = subprocess.DEVNULL
    with Started([*KARMALAKE, "drain"], env=values, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_at_once_that_are_killed(bus: Settings, tmp_path: Path) -> None:
    """Two hosts ingest one topic into one lake, and are killed at any moment: each event is there once (`once`)."""
    rng = random.Random(_SEED)  # noqa: S311 - reproducible, not secret
    records = list(simulate(_SEED, 500, days=2, rates=_FAULTS).records)
    for start in range(0, len(records), 100):
        send(bus, records[start : start + 100])
    killed = 0
    for _ in range(_KILLS // 2):
        with ExitStack() as both:
            for process in [both.enter_context(_draining(bus, name)) for name in ("one", "other")]:
                with suppress(subprocess.TimeoutExpired):  # it completed, or was fenced
                    process.wait(rng.uniform(0.5, 2.5))
                process.kill()
                killed += process.wait() == -signal.SIGKILL
    assert killed > 0
    drain_all(bus)
    disk = _on_disk(bus, tmp_path / "disk")
    drain_all(disk)
    assert_verified(bus)
    assert contents(bus) == contents(disk)
    assert audit(bus).passed


def test_a_lake_moves_to_an_object_store(bus: Settings, tmp_path: Path) -> None:
    """A copy has the lake's rows, a second copy updates it, and ingest continues in it."""
    disk = _on_disk(bus, tmp_path / "disk")
    send(disk, valid_records(range(50)))
    drain_all(disk)
    first = copy_lake(open_lake(disk.lake_root), bus.lake_root)
    assert first.sent == first.files
    send(disk, valid_records(range(40, 80)))
    drain_all(disk)
    second = copy_lake(open_lake(disk.lake_root), bus.lake_root)
    assert 0 < second.sent < second.files
    assert contents(bus) == contents(disk)
    send(bus, valid_records(range(70, 90)))
    records = drain_all(bus)
    assert [sum(record.total(count) for record in records) for count in ("accepted", "duplicates")] == [10, 10]
    assert audit(bus).passed
    with pytest.raises(UsageError, match="was written to since"):
        copy_lake(open_lake(disk.lake_root), bus.lake_root)


def test_a_target_that_is_not_a_copy(bus: Settings, tmp_path: Path) -> None:
    """Another lake is not overwritten, and the error names a file that differs."""
    disk, other = _on_disk(bus, tmp_path / "disk"), _on_disk(bus, tmp_path / "other")
    send(bus, valid_records(range(10)))
    for each in (disk, other):
        drain_all(each)
    with pytest.raises(UsageError, match="holds another lake"):
        copy_lake(open_lake(disk.lake_root), other.lake_root)
    with pytest.raises(UsageError, match="is the lake itself"):
        copy_lake(open_lake(disk.lake_root), disk.lake_root)
    copy_lake(open_lake(disk.lake_root), bus.lake_root)
    file, *_ = data_files(open_lake(bus.lake_root).table("commits"))
    store, path = resolve_store(file)
    with store.open_output_stream(path) as writing:
        writing.write(b"something else")
    with pytest.raises(CorruptionError, match=f"{file} differs"):
        copy_lake(open_lake(disk.lake_root), bus.lake_root)


def test_a_store_that_does_not_answer(
    bus: Settings, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises a TransientError that names the store, and no checkpoint moves."""
    send(bus, valid_records(range(10)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match=f"{bus.lake_root}/events cannot be reached"):
        drain_all(bus)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.environment["AWS_ENDPOINT_URL"])
    assert sum(record.total("accepted") for record in drain_all(bus)) == 10


def test_a_store_that_does_not_answer_a_query(bus: Settings, object_store: ObjectStore) -> None:
    """An outage that DuckDB meets is transient too, and its message is the store's, not a traceback."""
    send(bus, valid_records(range(10)))
    drain_all(bus)
    file, *_ = data_files(open_lake(bus.lake_root).table("events"))
    with duckdb.connect() as connection:
        register_s3(connection)
        object_store.toggle_refusals()
        with pytest.raises(duckdb.Error) as refused:
            connection.execute("FROM read_parquet([?])", [file])
    object_store.toggle_refusals()
    assert is_transient(refused.value)
    assert exit_status_of(refused.value) == IO
    assert one_line(refused.value).startswith(f"When getting information for key '{file.removeprefix('s3://lakes/')}'")


@pytest.mark.parametrize(
    "uri", ["gs://bucket/lake", "s3://bucket", "s3://bucket/", "s3://bucket/la?ke", "s3://bucket/[ke]", "lake"]
)
def test_an_unsupported_lake_uri(uri: str, tmp_path: Path) -> None:
    """Other schemes, and a bucket without a path, are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="KARMALAKE_LAKE_URI"):
        load_settings({"KARMALAKE_LAKE_URI": uri}, tmp_path)
