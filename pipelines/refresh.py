"""From the lake to what people see: derive the warehouse, then publish its documents.

Both are safe to kill and to repeat: the old warehouse stays until the new one is whole, and a publication that was
cut off is done again in full.
"""

from datetime import UTC, datetime

from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.reputation.derive import Derived, derive
from pipelines.reputation.documents import documents
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import attach, stored_info
from pipelines.serving.publication import Stamp
from pipelines.serving.publish import Published, publish
from pipelines.settings import Settings


def derive_warehouse(settings: Settings, as_of: datetime | None = None) -> Derived:
    """Compute the warehouse from the newest whole state of the lake, as of now unless told otherwise.

    Raises UsageError when there is no lake, PolicyError when the policy cannot be read; the old warehouse stays.
    """
    policy = load_policy(settings.reputation.policy)
    snapshot = take_snapshot(open_lake(settings.lake_dir))
    return derive(snapshot, policy, as_of or datetime.now(UTC), settings.warehouse_path)


def publish_warehouse(settings: Settings) -> Published:
    """Publish the documents of the current warehouse: those that changed since the last publication.

    Raises FencedError when something newer is published already, TransientError when Redis does not answer.
    """
    with attach(settings.warehouse_path) as connection:
        info = stored_info(connection)
        stamp = Stamp(info.lake_version, _microseconds(info.as_of), f"{info.policy.name}@{info.policy_version}")
        return publish(documents(connection), stamp, settings.redis, settings.published_dir)


def _microseconds(moment: datetime) -> int:
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 1_000_000 + moment.microsecond
