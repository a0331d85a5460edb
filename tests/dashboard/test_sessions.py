"""Sessions of the dashboard: each has its own view of a warehouse, and all of a publication share its limits."""

import gc
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.dashboard.sessions import open_session
from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

_BYTES = 64 * 1024 * 1024
_HELD = f"CREATE TEMP TABLE held AS SELECT repeat('x', {_BYTES}) AS value"


@pytest.fixture
def published(settings: Settings) -> Settings:
    """Return the settings of a published warehouse."""
    _publish(settings, users=1)
    return settings


def _publish(settings: Settings, users: int) -> None:
    events = [Event(f"e{n}", f"u{n}", "DriverRated", NOW - 3 * DAY, {"rating": "5"}) for n in range(users)]
    lake: Path = settings.data_dir / f"of-{users}"
    derive(snapshot_of(lake, events), load_policy("default"), AS_OF, settings.warehouse_path)


def _users(warehouse: Warehouse) -> int:
    return warehouse.sql("SELECT count(*) FROM reputation").item()


def _used_bytes(warehouse: Warehouse) -> int:
    [(used,)] = warehouse._connection.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchall()
    return int(used)


def test_sessions_of_a_publication_share_their_memory(published: Settings) -> None:
    """What one of them uses is used up for the others, so that sessions do not add up; it ends with them."""
    one, two = open_session(published), open_session(published)
    assert _used_bytes(two) < _BYTES
    one._connection.execute(_HELD)
    assert _used_bytes(two) >= _BYTES
    del one
    assert _used_bytes(two) < _BYTES


def test_a_session_keeps_its_publication(published: Settings) -> None:
    """A session that begins after a publication reads that one, an earlier session the one it began with."""
    earlier = open_session(published)
    _publish(published, users=2)
    later = open_session(published)
    assert (_users(earlier), _users(later), _users(open_session(published))) == (1, 2, 2)
    later.close()
    assert _users(open_session(published)) == 2


def test_the_file_is_closed_with_the_last_session(published: Settings) -> None:
    """It may have users who were erased since."""
    sessions = [open_session(published), open_session(published)]
    assert _open_files(published)
    sessions.pop()
    assert _users(sessions[0]) == 1
    sessions.pop()
    gc.collect()
    assert _open_files(published) == []


def _open_files(settings: Settings) -> list[str]:
    """Return the files of the warehouse that this process has open."""
    folder, names = str(settings.warehouse_path), []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing
            names.append(str(descriptor.readlink()))
    return [name for name in names if name.startswith(folder)]


def test_a_missing_warehouse_is_reported(settings: Settings) -> None:
    """It is opened once it is published."""
    with pytest.raises(UsageError, match="there is no warehouse"):
        open_session(settings)
    _publish(settings, users=1)
    assert _users(open_session(settings)) == 1
