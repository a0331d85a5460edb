"""A real RabbitMQ server on a free port with its own data."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from tests.services.ports import HOST, free_port
from tests.services.process import Server


class RabbitMQServer(Server):
    """Listens on 127.0.0.1 only, also for Erlang's own protocol; the user guest has the password guest."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="karmalake-rabbitmq-"))
        values = {
            "HOME": str(self._folder),
            "RABBITMQ_NODENAME": f"karmalake{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(free_port()),
        }
        (self._folder / "plugins").write_text("[].")
        pairs = [f"{name}={value}" for name, value in values.items()]
        super().__init__(
            "RabbitMQ", ["env", *pairs, str(rabbitmq_binary())], self._folder / "rabbitmq.log", "completed with", None
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """The address, for any client."""
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"


def rabbitmq_binary() -> Path | None:
    """Return the server's own binary, if installed: Debian's command of that name switches users first."""
    installed = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    found = installed[-1] if installed else shutil.which("rabbitmq-server")
    return Path(found) if found else None
