"""What Dagster stands on: a warehouse as of a version of the lake, and the accounts of files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from pipelines.backfill import account_for, backfill, mapping_of
from pipelines.errors import ConfigurationError, TransientError
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.refresh import refresh_draft, warehouse_of
from pipelines.reputation.derive import open_draft
from pipelines.settings import HistorySettings, ReputationSettings, Settings, load_settings
from pipelines.sources.files import Mapping
from tests.services.waiting import PATIENCE_SECONDS

_MAPPING = Mapping("who", "at", "iso", "TransactionCompleted")


@pytest.fixture
def loaded(tmp_path: Path) -> Settings:
    """Load two events."""
    settings = Settings(data_dir=tmp_path / "data", reputation=ReputationSettings(derive_interval_seconds=0.02))
    path = tmp_path / "events.csv"
    path.write_text("who,at\nann,2024-05-01T10:00:00Z\nbob,2024-05-02T10:00:00Z\n")
    backfill(settings, path, _MAPPING, lambda _: None)
    return settings


def version(settings: Settings) -> int:
    return take_snapshot(open_lake(settings.lake_root)).version


def test_what_is_behind_is_derived_and_what_is_not_is_left(loaded: Settings) -> None:
    """The second time the same file serves."""
    with warehouse_of(loaded, version(loaded)) as warehouse:
        assert warehouse.sql("SELECT sum(events) FROM user_days").item() == 2
    made = loaded.warehouse_path.stat().st_mtime_ns
    warehouse_of(loaded, version(loaded)).close()
    assert loaded.warehouse_path.stat().st_mtime_ns == made


def test_what_another_process_keeps_is_waited_for(loaded: Settings) -> None:
    """Its next publication serves; without one, trying again may help."""
    patient = loaded.model_copy(update={"reputation": ReputationSettings()})
    with open_draft(loaded.warehouse_path) as draft, ThreadPoolExecutor() as threads:
        with pytest.raises(TransientError, match="kept by another process"):
            warehouse_of(loaded, version(loaded))
        waiting = threads.submit(warehouse_of, patient, version(loaded))
        refresh_draft(draft, open_lake(loaded.lake_root), loaded)
        draft.publish()
        with waiting.result(PATIENCE_SECONDS) as warehouse:
            assert warehouse.sql("SELECT sum(events) FROM user_days").item() == 2


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_the_account_of_a_file_is_of_the_lake(loaded: Settings, tmp_path: Path, ending: str) -> None:
    """Whoever loaded it, and in whatever format; one that was never loaded does not add up."""
    frame = pl.DataFrame({"who": ["ann", "", "cy"], "at": ["2024-05-01T10:00:00Z"] * 3})
    path, unread = tmp_path / f"more.{ending}", tmp_path / f"unread.{ending}"
    for each in (path, unread):
        {"csv": frame.write_csv, "parquet": frame.write_parquet, "ndjson": frame.write_ndjson}[ending](each)
    backfill(loaded, path, _MAPPING, lambda _: None)
    account, other = account_for(loaded, [path, unread], _MAPPING)
    assert (account.rows, account.accepted, account.duplicates, account.dead_letters) == (3, 1, 1, 1)
    assert account.reasons == {"missing_user_id": 1}
    assert (account.adds_up, other.rows, other.read, other.adds_up) == (True, 3, 0, False)


def test_the_order_of_metadata_means_nothing() -> None:
    """The same columns are the same file, however settings name them; what is no pair is explained."""
    said = {"KARMALAKE_HISTORY_METADATA": "rating=stars, rater_id=rider"}
    turned = HistorySettings(metadata={"rater_id": "rider", "rating": "stars"})
    assert mapping_of(load_settings(said).history) == mapping_of(turned)
    with pytest.raises(ConfigurationError, match=r"KARMALAKE_HISTORY_METADATA.* say name=column"):
        load_settings({"KARMALAKE_HISTORY_METADATA": "rating"})
