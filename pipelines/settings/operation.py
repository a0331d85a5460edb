"""The settings of those who operate and look: lag, metrics, queries and pages."""

from pydantic import Field, SecretStr

from pipelines.settings.values import Days, Names, Seconds, Section


class LagSettings(Section):
    """The lag of the lake behind the bus: `karmalake stream` measures it and stores its history."""

    interval_seconds: Seconds = Field(default=15.0, gt=0)
    """How often `karmalake stream`, `ingest`, `relay`, `notify` and `lag --watch` measure lag."""
    keep_days: Days = Field(default=14, ge=1)
    """How many days of measurements lag/ retains; one `stream` writes a few megabytes a day."""
    max_seconds: Seconds = Field(default=300.0, gt=0)
    """The maximum time a record may wait for its commit; above it, the Dagster check of lag warns."""


class MetricsSettings(Section):
    """`/metrics`, `/healthz` and `/readyz` of `karmalake stream`, `ingest`, `relay` and `notify`, over plain HTTP."""

    port: int | None = Field(default=None, ge=0, le=65_535)
    """The port; 0 means any free port, unset means that they are not served."""
    host: str = "127.0.0.1"
    """The address to listen on. There is no authentication: expose it only to networks that may read metrics."""
    allowed_hosts: Names = ()
    """Accepted host names besides IP addresses, localhost and `host`, such as that of a Kubernetes service."""
    stalled_after_seconds: Seconds = Field(default=600.0, gt=0)
    """A loop without an iteration for this long makes /healthz return 503. Set it above the duration of a rebuild."""


class QueriesSettings(Section):
    """Limits of readers' queries: `sql`, `trend`, `open_warehouse()`, sessions of the dashboard, asset `anomalies`."""

    max_memory_share: float = Field(default=0.5, ge=0.001, le=1)
    """The share of the memory of the machine, or of its control group, that the queries of an opened warehouse may use,
    and all sessions of the dashboard that show the same publication; rows that were returned do not count, and one
    large value can exceed it. The default leaves the other half to ingest and refreshes beside them."""
    max_spill_bytes: int = Field(default=16 * 1024 * 1024 * 1024, ge=0, le=2**63 - 1)
    """The maximum of bytes that those queries may write when the memory is used up, to a folder beside the warehouse,
    or a temporary one if the data folder is read-only."""


class PageSettings(Section):
    """Access to a page that we serve."""

    token: SecretStr | None = Field(default=None, min_length=16)
    """The access token; unset means that each start generates one and prints it as part of the URL."""
    allowed_hosts: Names = ()
    """Public host names of the page behind a reverse proxy, with the port if the URL has one."""


class DagsterSettings(PageSettings):
    """Access to `karmalake dagster`: a user with this token can start and end runs."""


class DashboardSettings(PageSettings):
    """Access to `karmalake dashboard`, where readers change nothing."""

    query_seconds: Seconds = Field(default=60.0, gt=0)
    """The maximum time for computing a section of the page. `karmalake sql` and Python have no limit of time: Ctrl-C
    ends their queries."""
