"""The whole system on one machine, each part in its own process, as in production.

    riders -> service -> PostgreSQL -> relay -> Kafka -+-> stream -> lake, scores, Redis -> service
                                                       +-> notify -> service

The servers are the real ones of the tests. A part that is killed restarts with its data and port.
"""

import secrets
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, func, select

from examples.service import MESSAGES, METADATA, NOTIFICATIONS, RATINGS
from pipelines.bus.topics import ensure_topic
from pipelines.settings import FeedSettings, IngestSettings, RedisSettings, ReputationSettings, Settings
from tests.commands import KARMALAKE, Program
from tests.services.kafka_cluster import KafkaCluster
from tests.services.ports import free_port
from tests.services.postgres_server import PostgresServer
from tests.services.process import Server
from tests.services.redis_server import RedisServer

_POLICY = "levels-by-city"
_RULES = Path(__file__).with_name("notify.toml")


class System:
    """The running system: the parts `service`, `relay`, `stream` and `notify`, and the servers they need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            self.postgres = started.enter_context(PostgresServer())
            (self.folder / "redis").mkdir(parents=True)
            self.redis = started.enter_context(RedisServer(self.folder / "redis"))
            (self.folder / "kafka").mkdir()
            self.kafka = started.enter_context(KafkaCluster(self.folder / "kafka"))
            self.settings = Settings(
                data_dir=self.folder / "data",
                kafka=self.kafka.settings(topic="ratings", partitions=4),
                redis=RedisSettings(url=SecretStr(self.redis.url())),
                ingest=IngestSettings(),
                reputation=ReputationSettings(policy=_POLICY),
                feed=FeedSettings(enabled=True),
            )
            ensure_topic(self.settings.kafka)
            self.engine: Engine = create_engine(self.postgres.dsn.replace("postgresql:", "postgresql+psycopg:"))
            started.callback(self.engine.dispose)
            self.port = free_port()
            self.parts = self._parts()
            for part in self.parts.values():
                started.push(part)
                part.start()
            self._running = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def _parts(self) -> dict[str, Server]:
        rules = self.folder / "notify.toml"
        rules.write_text(_RULES.read_text(encoding="utf-8").replace(":8080/", f":{self.port}/"), encoding="utf-8")
        service = ["-m", "examples.service", str(self.port), self.postgres.dsn, self.redis.url()]
        return {
            "service": self._part("service", service, "serving on"),
            "relay": self._part("relay", [*KARMALAKE, "relay", "--database", self.postgres.dsn], "relaying to"),
            "stream": self._part("stream", [*KARMALAKE, "stream"], "streaming ratings"),
            "notify": self._part("notify", [*KARMALAKE, "notify", "--rules", str(rules)], "notifying support"),
        }

    def _part(self, name: str, arguments: list[str], ready: str) -> Server:
        """Return a Python process with the settings of the system; its output goes to a log."""
        values = {
            "KARMALAKE_DATA_DIR": str(self.settings.data_dir),
            "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KARMALAKE_KAFKA_TOPIC": self.settings.kafka.topic,
            "KARMALAKE_REDIS_URL": self.redis.url(),
            "KARMALAKE_REPUTATION_POLICY": _POLICY,
            "KARMALAKE_FEED_ENABLED": "true",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
            "SUPPORT_WEBHOOK_SECRET": self._secret(),
        }
        return Program(name, arguments, values, self.folder / f"{name}.log", ready)

    def _secret(self) -> str:
        file = self.folder / "webhook-secret"
        if not file.exists():
            file.write_text(secrets.token_hex(16))
        return file.read_text()

    def ratings(self) -> list[dict[str, Any]]:
        """Return the ratings that the service committed: the ground truth."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(RATINGS)).mappings()]

    def notified(self) -> set[str]:
        """Return the event_ids of the low ratings that support was notified of."""
        with self.engine.connect() as connection:
            return set(connection.execute(select(NOTIFICATIONS.c.event_id)).scalars())

    def messages(self) -> dict[str, tuple[str, str]]:
        """Return the messages to drivers about levels, as driver and text, by event_id."""
        with self.engine.connect() as connection:
            return {row.event_id: (row.driver, row.text) for row in connection.execute(select(MESSAGES))}

    def pending(self) -> int:
        """Return the number of events in the outbox."""
        with self.engine.connect() as connection:
            table = METADATA.tables["outbox"]
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())
