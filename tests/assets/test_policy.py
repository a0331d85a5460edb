"""Activating another policy through Dagster: recorded, everything rescored, with progress in the log."""

import logging
from pathlib import Path

import dagster as dg
import pytest

from assets.resources import Karmalake
from assets.scores import reputation
from pipelines.backfill import backfill
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.assets.running import materialize, metadata


@pytest.mark.slow
def test_a_policy_is_activated_and_everything_is_rescored(
    instance: dg.DagsterInstance, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The metadata names the policy and the reason of the rebuild; the next run is incremental."""
    settings = Settings(data_dir=tmp_path / "data")
    path = tmp_path / "rides.csv"
    path.write_text("who,at\nann,2024-05-01T10:00:00Z\n")
    backfill(settings, path, ColumnMapping("who", "at", "iso", "TransactionCompleted"), lambda _: None)
    karmalake, chosen = Karmalake(lambda: settings), {"ops": {"reputation": {"config": {"policy": "ride-hailing"}}}}
    materialize(karmalake, instance, [reputation])
    with caplog.at_level(logging.INFO, "pipelines.reputation.derive"):
        rescored = metadata(materialize(karmalake, instance, [reputation], run_config=chosen), reputation)
    assert rescored["policy"].startswith("ride-hailing, version ")
    assert rescored["rebuilt"] == "the policy, its decay epoch, the SQL or the lake changed"
    assert [message for message in caplog.messages if "(11 of 11 steps)" in message]
    after = metadata(materialize(karmalake, instance, [reputation]), reputation)
    assert (after["policy"], after["rebuilt"]) == (rescored["policy"], "no")
