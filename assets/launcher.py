"""A run launcher for one machine that lets Dagster detect dead runs.

Dagster's default launcher cannot tell whether a run is alive. The code server that started a run reports when it is
killed. If the code server is killed too (the machine goes down, or `dg dev` is killed), the run counts as started for
hours, occupies its slot in the pool and blocks its backfill. Run monitoring uses this launcher to check.
"""

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError  # no public API for launchers
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus  # likewise
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """The default launcher with health checks of runs."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring marks runs as failed when their process is gone."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started a run whether it is still running."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "started by `dg launch`: its health cannot be checked")
        request = CanCancelExecutionRequest(run_id=run.run_id)
        try:
            answer = deserialize_value(client.can_cancel_execution(request), CanCancelExecutionResult)
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server that started it is gone")
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server that started it no longer runs it")
