"""A Redis primary, its replica and a Sentinel of both: real processes, with passwords."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.services.ports import HOST, free_port
from tests.services.process import Server
from tests.services.redis_server import RedisServer, redis_binary
from tests.services.waiting import wait_for

SERVICE = "mymaster"
PASSWORD, SENTINEL_PASSWORD = "data-s3cret", "sentinel-s3cret"  # of servers that live as long as a test


class SentinelServer(Server):
    """A Sentinel that fails over only on request: a busy machine is not an outage."""

    def __init__(self, folder: Path, primary: RedisServer) -> None:
        folder.mkdir()
        self.port = free_port()
        file = folder / "sentinel.conf"
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {folder}", f"requirepass {SENTINEL_PASSWORD}"]
        lines += [f"sentinel monitor {SERVICE} {HOST} {primary.port} 1"]
        lines += [f"sentinel auth-pass {SERVICE} {PASSWORD}", f"sentinel down-after-milliseconds {SERVICE} 60000"]
        file.write_text("\n".join([*lines, ""]))
        command = [str(redis_binary()), str(file), "--sentinel"]
        super().__init__("Sentinel", command, folder / "sentinel.log", "+monitor master")
        self.client: Any = redis.Redis(HOST, self.port, password=SENTINEL_PASSWORD, decode_responses=True)


class SentinelSystem:
    """A context manager; `primary` and `replica` are the roles at the start."""

    def __init__(self, folder: Path) -> None:
        self.primary = _server(folder / "primary")
        self.replica = _server(folder / "replica", replicaof=f"{HOST} {self.primary.port}")
        self.sentinel = SentinelServer(folder / "sentinel", self.primary)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            started.callback(self.sentinel.client.close)
            for server in (self.primary, self.replica, self.sentinel):
                started.enter_context(server)
            wait_for("the Sentinel to know the replica", self._knows_the_replica)
            self._started = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.__exit__(kind, error, trace)

    def url(self, password: str = PASSWORD, service: str = SERVICE) -> str:
        """Return the address; the first Sentinel does not exist."""
        hosts = f"{HOST}:{free_port()},{HOST}:{self.sentinel.port}"
        return f"redis+sentinel://:{password}@{hosts}/{service}?sentinel_password={SENTINEL_PASSWORD}"

    def fail_over(self) -> None:
        """Kill the primary, and wait until the Sentinel has promoted the replica."""
        self.primary.kill()
        wait_for("the failover to begin", self._begin_failover)
        wait_for("the replica to be promoted", lambda: self._known_primary() == self.replica.port)

    def _knows_the_replica(self) -> bool:
        known = self.sentinel.client.sentinel_slaves(SERVICE)
        return any(replica["port"] == self.replica.port and replica["master-link-status"] == "ok" for replica in known)

    def _begin_failover(self) -> bool:
        try:
            return bool(self.sentinel.client.execute_command("SENTINEL FAILOVER", SERVICE))
        except redis.ResponseError:  # it has not yet seen the replica's state
            return False

    def _known_primary(self) -> int:
        return int(self.sentinel.client.sentinel_master(SERVICE)["port"])  # as clients ask, and later than its address


def _server(folder: Path, **config: str) -> RedisServer:
    folder.mkdir(parents=True)
    config |= {"masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
    return RedisServer(folder, password=PASSWORD, config=config)
