"""The programs that the real servers require, and how to install them."""

import os
import re
import shutil
from typing import Literal

import pytest

from tests.services.kafka_distribution import java_version
from tests.services.maven import jar_folder
from tests.services.postgres_server import postgres_binary
from tests.services.rabbitmq_server import rabbitmq_binary

Service = Literal[
    "kafka", "redis", "postgres", "mariadb", "rabbitmq", "promtool", "cassandra", "chromium", "hadoop-aws"
]

_MIN_JAVA_VERSION = 17


def missing(service: Service) -> str | None:
    """Return what is missing for a service and how to install it; None if nothing is missing."""
    absent = {
        "kafka": lambda: _programs({"openssl": "openssl"}) | _missing_java("kafka"),
        "cassandra": lambda: _missing_java("cassandra"),
        "hadoop-aws": lambda: _missing_java("hadoop-aws"),
        "redis": _missing_redis,
        "postgres": _missing_postgres,
        "mariadb": lambda: _programs(dict.fromkeys(("mariadbd", "mariadb-install-db"), "mariadb-server")),
        "chromium": lambda: _programs({"chromium": "chromium"}),
        "promtool": lambda: _programs({"promtool": "prometheus"}),
        "rabbitmq": lambda: {} if rabbitmq_binary() else {"rabbitmq-server": "rabbitmq-server"},
    }[service]()
    if not absent:
        return None
    packages = " ".join(dict.fromkeys(absent.values()))
    return f"{service} needs {', '.join(absent)}: on Debian, `apt-get install {packages}`"


def require(service: Service) -> None:
    """Fail the test in CI, skip it elsewhere, if the service cannot be started on this machine."""
    reason = missing(service)
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _missing_java(server: str) -> dict[str, str]:
    absent: dict[str, str] = {}
    if shutil.which("java") is None or _java_major() < _MIN_JAVA_VERSION:
        absent[f"Java {_MIN_JAVA_VERSION} or newer"] = "default-jre-headless"
    if not jar_folder(server).exists():
        absent |= _programs({"mvn": "maven"})
    return absent


def _missing_redis() -> dict[str, str]:
    return _programs({"redis-server": "redis-server", "openssl": "openssl"})


def _missing_postgres() -> dict[str, str]:
    return {} if postgres_binary("postgres") and postgres_binary("initdb") else {"postgres": "postgresql"}


def _programs(packages: dict[str, str]) -> dict[str, str]:
    return {program: package for program, package in packages.items() if shutil.which(program) is None}


def _java_major() -> int:
    found = re.search(r'version "(\d+)', java_version())
    return int(found[1]) if found else 0
