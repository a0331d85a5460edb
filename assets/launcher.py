"""Where runs are launched on one machine, so that Dagster notices what is no more.

Dagster's own launcher cannot say whether a run is alive. A run that is killed is reported by the code server that
started it; but when that one is killed as well (the machine went down, `dg dev` was killed), the run counts as started
for hours, keeps its place in the pool and holds up its backfill. Run monitoring asks this one.
"""

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError  # what a launcher is made of
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus  # likewise
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """The default launcher, whose runs can be asked for."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring marks runs as failed whose process is no more."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started a run whether it has it in work."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "`dg launch` runs it: nobody can be asked")
        request = CanCancelExecutionRequest(run_id=run.run_id)
        try:
            answer = deserialize_value(client.can_cancel_execution(request), CanCancelExecutionResult)
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server that started it is no more")
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server that started it has it no more")
