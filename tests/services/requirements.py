"""What a machine needs for the real servers, and how to install it."""

import os
import re
import shutil
from typing import Literal

import pytest

from tests.services.kafka_distribution import java_version
from tests.services.maven import jar_folder
from tests.services.postgres_server import postgres_binary
from tests.services.rabbitmq_server import rabbitmq_binary

Service = Literal["kafka", "redis", "postgres", "mariadb", "rabbitmq", "promtool", "cassandra", "chromium"]

_OLDEST_JAVA = 17


def missing(service: Service) -> str | None:
    """Return what this machine lacks for a service and how to install it, None if it lacks nothing."""
    lacks = {
        "kafka": lambda: _programs({"openssl": "openssl"}) | _java_lacks("kafka"),
        "cassandra": lambda: _java_lacks("cassandra"),
        "redis": _redis_lacks,
        "postgres": _postgres_lacks,
        "mariadb": lambda: _programs(dict.fromkeys(("mariadbd", "mariadb-install-db"), "mariadb-server")),
        "chromium": lambda: _programs({"chromium": "chromium"}),
        "promtool": lambda: _programs({"promtool": "prometheus"}),
        "rabbitmq": lambda: {} if rabbitmq_binary() else {"rabbitmq-server": "rabbitmq-server"},
    }[service]()
    if not lacks:
        return None
    packages = " ".join(dict.fromkeys(lacks.values()))
    return f"{service} needs {', '.join(lacks)}: on Debian, `apt-get install {packages}`"


def require(service: Service) -> None:
    """Go on if the service can be started here; otherwise fail the test under CI, skip it elsewhere."""
    reason = missing(service)
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _java_lacks(server: str) -> dict[str, str]:
    lacks: dict[str, str] = {}
    if shutil.which("java") is None or _java_major() < _OLDEST_JAVA:
        lacks[f"Java {_OLDEST_JAVA} or newer"] = "default-jre-headless"
    if not jar_folder(server).exists():
        lacks |= _programs({"mvn": "maven"})
    return lacks


def _redis_lacks() -> dict[str, str]:
    return _programs({"redis-server": "redis-server", "openssl": "openssl"})


def _postgres_lacks() -> dict[str, str]:
    return {} if postgres_binary("postgres") and postgres_binary("initdb") else {"postgres": "postgresql"}


def _programs(packages: dict[str, str]) -> dict[str, str]:
    return {program: package for program, package in packages.items() if shutil.which(program) is None}


def _java_major() -> int:
    found = re.search(r'version "(\d+)', java_version())
    return int(found[1]) if found else 0
