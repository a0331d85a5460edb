"""Failures say what to do, and only transient ones are retried."""

import errno
import json
import os
import signal
from pathlib import Path

import dagster as dg
import pytest

from assets.checks import reconciliation
from assets.definitions import build_defs
from assets.failures import RETRIES, explain_failures
from assets.launcher import WatchedRunLauncher
from assets.resources import Karmalake
from assets.scores import anomalies, reputation, reputation_cache
from pipelines.boundary.text import CONTROL_CHARS
from pipelines.errors import KarmalakeError, RejectedError, TransientError
from pipelines.settings import Settings
from tests.assets.running import materialize


@pytest.mark.parametrize(
    ("definition", "remedy"),
    [
        (reputation, "run `karmalake drain` or `karmalake demo` first"),
        (reconciliation, "run `karmalake drain` or `karmalake demo` first"),
        (anomalies, "materialize `reputation` first"),
        (reputation_cache, "materialize `reputation` first"),
    ],
)
def test_a_failure_has_a_remedy_and_a_help_link(
    instance: dg.DagsterInstance, tmp_path: Path, definition: dg.AssetsDefinition, remedy: str
) -> None:
    """The failure has the message, kind and help page of the error; the run is not retried."""
    karmalake = Karmalake(lambda: Settings(data_dir=tmp_path))
    selection = dg.AssetSelection.all() | dg.AssetSelection.all_asset_checks()
    result = materialize(karmalake, instance, [definition], selection=selection, raise_on_error=False)
    [event] = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.description is not None
    assert failure.description.endswith(remedy)
    metadata = {name: value.value for name, value in failure.metadata.items()}
    assert metadata["kind"] == "UsageError"
    assert metadata["code"] == "KL-USAGE"
    assert metadata["see"] == "karmalake errors KL-USAGE"
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_a_sensor_fails_like_an_asset(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Its tick has the message, without the raw texts of causes."""
    defs = build_defs(lambda: Settings(data_dir=tmp_path))
    context = dg.build_sensor_context(instance, definitions=defs, resources=defs.resources)
    with pytest.raises(dg.Failure, match="no Redis is configured"):
        defs.resolve_sensor_def("publications").evaluate_tick(context)


@pytest.mark.parametrize(("error", "again"), [(TransientError("gone"), True), (RejectedError("all"), False)])
def test_only_transient_failures_are_retried(error: KarmalakeError, again: bool) -> None:
    """The failure controls retries."""

    @explain_failures
    def compute() -> None:
        raise error

    with pytest.raises(dg.Failure) as failed:
        compute()
    assert failed.value.allow_retries is again


def _escaped_failure(instance: dg.DagsterInstance, asset: dg.AssetsDefinition) -> str | None:
    """Return the text of the failure of an asset, which Dagster shows without control characters."""
    result = dg.materialize([asset], instance=instance, raise_on_error=False)
    [event] = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data
    assert data.error is not None
    assert set(map(ord, data.error.to_string())) & set(CONTROL_CHARS) <= {ord("\n")}
    assert data.user_failure_data is not None
    return data.user_failure_data.description


def test_text_from_outside_is_escaped(instance: dg.DagsterInstance) -> None:
    """No control character of a server or a file reaches Dagster's page or terminal, not even by the error's cause."""

    @dg.asset
    @explain_failures
    def refused() -> None:
        raise TransientError("no column\x1b]0;x\x07\u202e\nat line 1") from OSError("\x1b[2J")

    assert _escaped_failure(instance, refused) == "no column\\x1b]0;x\\x07\\u202e\nat line 1"


def test_any_exception_is_escaped(instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture) -> None:
    """The failure has type and text; the log has the traceback with its causes."""

    @dg.asset
    @explain_failures
    def broken() -> None:
        raise ValueError("no column\x1b]0;x\x07") from OSError("\x1b[2Jcause")

    assert _escaped_failure(instance, broken) == "ValueError: no column\\x1b]0;x\\x07"
    [logged] = [record.getMessage() for record in caplog.records if record.name == "assets.failures"]
    assert "OSError: \\x1b[2Jcause" in logged
    assert "in broken" in logged
    assert set(map(ord, logged)) & set(CONTROL_CHARS) <= {ord("\n")}


def test_a_missing_permission_is_not_retried(
    instance: dg.DagsterInstance, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure says which file this is of, with the code of the command line and no traceback."""
    attempts: list[int] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    @explain_failures
    def denied() -> None:
        attempts.append(1)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "lock"))

    text = _escaped_failure(instance, denied)
    assert text.startswith(f"{tmp_path / 'lock'}: Permission denied; ")
    assert attempts == [1]
    assert not [record for record in caplog.records if record.name == "assets.failures"]


def test_a_terminated_step_does_not_start_again(instance: dg.DagsterInstance) -> None:
    """The first interrupt ends the run, also in a step whose failures are retried."""
    attempts: list[int] = []

    @dg.asset(retry_policy=RETRIES)
    @explain_failures
    def interrupted() -> None:
        attempts.append(len(attempts))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        dg.materialize([interrupted], instance=instance)
    assert attempts == [0]


def test_run_monitoring_detects_a_dead_run(tmp_path: Path) -> None:
    """A run is dead if its code server is gone; the health of a run in `dg launch` is unknown."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        launcher = WatchedRunLauncher()
        launcher.register_instance(instance)
        assert launcher.supports_check_run_worker_health
        dead = {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": str(tmp_path / "gone")})}
        states = {}
        for name, tags in {"gone": dead, "within": {}}.items():
            run = dg.DagsterRun("job", tags=tags, status=dg.DagsterRunStatus.STARTED)
            instance.add_run(run)
            states[name] = launcher.check_run_worker_health(run).status.value
        assert states == {"gone": "NOT_FOUND", "within": "RUNNING"}
