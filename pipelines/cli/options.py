"""What several commands share: the settings with the running local services, instants, user ids."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.private_files import write_as_privately_as
from pipelines.contract import moments
from pipelines.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from pipelines.reputation.policy import Policy
    from pipelines.settings import Settings


MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65_535, help="Serve /metrics there; else the setting metrics.port."),
]


def current_settings() -> "Settings":
    """Return the settings, with the local broker and cache where none are configured."""
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415

    return with_local_endpoints(bare_settings())


def bare_settings() -> "Settings":
    """Return the settings as they are configured, and let the command write as privately as data_dir is.

    Raises ConfigurationError where data_dir cannot be a folder.
    """
    from pipelines.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    for place in (settings.data_dir, *settings.data_dir.absolute().parents):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(f"{place} is a file, not a folder: set KARMALAKE_DATA_DIR to a folder")
    write_as_privately_as(settings.data_dir)
    return settings


def with_metrics_port(settings: "Settings", port: int | None) -> "Settings":
    """Return the settings with the port that a command names, if it names one."""
    if port is None:
        return settings
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"port": port})})


def chosen_policy(name: str | None, known_at: datetime | None) -> "Policy":
    """Return the policy that a command names, or else the one in force, at known_at if that is given."""
    from pipelines.refresh import policy_in_force  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    return load_policy(name) if name else policy_in_force(current_settings(), known_at)


def instant(text: str | None) -> datetime | None:
    """Read the moment that a command names, if it names one."""
    return None if text is None else moments.instant(text)


def utf8(user_id: str) -> str:
    """Return a user_id as it is; UsageError for bytes that are not UTF-8, which no event can hold."""
    try:
        user_id.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{user_id!r} is not UTF-8: no event has such a user_id") from None
    return user_id
