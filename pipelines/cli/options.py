"""Options and arguments that several commands share: settings, policies, times, user ids."""

import logging
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.private_files import foreign_owner, restrict_umask
from pipelines.contract import time_like
from pipelines.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from pipelines.reputation.policy import Policy
    from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)

MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", min=0, max=65_535, help="The port to serve /metrics on; the setting metrics.port by default."
    ),
]


def current_settings() -> "Settings":
    """Return the settings; without a configured broker or cache, those of the running local services."""
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415

    return with_local_endpoints(bare_settings())


def topic_settings(command: str) -> "Settings":
    """Return `current_settings` for a command that is for topics. Raises UsageError if ingest reads a queue."""
    from pipelines.ingest.sources import require_topics  # noqa: PLC0415

    settings = current_settings()
    require_topics(settings, f"`karmalake {command}`")
    return settings


def bare_settings() -> "Settings":
    """Return the settings as configured, and set the umask of this process to the permissions of data_dir.

    Warns root of files in another user's data_dir that this user could not read.
    Raises ConfigurationError if data_dir, or a parent, is not a folder.
    """
    from pipelines.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    for place in (settings.data_dir, *settings.data_dir.absolute().parents):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(f"{place} is a file, not a folder: set KARMALAKE_DATA_DIR to a folder")
    restrict_umask(settings.data_dir)
    _warn_root(settings.data_dir)
    return settings


@cache
def _warn_root(data_dir: Path) -> None:
    if owner := foreign_owner(data_dir):
        _LOG.warning("%s belongs to %s, who cannot use files that root writes there: run as %s", data_dir, owner, owner)


def with_metrics_port(settings: "Settings", port: int | None) -> "Settings":
    """Return the settings with metrics.port replaced, if a port is given."""
    if port is None:
        return settings
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"port": port})})


def chosen_policy(name: str | None, known_at: datetime | None) -> "Policy":
    """Return the policy of the given name or path; by default the one in force, at known_at if given."""
    from pipelines.refresh import policy_in_force  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    return load_policy(name) if name else policy_in_force(current_settings(), known_at)


def instant(text: str | None) -> datetime | None:
    """Return the time of an option; None if it is not given. Raises UsageError like `time_of`."""
    return None if text is None else time_of(text)


def time_of(text: str) -> datetime:
    """Return the time that an option gives: `now`, a day, or ISO 8601. Raises UsageError for anything else."""
    return datetime.now(UTC) if text == "now" else time_like.to_utc(text)


def utf8(user_id: str) -> str:
    """Return a user_id unchanged. Raises UsageError for bytes that are not UTF-8, which no event can contain."""
    try:
        user_id.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{user_id!r} is not valid UTF-8, so no event has this user_id: check the spelling") from None
    return user_id
