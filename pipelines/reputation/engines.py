"""The engines of a rebuild by name; each computes the same rows."""

from functools import partial
from typing import Literal

from pipelines.boundary.extras import extra
from pipelines.reputation.derive import Engine, derive_in_duckdb
from pipelines.settings import Settings


def load_engine(name: Literal["duckdb", "spark"], settings: Settings) -> Engine:
    """Import and return an engine. Raises ConfigurationError when its packages are not installed."""
    if name == "duckdb":
        return derive_in_duckdb
    with extra("spark", "--engine spark"):
        from pipelines.reputation.spark.derivation import derive_in_spark  # noqa: PLC0415 - an extra, and slow to import
    return partial(derive_in_spark, staging=settings.spark_staging)
