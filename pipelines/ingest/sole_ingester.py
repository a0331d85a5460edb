"""One ingester of a topic or queue at a time, by a lock that the running one holds: the newcomer is refused.

The fence of the lake alone ends whichever commits second, which may be the `stream` that has run for weeks. The locks
are in `data_dir`, so processes with another one are only fenced (`fenced`). A crash releases them.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from hashlib import blake2b

from pipelines.boundary.file_lock import exclusive_lock, holder_of
from pipelines.boundary.private_files import make_inner_dir
from pipelines.errors import FencedError
from pipelines.formats import LAKE
from pipelines.ingest.sources import topic_sources
from pipelines.settings import Settings

_WAIT_SECONDS = 5.0
"""How long to wait for a process that is about to end."""


@contextmanager
def sole_ingester(settings: Settings) -> Generator[None]:
    """Hold the lock of each topic that is ingested, or of the queue; no lock with `ingest.share_partitions`.

    Raises FencedError, naming the holder, if another process holds one of them.
    """
    with ExitStack() as stack:
        for name, place in () if settings.ingest.share_partitions else _buses(settings):
            # A release of another format has another lock: it upgrades the lake, and the older one ends.
            digest = blake2b(f"{LAKE.number}\n{settings.lake.uri}\n{place}\n{name}".encode(), digest_size=8).hexdigest()
            path = settings.data_dir / "ingesters" / f"{digest}.lock"
            make_inner_dir(path.parent)
            try:
                stack.enter_context(exclusive_lock(path, _WAIT_SECONDS))
            except TimeoutError:
                since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                raise FencedError(
                    f"{holder_of(path)} has ingested {name} into {settings.lake_root} since {since:%Y-%m-%d %H:%M:%S}Z,"
                    " and continues: leave it to that process, or end that process and start again; for several at "
                    "once, set ingest.share_partitions for each of them"
                ) from None
        yield


def _buses(settings: Settings) -> list[tuple[str, str]]:
    """Return the name and the place of each topic that is ingested, or of the queue."""
    queue = settings.queue
    if queue.kind:
        return [(queue.name, queue.url.get_secret_value() if queue.url else queue.kind)]
    return [(topic, str(settings.kafka.bootstrap_servers)) for topic in sorted(topic_sources(settings))]
