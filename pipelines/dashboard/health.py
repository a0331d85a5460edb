"""The content of the health section: one sentence per service, also for one that does not respond.

Only measures; `karmalake lag` also records the measurement and gives advice.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import polars as pl

from pipelines.boundary.text import amount
from pipelines.errors import KarmalakeError
from pipelines.operate.lag.measure import Measurement, summarize
from pipelines.operate.lag.observe import measure_lags
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.read import published
from pipelines.settings import Settings

_TIMEOUT_SECONDS = 3.0
"""How long the page waits for a service, so that it does not appear to hang."""


def with_short_timeouts(settings: Settings) -> Settings:
    """Return the settings with timeouts short enough for an interactive page."""
    kafka, redis = settings.kafka, settings.redis
    bus = {"request_timeout_seconds": min(kafka.request_timeout_seconds, _TIMEOUT_SECONDS)}
    cache = {"socket_timeout_seconds": min(redis.socket_timeout_seconds, _TIMEOUT_SECONDS)}
    return settings.model_copy(update={"kafka": kafka.model_copy(update=bus), "redis": redis.model_copy(update=cache)})


def limited(warehouse: Warehouse, settings: Settings) -> AbstractContextManager[None]:
    """Return the block in which a section is computed, within the time that the settings allow."""
    remedy = "raise dashboard.query_seconds, or use `karmalake sql`, which has no limit of time"
    return warehouse.time_limit(settings.dashboard.query_seconds, remedy)


def staleness(settings: Settings) -> str:
    """Describe how stale the served scores are."""
    try:
        info = published(settings)
    except KarmalakeError as error:
        return f"Staleness is unknown: {error}"
    if info is None:
        return "Nothing is published yet: run `karmalake publish`."
    late = info.staleness_seconds > settings.reputation.max_staleness_seconds
    advice = f" (more than {settings.reputation.max_staleness_seconds:,.0f}: is `karmalake stream` running?)"
    age = f"{info.staleness_seconds:,.0f} s old{advice if late else ''}"
    return f"The served scores are {age}; {amount(info.documents, 'document')}."


def lag(settings: Settings) -> tuple[str, pl.DataFrame]:
    """Describe how far the lake is behind the bus, with one row per topic partition; no rows if unknown."""
    try:
        measured = measure_lags(settings)
    except KarmalakeError as error:
        return f"Lag is unknown: {error}", pl.DataFrame()
    sentence = f"The lake is {summarize(measured)} behind the bus."
    return sentence, _partitions(measured)


def _partitions(measured: Sequence[Measurement]) -> pl.DataFrame:
    columns = ("topic_partition", "end_offset", "next_offset", "lag_records", "lag_seconds")
    rows = [(topic.topic, one) for topic in measured for one in topic.partitions]
    return pl.DataFrame([{"topic": topic} | {name: getattr(one, name) for name in columns} for topic, one in rows])
