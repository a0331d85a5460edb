"""The programs that the real servers require, and how to install them."""

import os
import re
import shutil
from collections.abc import Sequence
from typing import Literal, get_args

import pytest

from tests.services.kafka_distribution import java_version
from tests.services.postgres_server import postgres_binary
from tests.services.rabbitmq_server import rabbitmq_binary
from tests.services.redis_server import redis_binary

Service = Literal[
    "java",
    "kafka",
    "cassandra",
    "hadoop-aws",
    "redis",
    "redis-tls",
    "postgres",
    "mariadb",
    "rabbitmq",
    "promtool",
    "chromium",
]

_MIN_JAVA_VERSION = 17


def absent_programs(service: Service) -> dict[str, str]:
    """Return the programs of a service that are not on this machine, each with its Debian package."""
    return {
        "java": _missing_java,
        "kafka": lambda: _programs({"openssl": "openssl"}) | _missing_java(),
        "cassandra": _missing_java,
        "hadoop-aws": _missing_java,
        "redis": lambda: {} if redis_binary() else {"redis-server": "redis-server"},
        "redis-tls": lambda: _programs({"redis-server": "redis-server", "openssl": "openssl"}),
        "postgres": _missing_postgres,
        "mariadb": lambda: _programs(dict.fromkeys(("mariadbd", "mariadb-install-db"), "mariadb-server")),
        "chromium": lambda: _programs({"chromium": "chromium"}),
        "promtool": lambda: _programs({"promtool": "prometheus"}),
        "rabbitmq": lambda: {} if rabbitmq_binary() else {"rabbitmq-server": "rabbitmq-server"},
    }[service]()


def absent_packages() -> list[str]:
    """Return the Debian packages that all services together still need."""
    return sorted({package for service in get_args(Service) for package in absent_programs(service).values()})


def missing(service: Service) -> str | None:
    """Return what is missing for a service and how to install it; None if nothing is missing."""
    if not (absent := absent_programs(service)):
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


def not_run(skipped: Sequence[str]) -> str:
    """Return a line about the tests that did not run because a server is missing; "" if all ran."""
    reasons = {service: reason for service in get_args(Service) if (reason := missing(service))}
    absent = [service for service, reason in reasons.items() if any(reason in text for text in skipped)]
    count = sum(any(reasons[service] in text for service in absent) for text in skipped)
    remedy = "`make services` as root, then `make test` again"
    return f"not run: {count} tests, for want of {', '.join(absent)}; {remedy} runs them" if absent else ""


def _missing_java() -> dict[str, str]:
    found = shutil.which("java") is not None and _java_major() >= _MIN_JAVA_VERSION
    return {} if found else {f"Java {_MIN_JAVA_VERSION} or newer": "default-jre-headless"}


def _missing_postgres() -> dict[str, str]:
    return {} if postgres_binary("postgres") and postgres_binary("initdb") else {"postgres": "postgresql"}


def _programs(packages: dict[str, str]) -> dict[str, str]:
    return {program: package for program, package in packages.items() if shutil.which(program) is None}


def _java_major() -> int:
    found = re.search(r'version "(\d+)', java_version())
    return int(found[1]) if found else 0
