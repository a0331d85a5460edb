"""A real PostgreSQL server on a free port with its own data.

PostgreSQL refuses to run as root: then it runs as the user `postgres`, or else `nobody`, in a temporary folder that
this user can enter.
"""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services.ports import HOST, free_port
from tests.services.process import Server, unprivileged_user
from tests.services.waiting import PATIENCE_SECONDS, wait_for

USER = "karma"
PASSWORD = "a-postgres-password"  # noqa: S105 # of a server that lives as long as a test
_MEMORY_IN_USE = "pre-existing shared memory block"
_DEBIAN = Path("/usr/lib/postgresql")


def postgres_binary(name: str) -> Path | None:
    """Return `initdb` or `postgres` of Debian's newest version, or from the PATH; None if there is none."""
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = versions[-1] if versions else shutil.which(name)
    return Path(found) if found else None


class PostgresServer(Server):
    """Listens on 127.0.0.1 only; USER owns the database `postgres`. `config` has server settings.

    Commits are not flushed to disk (fsync is off): they survive a crash of the server, not of the machine.
    """

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="karmalake-postgres-"))
        self._data = self._folder / "data"
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "50",
            **(config or {}),
        }
        options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        super().__init__(
            "PostgreSQL",
            [str(postgres_binary("postgres")), "-D", str(self._data), *options],
            self._folder / "postgres.log",
            "database system is ready to accept connections",
            user=unprivileged_user("postgres"),
        )
        self._stop_signal = signal.SIGINT  # "fast": ends open connections instead of waiting for them

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder)
            self._initialize()
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server; retry while processes of a killed one still hold its shared memory."""
        wait_for("PostgreSQL to find its shared memory free", self._try_to_start)

    @property
    def dsn(self) -> str:
        """The address, for any PostgreSQL driver."""
        return f"postgresql://{USER}:{PASSWORD}@{HOST}:{self.port}/postgres"

    def _try_to_start(self) -> bool:
        try:
            super().start()
        except AssertionError as error:
            if _MEMORY_IN_USE not in str(error):
                raise
            return False
        return True

    def _initialize(self) -> None:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(secret, self._user)
        initdb = [str(postgres_binary("initdb")), "-D", str(self._data), "-U", USER, f"--pwfile={secret}"]
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.prepare([*initdb, *options], self._folder, PATIENCE_SECONDS)
