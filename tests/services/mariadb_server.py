"""A real MariaDB server on a free port with its own data: the MySQL-compatible server in Debian."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services.ports import HOST, free_port
from tests.services.process import Server, unprivileged_user
from tests.services.waiting import PATIENCE_SECONDS

USER = "karma"
PASSWORD = "a-mariadb-password"  # noqa: S105 # of a server that lives as long as a test


class MariadbServer(Server):
    """Listens on 127.0.0.1 only; USER has all privileges.

    As root it runs as the user `mysql`, or else `nobody`. Commits are not flushed to disk: they survive a crash of the
    server, not of the machine.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="karmalake-mariadb-"))
        start = self._folder / "start.sql"
        start.write_text(f"GRANT ALL ON *.* TO '{USER}'@'{HOST}' IDENTIFIED BY '{PASSWORD}';\n")
        options = {
            "datadir": self._folder / "data",
            "socket": self._folder / "socket",
            "pid-file": self._folder / "pid",
            "bind-address": HOST,
            "port": self.port,
            "init-file": start,
            "innodb-flush-log-at-trx-commit": 0,
        }
        super().__init__(
            "MariaDB",
            ["mariadbd", "--no-defaults", "--skip-name-resolve", *(f"--{n}={value}" for n, value in options.items())],
            self._folder / "mariadb.log",
            "ready for connections",
            user=unprivileged_user("mysql"),
        )

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

    @property
    def url(self) -> str:
        """The address, as services write it."""
        return f"mysql+pymysql://{USER}:{PASSWORD}@{HOST}:{self.port}/"

    def _initialize(self) -> None:
        if self._user is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, self._user)
        data = f"--datadir={self._folder / 'data'}"
        command = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal"]
        self.prepare([*command, "--skip-test-db"], self._folder, PATIENCE_SECONDS)
