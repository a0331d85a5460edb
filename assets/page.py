"""Dagster's page behind our access control: Dagster's own server accepts any host name, and has no token."""

import logging
import os
import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path

from dagster import DagsterInstance, DagsterInvalidConfigError
from dagster._cli.utils import get_possibly_temporary_instance_for_cli
from dagster._cli.workspace.cli_target import workspace_opts_to_load_target
from dagster._core.remote_representation.grpc_server_registry import GrpcServerRegistry
from dagster._core.workspace.context import WEBSERVER_GRPC_SERVER_HEARTBEAT_TTL, WorkspaceProcessContext
from dagster._grpc.constants import GrpcServerCommand
from dagster_shared.cli import WorkspaceOpts
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.cli import DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_MAX_OVERFLOW, DEFAULT_POOL_RECYCLE
from sqlalchemy.exc import DBAPIError

from pipelines.errors import ConfigurationError, TransientError, truncate
from pipelines.pages import server
from pipelines.settings import PageSettings

_LOG = logging.getLogger(__name__)
_MODULE = "karmalake.dagster"
_POLL_MILLISECONDS = 2_000
"""How often the page asks for news of assets, as in Dagster's own server."""
_CHECK_SECONDS = 0.1


def serve(listening: socket.socket, host: str, token: str, settings: PageSettings, workspace: Path | None) -> None:
    """Serve the page of a workspace file, or of our assets, until SIGTERM or Ctrl-C; then end its code servers.

    The instance is that of DAGSTER_HOME, which gets our dagster.yaml if it is empty, or a temporary one. Code servers
    end when the runs that they launched have.
    Raises ConfigurationError if Dagster refuses its files, TransientError if the database of its runs does not answer.
    """
    options = WorkspaceOpts(workspace=[str(workspace)]) if workspace else WorkspaceOpts(module_name=[_MODULE])
    with ExitStack() as stack:
        with _explained("DAGSTER_HOME and its dagster.yaml"):
            _prepare_home(os.environ.get("DAGSTER_HOME"))
            instance = stack.enter_context(get_possibly_temporary_instance_for_cli("karmalake dagster"))
        with _explained(f"--workspace {workspace}"):
            target = workspace_opts_to_load_target(options)
        registry = stack.enter_context(_code_servers(instance))
        instance.optimize_for_webserver(DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW)
        with WorkspaceProcessContext(instance, target, grpc_server_registry=registry) as context:
            app = create_app_from_workspace_process_context(context, live_data_poll_rate=_POLL_MILLISECONDS)
            server.serve(app, listening, host, token, settings)


def _prepare_home(home: str | None) -> None:
    """Write our dagster.yaml to an empty DAGSTER_HOME: Dagster's defaults let two runs write at once.

    One of them fails then, and a killed run is neither detected nor run again. A folder in use may be that of others,
    whose runs our limits would hold up or end.
    """
    if not home:
        _LOG.warning("DAGSTER_HOME is not set: the runs of this page wait for a daemon, and end with the page")
        return
    path = Path(home).expanduser() / "dagster.yaml"
    if not path.is_absolute() or not path.parent.is_dir() or os.path.lexists(path):
        return
    if any(path.parent.iterdir()):
        _LOG.warning(
            "%s is missing, and its folder is in use: two runs may write at once, and one fails; write the file "
            "with the concurrency, run_launcher, run_monitoring and run_retries that an empty DAGSTER_HOME gets",
            path,
        )
        return
    packaged = files("assets").joinpath(path.name)
    ours = packaged if packaged.is_file() else Path(__file__).parents[1] / path.name
    path.write_bytes(ours.read_bytes())
    _LOG.warning("wrote %s, so that runs which write wait for each other: start the daemon again if it runs", path)


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Raise what Dagster raises while it reads `what` as one of our errors, by what an operator can do about it."""
    try:
        yield
    except Exception as error:  # of Dagster, of YAML, of a storage's library: they have no class in common
        if isinstance(outage := error.__cause__, DBAPIError):
            raise TransientError(
                f"the database of Dagster's runs does not answer: {_one_line(outage.orig)}; check that it runs, and "
                "its address, user and password"
            ) from error
        refused = error.errors[0].message if isinstance(error, DagsterInvalidConfigError) else error
        raise ConfigurationError(f"{what}: {_one_line(refused)}") from error


def _one_line(text: object) -> str:
    return truncate(" ".join(str(text).split()))


@contextmanager
def _code_servers(instance: DagsterInstance) -> Generator[GrpcServerRegistry]:
    """Yield what starts the code servers of a workspace; at the end, wait for them."""
    registry = GrpcServerRegistry(
        instance_ref=instance.get_ref(),
        server_command=GrpcServerCommand.API_GRPC,
        heartbeat_ttl=WEBSERVER_GRPC_SERVER_HEARTBEAT_TTL,
        startup_timeout=instance.code_server_process_startup_timeout,
        wait_for_processes_on_shutdown=False,
        log_level="WARNING",
    )
    try:
        with registry:
            yield registry
    finally:
        while not registry.are_all_servers_shut_down():
            time.sleep(_CHECK_SECONDS)
        registry.wait_for_processes()
