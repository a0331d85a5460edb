"""Old runs are deleted, materializations are not."""

from pathlib import Path

import dagster as dg
import pytest

from assets.retention import retention

_DAYS = dg.StaticPartitionsDefinition(["monday", "tuesday"])


@dg.asset
def whole() -> None: ...


@dg.asset(partitions_def=_DAYS)
def by_day() -> None: ...


@dg.asset
def broken() -> None:
    raise dg.Failure("by intent")


def forget(instance: dg.DagsterInstance, **days: int) -> None:
    assert retention.execute_in_process(
        instance=instance, run_config={"ops": {"delete_old_runs": {"config": days}}}
    ).success


@pytest.mark.slow
def test_old_runs_are_deleted_except_latest_materializations(tmp_path: Path) -> None:
    """Of old runs only the latest materializations remain; events and files of the others are deleted."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first, last = (dg.materialize([whole], instance=instance).run_id for _ in range(2))
        monday, tuesday, again = (
            dg.materialize([by_day], instance=instance, partition_key=day).run_id
            for day in ("monday", "tuesday", "monday")
        )
        failed = dg.materialize([broken], instance=instance, raise_on_error=False).run_id
        forget(instance, succeeded_days=1, other_days=1)
        assert {first, last, monday, tuesday, again, failed} <= {run.run_id for run in instance.get_runs()}
        forget(instance, succeeded_days=0, other_days=1)
        remaining = {run.run_id for run in instance.get_runs()}
        assert remaining >= {last, tuesday, again, failed}
        assert remaining.isdisjoint({first, monday})
        assert instance.get_materialized_partitions(by_day.key) == {"monday", "tuesday"}
        event = instance.get_latest_materialization_event(whole.key)
        assert event is not None
        assert event.run_id == last
        forget(instance, succeeded_days=0, other_days=0)
        assert failed not in {run.run_id for run in instance.get_runs()}
        files = {path.stem for path in tmp_path.rglob("*.db")}
        assert files.isdisjoint({first, monday, failed})
        assert files >= {last, tuesday, again}


@pytest.mark.slow
def test_a_retention_of_no_sense_deletes_nothing(tmp_path: Path) -> None:
    """A negative one would delete runs of this minute."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        runs = {dg.materialize([whole], instance=instance).run_id for _ in range(2)}
        for days in ({"succeeded_days": -1}, {"other_days": 10**9}):
            with pytest.raises(dg.Failure, match="retained for 0 to 36500 days"):
                forget(instance, **days)
        assert runs <= {run.run_id for run in instance.get_runs()}
