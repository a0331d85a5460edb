"""The embedded broker (Tansu) and cache (Valkey): start, stop, status, and where they listen.

They serve the demo and the fast tests on one machine. Both listen on 127.0.0.1 only and keep everything in
memory: after a restart the topics are new ones (with new ids) and the cache is empty. The cache has a password, which
stands in a file that only this user can read; the broker has none, so that other users of the machine can use it.
"""

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from pipelines.errors import TransientError
from pipelines.local.binaries import broker_binary, cache_binary
from pipelines.local.process import (
    ProcessFiles,
    ProcessState,
    exclusive,
    is_locked,
    launch,
    log_tail,
    recorded,
    running,
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
    """The embedded services that run, and what a person should know about how they came to."""

    broker: LocalService | None
    cache: LocalService | None
    notices: tuple[str, ...] = ()


def start(settings: Settings) -> LocalServices:
    """Start the embedded services that settings do not replace by configured ones; running ones are reused.

    State and logs are in `settings.local_dir`. Safe to call from several processes at once.
    Raises TransientError with the end of the log if a service does not come up, ConfigurationError if there is no
    binary for this platform. A crash leaves services that the next call finds.
    """
    notices: list[str] = []
    with exclusive(settings.local_dir / "start.lock"):
        broker = cache = None
        if settings.kafka.bootstrap_servers is None:
            broker = _ensure(settings, BROKER, _broker_command, notices)
        else:
            notices.append("a Kafka broker is configured: no local one is started")
        if settings.redis.url is None:
            cache = _ensure(settings, CACHE, partial(_cache_command, password_file(settings)), notices)
        else:
            notices.append("a Redis server is configured: no local one is started")
    return LocalServices(broker, cache, tuple(notices))


def stop(settings: Settings) -> tuple[str, ...]:
    """End the embedded services of `settings.local_dir`, and no other process; return the names of those that ran."""
    if not settings.local_dir.exists():
        return ()
    with exclusive(settings.local_dir / "start.lock"):
        return tuple(name for name in (BROKER, CACHE) if terminate(_files(settings, name)))


def status(settings: Settings) -> LocalServices:
    """Return the embedded services that run now."""
    return LocalServices(_find(settings, BROKER), _find(settings, CACHE))


def with_local_endpoints(settings: Settings) -> Settings:
    """Return settings that name the running embedded services where no other ones are configured.

    What is configured stays. Where neither is to be had, the setting stays None and the client says what to do.
    """
    found = status(settings)
    kafka, redis = settings.kafka, settings.redis
    if kafka.bootstrap_servers is None and found.broker is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": found.broker.address})
    if redis.url is None and found.cache is not None:
        redis = redis.model_copy(update={"url": SecretStr(f"redis://{_login(settings)}{found.cache.address}/0")})
    return settings.model_copy(update={"kafka": kafka, "redis": redis})


def password_file(settings: Settings) -> Path:
    """Return the file that holds the password of the embedded cache, as Valkey's configuration has it."""
    return settings.local_dir.absolute() / "cache.conf"


def _login(settings: Settings) -> str:
    """Return user and password as an address has them; nothing for a cache that an earlier version started."""
    try:
        return f":{password_file(settings).read_text(encoding='utf-8').split()[1]}@"
    except FileNotFoundError:
        return ""


def _files(settings: Settings, name: str) -> ProcessFiles:
    return ProcessFiles(settings.local_dir.absolute(), name)


def _find(settings: Settings, name: str) -> LocalService | None:
    files = _files(settings, name)
    state = running(files)
    return None if state is None else LocalService(name, state, files.log)


def _ensure(settings: Settings, name: str, command: Callable[[int], list[str]], notices: list[str]) -> LocalService:
    found = _find(settings, name)
    if found is not None:
        return found
    files = _files(settings, name)
    before = recorded(files)
    if before is not None:
        notices.append(
            f"the local {name} (pid {before.pid}) had ended; a new one was started, and what the old one held in "
            f"memory is gone (its log: {files.previous_log})"
        )
    return LocalService(name, _launch_ready(files, command, before), files.log)


def _launch_ready(
    files: ProcessFiles, command: Callable[[int], list[str]], before: ProcessState | None
) -> ProcessState:
    if files.log.exists():
        files.log.replace(files.previous_log)
    port = _free_port(before.port if before else 0)
    for _ in range(_PORT_ATTEMPTS):
        state = launch(files, command(port), port)
        wait_until(lambda: _connects(port) or not is_locked(files.lock), _READY_SECONDS)  # noqa: B023 # called here
        if _connects(port) and is_locked(files.lock):
            return state
        terminate(files)
        port = _free_port(0)  # somebody else may have taken the port between the choice and its use
    raise TransientError(f"the local {files.name} did not come up; the end of {files.log}:\n{log_tail(files)}")


def _free_port(preferred: int) -> int:
    """Return a free port: the one that clients know from before, if it can be had."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise TransientError(f"no free port is left on {HOST}")


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
    """Make a password, in a file since arguments of a process can be read by every user."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(f"requirepass {secrets.token_urlsafe(32)}\n")
    temporary.replace(path)
