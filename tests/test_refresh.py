"""What the Dagster assets use: a warehouse at a version of the lake, and the accounts of files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from pipelines.backfill import backfill, history_mapping, summarize_files
from pipelines.errors import ConfigurationError, TransientError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.refresh import refresh_draft, wait_for_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.derive import open_draft
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import HistorySettings, ReputationSettings, Settings, load_settings
from pipelines.sources.files import ColumnMapping
from tests.services.waiting import PATIENCE_SECONDS

_MAPPING = ColumnMapping("who", "at", "iso", "TransactionCompleted")


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


@pytest.mark.slow
def test_an_older_warehouse_is_refreshed_and_a_current_one_is_kept(loaded: Settings) -> None:
    """The second call returns the same file. One by another policy than the one in force is older, too."""
    with wait_for_warehouse(loaded, version(loaded)) as warehouse:
        assert warehouse.sql("SELECT sum(events) FROM user_days").item() == 2
    modified = loaded.warehouse_path.stat().st_mtime_ns
    wait_for_warehouse(loaded, version(loaded)).close()
    assert loaded.warehouse_path.stat().st_mtime_ns == modified
    chosen = load_policy("decayed-karma")
    activate(open_lake(loaded.lake_root), chosen)
    with wait_for_warehouse(loaded, version(loaded)) as warehouse:
        assert warehouse.info.policy == chosen


@pytest.mark.slow
def test_waiting_for_a_warehouse_that_another_process_holds(loaded: Settings) -> None:
    """The next publication of that process is returned; without one, the error is transient."""
    patient = loaded.model_copy(update={"reputation": ReputationSettings()})
    with open_draft(loaded.warehouse_path) as draft, ThreadPoolExecutor() as threads:
        with pytest.raises(TransientError, match="in use by another process"):
            wait_for_warehouse(loaded, version(loaded))
        waiting = threads.submit(wait_for_warehouse, patient, version(loaded))
        refresh_draft(draft, open_lake(loaded.lake_root), loaded)
        draft.publish()
        with waiting.result(PATIENCE_SECONDS) as warehouse:
            assert warehouse.sql("SELECT sum(events) FROM user_days").item() == 2


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_the_account_of_a_file_comes_from_the_lake(loaded: Settings, tmp_path: Path, ending: str) -> None:
    """In any format and by any process; the account of a file that was never loaded does not add up."""
    frame = pl.DataFrame({"who": ["ann", "", "cy"], "at": ["2024-05-01T10:00:00Z"] * 3})
    path, unread = tmp_path / f"more.{ending}", tmp_path / f"unread.{ending}"
    for each in (path, unread):
        {"csv": frame.write_csv, "parquet": frame.write_parquet, "ndjson": frame.write_ndjson}[ending](each)
    backfill(loaded, path, _MAPPING, lambda _: None)
    account, other = summarize_files(loaded, [path, unread], _MAPPING)
    assert (account.rows, account.accepted, account.duplicates, account.dead_letters) == (3, 1, 1, 1)
    assert account.reasons == {"missing_user_id": 1}
    assert (account.reconciles, other.rows, other.read, other.reconciles) == (True, 3, 0, False)


def test_the_order_of_metadata_does_not_matter() -> None:
    """The same columns in another order are the same mapping; an entry that is not a pair is explained."""
    values = {"KARMALAKE_HISTORY_METADATA": "rating=stars, rater_id=rider"}
    reordered = HistorySettings(metadata={"rater_id": "rider", "rating": "stars"})
    assert history_mapping(load_settings(values).history) == history_mapping(reordered)
    with pytest.raises(ConfigurationError, match=r"KARMALAKE_HISTORY_METADATA.* write name=column"):
        load_settings({"KARMALAKE_HISTORY_METADATA": "rating"})
