"""The engines that a rebuild can run on, by name; each gives the same rows."""

from typing import Literal

from pipelines.errors import ConfigurationError
from pipelines.reputation.derive import Engine, in_duckdb


def engine_named(name: Literal["duckdb", "spark"]) -> Engine:
    """Return an engine. Raises ConfigurationError when what it needs is not installed."""
    if name == "duckdb":
        return in_duckdb
    try:
        from pipelines.reputation.spark.derivation import in_spark  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--engine spark needs {error.name}, which is not installed: pip install 'karmalake[spark]'"
        ) from None
    return in_spark
