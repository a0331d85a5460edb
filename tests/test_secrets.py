"""Secrets are never printed, by successful or failing commands, or logged at any level."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.emit.producer import Record
from pipelines.settings import load_settings
from tests.contract.encoding import framed
from tests.contract.fake_registry import Registry, running_registry
from tests.draining import send
from tests.services.kafka_cluster import KafkaCluster
from tests.services.redis_server import RedisServer
from tests.services.requirements import require

pytestmark = pytest.mark.jvm
_MARK = "s3cret"
_COMMANDS = (
    "topics ensure",
    "doctor",
    "drain",
    "refresh",
    "publish",
    "verify",
    "audit",
    "lag",
    "show u",
    "relay --once",
)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    require("redis")
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis", password=f"{_MARK}-redis") as server:
        yield server


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        registry.schemas = {7: {"schema": "", "schemaType": "PROTOBUF"}}
        yield registry


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.usefixtures("broken_connections")
def test_no_secret_is_printed_or_logged(
    kafka: KafkaCluster,
    redis_server: RedisServer,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    *,
    right: bool,
) -> None:
    """Whether authentication succeeds or not, neither the output nor any logger at DEBUG contains a password."""
    secured = kafka.settings("SASL_SSL", sasl_mechanism="PLAIN")
    assert secured.sasl_password
    password = secured.sasl_password.get_secret_value() if right else f"{_MARK}-kafka"
    environment = {
        "DATA_DIR": str(tmp_path / "data"),
        "KAFKA_BOOTSTRAP_SERVERS": str(secured.bootstrap_servers),
        "KAFKA_SECURITY_PROTOCOL": secured.security_protocol,
        "KAFKA_SSL_CAFILE": str(secured.ssl_cafile),
        "KAFKA_SASL_MECHANISM": str(secured.sasl_mechanism),
        "KAFKA_SASL_USERNAME": str(secured.sasl_username),
        "KAFKA_SASL_PASSWORD": password,
        "KAFKA_TOPIC": f"secrets-{right}",
        "KAFKA_GROUP_ID": f"secrets-{right}",
        "KAFKA_REQUEST_TIMEOUT_SECONDS": "10" if right else "0.5",
        "REDIS_URL": redis_server.url(None, None if right else f"{_MARK}-wrong"),
        "CONTRACT_SCHEMA_REGISTRY_URL": f"http://reader:{_MARK}-registry@127.0.0.1:{registry.port}",
        "RELAY_DATABASE_URL": f"postgresql+psycopg://service:{_MARK}-database@127.0.0.1:1/service",
    }
    for name in os.environ:
        if name.startswith("KARMALAKE_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(f"KARMALAKE_{name}", value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)
    caplog.set_level(logging.DEBUG)
    for name in ("kafka", "redis", "httpx", "httpcore", "sqlalchemy", "karmalake", "pipelines"):
        caplog.set_level(logging.DEBUG, name)
    if right:
        send(load_settings(), [Record(b"u", framed(7, b"\x00\xff")), Record(b"u", framed(8, b"\x00"))])
    codes = {command: _run(monkeypatch, *command.split()) for command in _COMMANDS}
    output = capsys.readouterr()
    assert {command for command, code in codes.items() if code == 0} >= ({"drain", "publish"} if right else set())
    assert codes["relay --once"] == 75
    assert "Traceback" not in output.err
    secrets = [_MARK, password]
    for secret in secrets:
        assert [line for line in (output.out + output.err).splitlines() if secret in line] == []
        assert [line for line in caplog.text.splitlines() if secret in line] == []


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
