"""Fixtures that start real servers; loaded by tests/conftest.py.

A test whose server cannot be started here fails under CI and is skipped, with the reason, elsewhere. Tests that
kill, pause or configure Kafka build a KafkaCluster of their own after `require("kafka")`.

kafka-python is imported by the fixture that needs it: most runs start no Kafka, and warnings of its import are
errors until conftest.py has been configured.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services import process
from tests.services.mariadb_server import MariadbServer
from tests.services.postgres_server import PostgresServer
from tests.services.programs import extend_path
from tests.services.redis_cluster import TestedCluster
from tests.services.redis_sentinel import SentinelSystem
from tests.services.redis_server import RedisServer
from tests.services.requirements import not_run, require

if TYPE_CHECKING:
    from tests.services.kafka_cluster import KafkaCluster  # see the docstring of this module

extend_path()

_FIXTURES = {"kafka", "redis_server", "redis_cluster", "sentinels", "postgres", "mariadb"}
_SERVERS = _FIXTURES | {"local_settings", "rabbitmq", "sqs"}
"""Fixtures, or parameters of fixtures, that start a server."""


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KafkaCluster"]:
    """Return one broker for a module, with every listener; tests use separate topics.

    For a session it would cost more than its start in each module: an idle one uses 4 % of a core.
    """
    require("kafka")
    from tests.services.kafka_cluster import KafkaCluster  # noqa: PLC0415 # see the docstring of this module

    with KafkaCluster(tmp_path_factory.mktemp("kafka"), secure=True) as cluster:
        yield cluster


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Return an empty Redis for one test, which may kill and restart it."""
    require("redis")
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestedCluster]:
    """Return one Redis Cluster for the whole session; tests use separate prefixes, and leave it intact."""
    require("redis")
    with TestedCluster(tmp_path_factory.mktemp("redis-cluster") / "nodes") as cluster:
        yield cluster


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelSystem]:
    """Return a primary, its replica and a Sentinel for one test."""
    require("redis")
    with SentinelSystem(tmp_path / "sentinels") as system:
        yield system


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return one PostgreSQL for the whole session; tests use separate tables or databases."""
    require("postgres")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """Return one MariaDB for the whole session; tests use separate databases."""
    require("mariadb")
    with MariadbServer() as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, before pytest selects by marks."""
    for item in items:
        call = getattr(item, "callspec", None)
        chosen = {value for value in call.params.values() if isinstance(value, str)} if call else set[str]()
        if not _SERVERS.isdisjoint({*getattr(item, "fixturenames", ()), *chosen}):
            item.add_marker("services")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Print last which tests did not run because a server is missing, and the command that would run them."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and (line := not_run([str(report.longrepr) for report in terminal.stats.get("skipped", [])])):
        terminal.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the log of every running server beside a failed test that uses one of these fixtures."""
    report = yield
    if report.failed and not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        report.sections += [(f"log of {server.name}", server.log_tail()) for server in process.RUNNING]
    return report
