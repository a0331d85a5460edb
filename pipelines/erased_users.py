"""What may still be sent of an event, after erasures: for `karmalake notify`, which reads the topic and not the lake.

A thread of its own reads the tombstones of the lake, so a lake that hangs delays no notification (`isolated`); while it
cannot be read, what was known last holds. Where there is no lake, only those in the file next to it are known.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from pipelines.best_effort import best_effort
from pipelines.contract.names import pseudonyms_in
from pipelines.lake.tables import CachedLake, Lake, is_lake, open_lake, stored_id
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.notify.delivery import Redact
from pipelines.notify.template import Event
from pipelines.settings import Settings

_READ_SECONDS = 5.0


@contextmanager
def following_erasures(settings: Settings) -> Generator[Redact]:
    """Yield a function that knows the users erased until 5 s ago, and longer ago if the lake is slow. Thread-safe.

    Raises what reading the lake raises: without what was erased before, nothing may be sent.
    """
    erased = _ErasedUsers(settings)
    erased.read()
    ended, read = threading.Event(), best_effort(erased.read, "reading which users were erased")

    def follow() -> None:
        while not ended.wait(_READ_SECONDS):
            read()

    threading.Thread(target=follow, name="erased users", daemon=True).start()
    try:
        yield erased.redact
    finally:
        ended.set()


class _ErasedUsers:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._latest: Tombstones | None = None
        """Owned by the thread that reads; None before there is a lake, and after a failure: then it is opened again."""
        self._version = -1
        self._known: Tombstones | None = None
        """A copy that is never changed."""

    def read(self) -> None:
        latest, self._latest = self._latest, None
        if latest is None or stored_id(latest.lake) != latest.lake_id:
            latest = self._open()
        if latest is None:
            if self._known is None or not self._known.lake_id:
                self._known = self._in_the_file()
            return
        version = latest.lake.table("erasures").version()
        if version != self._version:
            latest.read()
            self._version, self._known = version, replace(latest)
        self._latest = latest

    def _open(self) -> Tombstones | None:
        """Open the lake, if there is one: handles of a lake that another one has replaced fail, or show no change."""
        self._version = -1
        if not is_lake(self._settings.lake_root):
            return None
        return open_tombstones(CachedLake(open_lake(self._settings.lake_root).root), self._settings)

    def _in_the_file(self) -> Tombstones:
        settings = self._settings
        tombstones = Tombstones(Lake(settings.lake_root), settings.contract, "", settings.tombstones_file)
        tombstones.read_file()
        return tombstones

    def redact(self, event: Event) -> Event | None:
        known = self._known
        if known is None or not known.digests:
            return event
        if known.contains(event.user_id.encode("utf-8", "surrogatepass")):
            return None
        names = pseudonyms_in(event.metadata, known.contract.personal_keys, known.pseudonym_of)
        return event._replace(metadata={**event.metadata, **names}) if names else event
