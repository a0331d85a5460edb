"""What the health section says of the services: a sentence each, for one that does not answer too.

Only measures; `karmalake lag` also keeps what it measured and advises.
"""

import polars as pl

from pipelines.errors import KarmalakeError
from pipelines.operate.lag.measure import Measurement, measure_lag
from pipelines.serving.read import published
from pipelines.settings import Settings

_PATIENCE_SECONDS = 3.0
"""How long a page waits for a service: whoever looks at it should not think that it hangs."""

QUERY_SECONDS = 60.0
"""How long a section may take to compute; what takes longer is for `karmalake sql`."""


def impatient(settings: Settings) -> Settings:
    """Return the settings with time-outs for somebody who is looking."""
    kafka, redis = settings.kafka, settings.redis
    bus = {"request_timeout_seconds": min(kafka.request_timeout_seconds, _PATIENCE_SECONDS)}
    cache = {"socket_timeout_seconds": min(redis.socket_timeout_seconds, _PATIENCE_SECONDS)}
    return settings.model_copy(update={"kafka": kafka.model_copy(update=bus), "redis": redis.model_copy(update=cache)})


def staleness(settings: Settings) -> str:
    """Say how old what Redis serves is."""
    try:
        info = published(settings)
    except KarmalakeError as error:
        return f"The cache does not tell how stale it is: {error}"
    if info is None:
        return "Nothing is published yet: run `karmalake publish`."
    late = info.staleness_seconds > settings.reputation.max_staleness_seconds
    advice = f" (more than {settings.reputation.max_staleness_seconds:,.0f}: is `karmalake stream` running?)"
    return (
        f"What is served is {info.staleness_seconds:,.0f} s old{advice if late else ''}; {info.documents:,} documents."
    )


def lag(settings: Settings) -> tuple[str, pl.DataFrame]:
    """Say how far the lake is behind the bus, with a row a topic partition; no rows where that cannot be told."""
    try:
        measured = measure_lag(settings)
    except KarmalakeError as error:
        return f"The broker does not tell how far the lake is behind: {error}", pl.DataFrame()
    sentence = f"The lake is {measured.behind} behind the bus."
    return sentence, _partitions(measured)


def _partitions(measured: Measurement) -> pl.DataFrame:
    columns = ("topic_partition", "end_offset", "next_offset", "lag_records", "lag_seconds")
    return pl.DataFrame([{name: getattr(one, name) for name in columns} for one in measured.partitions])
