"""Tests of the checks: the crash tests and the audit catch sinks that are broken on purpose.

Each is the real drain with one function replaced. Plain losses and doubles are in test_audit.py; these sinks seem to
work, and not every check notices them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake.transaction import AddAction

from pipelines import drain as drain_module
from pipelines.contract.digest import Digests
from pipelines.lake.commit import CommitRecord, commit_batch, stage_events
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.runs import Runs
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.operate.verify import verify_lake
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.draining import contents, drain_all, send, with_ingest

_FAULTS = FaultRates(duplicates=0.2, conflicts=0.02, malformed=0.02)
Function = Callable[..., Any]


class PowerCutError(Exception):
    """The end of a process within a sink."""


def second_time(special: Function, usual: Function) -> Function:
    """Return a function that calls `special` the second time and `usual` otherwise."""
    calls: list[None] = []

    def either(*arguments: Any) -> Any:
        calls.append(None)
        return (special if len(calls) == 2 else usual)(*arguments)

    return either


def cut_off(*_: Any) -> None:
    raise PowerCutError


def real_sink(patch: pytest.MonkeyPatch) -> None:
    """End between the commit of the second batch and all that follows."""
    patch.setattr(drain_module, "complete_commits", second_time(cut_off, drain_module.complete_commits))


def drops_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Commit the checkpoints of the second batch without its events, counted as duplicates: the totals reconcile."""

    def drop(lake: Any, events: Any, _: Any, record: CommitRecord) -> CommitRecord:
        ranges = (replace(r, accepted=0, duplicates=r.duplicates + r.accepted) for r in record.ranges)
        return commit_batch(lake, events, [], replace(record, ranges=tuple(ranges)))

    patch.setattr(drain_module, "commit_batch", second_time(drop, commit_batch))


def commits_offsets_first(patch: pytest.MonkeyPatch) -> None:
    """Commit the checkpoints, then the events; end in between at the second batch."""
    between = second_time(cut_off, lambda: None)

    def commit(lake: Any, events: Any, files: list[AddAction], record: CommitRecord) -> CommitRecord:
        record = commit_batch(lake, events, [], record)
        between()
        commit_actions(events, files, {})
        events.update_incremental()
        return replace(record, version=events.version())

    patch.setattr(drain_module, "commit_batch", commit)


def dedupes_within_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Find no event_id of an earlier batch."""

    def find(_: Runs, ids: Digests) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(ids), bool), ids.payload.copy()

    patch.setattr(Runs, "find", find)


def swallows_an_error(patch: pytest.MonkeyPatch) -> None:
    """Ignore a failed file, and commit the others of the second batch."""

    def stage(*arguments: Any) -> list[AddAction]:
        return stage_events(*arguments)[1:]

    patch.setattr(drain_module, "stage_events", second_time(stage, stage_events))


@pytest.fixture(scope="module")
def reference(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a topic, and of a lake that it was drained into without faults."""
    kafka = local_settings.kafka.model_copy(update={"topic": "sinks", "group_id": "sinks"})
    data = {"data_dir": tmp_path_factory.mktemp("reference"), "kafka": kafka}
    reference = with_ingest(local_settings.model_copy(update=data), max_batch_records=1)
    records = list(simulate(21, 300, days=3, rates=_FAULTS).records)
    for start in range(0, len(records), len(records) // 4):
        send(reference, records[start : start + len(records) // 4])
    drain_all(reference)
    return reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        (real_sink, set[str]()),
        (drops_a_batch, {"audit", "comparison"}),
        (commits_offsets_first, {"audit", "comparison", "commit counts match the events"}),
        (dedupes_within_a_batch, {"audit", "comparison", "no duplicate event_id"}),
        (swallows_an_error, {"audit", "comparison", "commit counts match the events"}),
    ],
)
def test_a_broken_sink_is_caught(
    reference: Settings, tmp_path: Path, sink: Callable[[pytest.MonkeyPatch], None], expected: set[str]
) -> None:
    """Every loss and double is found; the real sink, also cut off, passes every check (`once`, `nothing-lost`)."""
    tried = reference.model_copy(update={"data_dir": tmp_path / "tried"})
    with pytest.MonkeyPatch.context() as patch:
        sink(patch)
        _drain_twice(tried)
    assert _found(tried, reference) == expected


def _drain_twice(settings: Settings) -> None:
    """Drain; if that is cut off, drain again."""
    try:
        drain_all(settings)
    except PowerCutError:
        drain_all(settings)


def _found(tried: Settings, reference: Settings) -> set[str]:
    """Return the failed checks: those of `karmalake verify` by name, the audit, the comparison with a normal run."""
    failed = {check.name for check in verify_lake(take_snapshot(open_lake(tried.lake_root))) if not check.passed}
    failed |= set() if audit(tried).passed else {"audit"}
    return failed if contents(tried) == contents(reference) else failed | {"comparison"}
