"""The embedded broker (Tansu) and cache (Valkey): start, stop, status and addresses.

They serve the demo and the fast tests on one machine. Both listen on 127.0.0.1 only and keep everything in memory:
after a restart topics have new ids and the cache is empty. The cache has a password, in a file that only this user can
read; the broker has none, so other users of the machine can use it.
"""

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from pipelines.boundary.file_lock import is_locked
from pipelines.errors import TransientError
from pipelines.local.binaries import broker_binary, cache_binary
from pipelines.local.process import (
    ProcessFiles,
    ProcessState,
    find_running,
    hold_lock,
    last_port,
    launch,
    log_tail,
    read_last_state,
    terminate,
    wait_until,
)
from pipelines.settings import Settings

HOST = "127.0.0.1"
BROKER = "broker"
CACHE = "cache"
_READY_SECONDS = 20.0
_PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class LocalService:
    """A running embedded service."""

    name: str
    process: ProcessState
    log: Path

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.process.port}"


@dataclass(frozen=True, slots=True)
class LocalServices:
    """The running embedded services, with notices for the user about how they were started."""

    broker: LocalService | None
    cache: LocalService | None
    notices: tuple[str, ...] = ()


def start(settings: Settings) -> LocalServices:
    """Start the embedded services for which no server is configured; reuse running ones.

    State and logs are in `settings.local_dir`. Several processes may call it concurrently. Raises TransientError with
    the end of the log if a service does not start, ConfigurationError if there is no binary for this platform. A crash
    leaves services that the next call finds.
    """
    notices: list[str] = []
    with hold_lock(settings.local_dir / "start.lock"):
        broker = cache = None
        if settings.kafka.bootstrap_servers is None:
            broker = _ensure(settings, BROKER, _broker_command, notices)
        else:
            notices.append("a Kafka broker is configured: no local broker is started")
        if settings.redis.url is None:
            cache = _ensure(settings, CACHE, partial(_cache_command, password_file(settings)), notices)
        else:
            notices.append("a Redis server is configured: no local cache is started")
    return LocalServices(broker, cache, tuple(notices))


def stop(settings: Settings) -> tuple[str, ...]:
    """End the embedded services of `settings.local_dir`; return the names of those that were running."""
    if not settings.local_dir.exists():
        return ()
    with hold_lock(settings.local_dir / "start.lock"):
        return tuple(name for name in (BROKER, CACHE) if terminate(_files(settings, name)))


def status(settings: Settings) -> LocalServices:
    """Return the running embedded services."""
    return LocalServices(_find(settings, BROKER), _find(settings, CACHE))


def with_local_endpoints(settings: Settings) -> Settings:
    """Return settings with the addresses of running embedded services, unless servers are configured.

    Configured addresses are unchanged. If there is neither, the setting stays None and the client raises an error, also
    where the services are those of another user, whose folder this one may not read.
    """
    kafka, redis = settings.kafka, settings.redis
    try:
        found = status(settings)
        login = _login(settings) if redis.url is None and found.cache is not None else ""
    except PermissionError:
        return settings
    if kafka.bootstrap_servers is None and found.broker is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": found.broker.address})
    if redis.url is None and found.cache is not None:
        redis = redis.model_copy(update={"url": SecretStr(f"redis://{login}{found.cache.address}/0")})
    return settings.model_copy(update={"kafka": kafka, "redis": redis})


def password_file(settings: Settings) -> Path:
    """Return the file with the password of the embedded cache, in Valkey's configuration format."""
    return settings.local_dir.absolute() / "cache.conf"


def _login(settings: Settings) -> str:
    """Return the user info part of the URL; empty for a cache that an earlier version started."""
    try:
        return f":{password_file(settings).read_text(encoding='utf-8').split()[1]}@"
    except FileNotFoundError:
        return ""


def _files(settings: Settings, name: str) -> ProcessFiles:
    return ProcessFiles(settings.local_dir.absolute(), name)


def _find(settings: Settings, name: str) -> LocalService | None:
    files = _files(settings, name)
    state = find_running(files)
    return None if state is None else LocalService(name, state, files.log)


def _ensure(settings: Settings, name: str, command: Callable[[int], list[str]], notices: list[str]) -> LocalService:
    found = _find(settings, name)
    if found is not None:
        return found
    files = _files(settings, name)
    previous, port = read_last_state(files), last_port(files)
    if previous is not None:
        notices.append(
            f"the local {name} (pid {previous.pid}) had ended; a new one was started without the old one's data, "
            f"which was in memory (log of the old one: {files.previous_log})"
        )
    return LocalService(name, _launch_ready(files, command, port), files.log)


def _launch_ready(files: ProcessFiles, command: Callable[[int], list[str]], preferred_port: int) -> ProcessState:
    if files.log.exists():
        files.log.replace(files.previous_log)
    port = _free_port(preferred_port)
    for _ in range(_PORT_ATTEMPTS):
        state = launch(files, command(port), port)
        wait_until(lambda: _connects(port) or not is_locked(files.lock), _READY_SECONDS)  # noqa: B023 # called here
        if _connects(port) and is_locked(files.lock):
            return state
        terminate(files)
        port = _free_port(0)  # another process may have taken the port meanwhile
    raise TransientError(f"the local {files.name} did not start; the end of {files.log}:\n{log_tail(files)}")


def _free_port(preferred: int) -> int:
    """Return a free port: `preferred`, which clients may know, if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise TransientError(f"there is no free port on {HOST}")


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _broker_command(port: int) -> list[str]:
    url = f"tcp://{HOST}:{port}"
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    return [str(broker_binary()), "broker", *options]


def _cache_command(password: Path, port: int) -> list[str]:
    if not password.exists():
        _write_password(password)
    return [str(cache_binary()), str(password), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no"]


def _write_password(path: Path) -> None:
    """Generate a password in a file; every user could read the arguments of a process."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(f"requirepass {secrets.token_urlsafe(32)}\n")
    temporary.replace(path)
