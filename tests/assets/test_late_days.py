"""Days to which events are added are requested again at any age, without a storm of runs."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from assets import lake, scores, sensors
from assets.definitions import build_defs
from assets.resources import Karmalake
from pipelines.lake.tables import is_lake
from pipelines.settings import Settings
from tests.draining import drain_all, send, valid_records

_HALF_PAST = datetime(2026, 5, 1, 10, 30, tzinfo=UTC)
_LONG_PAST = ("2024-02-28", "2024-03-01", "2025-06-30")


def report(instance: dg.DagsterInstance, key: dg.AssetKey, *days: str) -> None:
    for day in days:
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day))


@pytest.mark.slow
def test_each_updated_day_is_reported_once(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """By any committer, and also when an old day gets one more event; without new commits nothing is reported.

    Without a lake the sensor creates none.
    """

    def tick(cursor: str | None) -> tuple[list[str | None], str | None]:
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        answer = sensors.updated_days(context, karmalake=karmalake)
        assert isinstance(answer, dg.SensorResult)
        return [event.partition for event in answer.asset_events], answer.cursor

    without_lake = sensors.updated_days(dg.build_sensor_context(instance=instance), karmalake=karmalake)
    assert isinstance(without_lake, dg.SkipReason)
    assert not is_lake(settings.lake_root)
    for numbers in (range(24), range(24, 48)):
        send(settings, valid_records(numbers))
        drain_all(settings)
    touched, cursor = tick(None)
    assert touched == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert tick(cursor) == ([], cursor)
    send(settings, valid_records([48]))
    drain_all(settings)
    assert tick(cursor)[0] == ["2026-03-01"]


def test_updated_days_of_any_age_are_requested_once_an_hour(karmalake: Karmalake, instance: dg.DagsterInstance) -> None:
    """All days of an hour together, also for the trends; not before the hour has passed, and only once."""
    defs = build_defs(lambda: karmalake.settings, partitions_start="2024-01-01")
    selection = dg.AssetSelection.assets(scores.user_days, scores.trends)
    cursor = None

    def asked_at(minutes: int) -> list[set[str | None]]:
        nonlocal cursor
        now = _HALF_PAST + timedelta(minutes=minutes)
        result = dg.evaluate_automation_conditions(defs, instance, selection, evaluation_time=now, cursor=cursor)
        cursor = result.cursor
        return [set(result.get_requested_partitions(asset.key)) for asset in (scores.user_days, scores.trends)]

    report(instance, lake.event_days.key, *_LONG_PAST)
    report(instance, scores.user_days.key, *_LONG_PAST)
    report(instance, scores.trends.key, *_LONG_PAST)
    assert asked_at(0) == [set(), set()]
    report(instance, lake.event_days.key, _LONG_PAST[0])
    assert asked_at(1) == [set(), set()]
    report(instance, lake.event_days.key, _LONG_PAST[2])
    assert asked_at(36) == [{_LONG_PAST[0], _LONG_PAST[2]}] * 2
    for asset in (scores.user_days, scores.trends):
        report(instance, asset.key, _LONG_PAST[0], _LONG_PAST[2])
    assert asked_at(37) == [set(), set()]
    assert asked_at(96) == [set(), set()]


def test_days_requested_together_are_one_backfill() -> None:
    """The sensor requests the days of a tick as one backfill, and the policy runs each contiguous range as one run."""
    [late_days] = [sensor for sensor in sensors.sensors(Karmalake()) if sensor.name == "late_days"]
    assert isinstance(late_days, dg.AutomationConditionSensorDefinition)
    assert late_days.emit_backfills
    for asset in (scores.user_days, scores.trends):
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()
