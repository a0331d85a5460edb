"""A real Redis server on a free port, optionally with a password, an ACL file and TLS.

If Redis is not installed, it is the Valkey of the embedded cache, which has no TLS.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import redis

from pipelines.errors import ConfigurationError
from pipelines.local.binaries import cache_binary
from tests.services.certificates import Certificates
from tests.services.ports import HOST, free_port
from tests.services.process import Server


class RedisServer(Server):
    """Holds its data in memory, so a restart empties it, unless `config` has `{"appendonly": "yes"}`.

    `acl` has lines of an ACL file (`user reader on >secret ~* +get`), `config` any directives of redis.conf. With
    `certificates` it accepts only TLS, without client certificates.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        acl: Sequence[str] = (),
        certificates: Certificates | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.certificates = certificates
        self._password = password
        directives = {"bind": HOST, "dir": str(folder), "save": '""', "daemonize": "no"}
        directives |= self._listening() | _users(folder, password, acl) | dict(config or {})
        file = folder / "redis.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in directives.items()))
        super().__init__("Redis", [str(redis_binary()), str(file)], folder / "redis.log", "Ready to accept connections")

    def url(self, username: str | None = None, password: str | None = None) -> str:
        """Return the address for a user of the ACL file, or for the default user."""
        scheme = "rediss" if self.certificates else "redis"
        secret = password or self._password
        user = f"{quote(username or '')}:{quote(secret)}@" if secret else ""
        return f"{scheme}://{user}{HOST}:{self.port}/0"

    def _listening(self) -> dict[str, str]:
        if self.certificates is None:
            return {"port": str(self.port)}
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self.certificates.certificate("server")),
            "tls-key-file": str(self.certificates.key("server")),
            "tls-ca-cert-file": str(self.certificates.ca),
            "tls-auth-clients": "no",
        }


def refuse_replicas(client: redis.Redis) -> None:
    """Make a primary reject its replicas until it is restarted: they keep the data that they have."""
    client.execute_command("ACL SETUSER", "default", "-psync", "-sync")
    client.client_kill_filter(_type="replica")


def redis_binary() -> Path | None:
    """Return the installed Redis, else the packaged Valkey, else None."""
    if found := shutil.which("redis-server"):
        return Path(found)
    try:
        return cache_binary()
    except ConfigurationError:
        return None


def _users(folder: Path, password: str | None, acl: Sequence[str]) -> dict[str, str]:
    default = "user default on nopass ~* &* +@all" if password is None else f"user default on >{password} ~* &* +@all"
    lines = [] if any(line.startswith("user default ") for line in acl) else [default]
    file = folder / "users.acl"
    file.write_text("\n".join([*lines, *acl, ""]))
    return {"aclfile": str(file)}
