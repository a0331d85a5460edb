"""Another policy through Dagster: on the record, everything rescored, and how far that has come."""

import logging
from pathlib import Path

import dagster as dg
import pytest

from assets.resources import Karmalake
from assets.scores import reputation
from pipelines.backfill import backfill
from pipelines.settings import Settings
from pipelines.sources.files import Mapping
from tests.assets.running import materialize, metadata


def test_a_policy_is_put_in_force_and_everything_is_rescored(
    instance: dg.DagsterInstance, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The metadata names the policy and why everything was computed; the next run goes on from there."""
    settings = Settings(data_dir=tmp_path / "data")
    path = tmp_path / "rides.csv"
    path.write_text("who,at\nann,2024-05-01T10:00:00Z\n")
    backfill(settings, path, Mapping("who", "at", "iso", "TransactionCompleted"), lambda _: None)
    karmalake, chosen = Karmalake(lambda: settings), {"ops": {"reputation": {"config": {"policy": "ride-hailing"}}}}
    materialize(karmalake, instance, [reputation])
    with caplog.at_level(logging.INFO, "pipelines.reputation.derive"):
        rescored = metadata(materialize(karmalake, instance, [reputation], run_config=chosen), reputation)
    assert rescored["policy"].startswith("ride-hailing, version ")
    assert rescored["rebuilt"] == "policy, rules or lake are not those of before"
    assert [message for message in caplog.messages if "(8 of 8 steps)" in message]
    after = metadata(materialize(karmalake, instance, [reputation]), reputation)
    assert (after["policy"], after["rebuilt"]) == (rescored["policy"], "no")
