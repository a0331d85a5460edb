"""Locks on files and folders, between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.boundary.file_lock import exclusive_lock, is_locked, try_lock

_HOLD = """
import sys
from pathlib import Path
from pipelines.boundary.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["file", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "place"
    if request.param == "folder":
        path.mkdir()
    return path


def test_one_process_at_a_time_until_it_dies(place: Path) -> None:
    """The holder is named where a file can name it; SIGKILL releases the lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert try_lock(place) is None
        named = "another process" if place.is_dir() else f"process {holder.pid}"
        with (
            pytest.raises(TimeoutError, match=f"^{named} has held {place} for more than 0 s$"),
            exclusive_lock(place, 0),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with exclusive_lock(place, 0):
        assert try_lock(place) is None
    descriptor = try_lock(place)
    assert descriptor is not None
    os.close(descriptor)


def test_a_wait_names_the_holder_when_it_begins(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and not for one that is over at once."""
    named = "another process" if place.is_dir() else f"process {os.getpid()}"
    with exclusive_lock(place), pytest.raises(TimeoutError), exclusive_lock(place, 1):
        pass
    assert caplog.messages == [f"waiting for {named}, which holds {place}, for up to 1 s"]
    caplog.clear()
    with exclusive_lock(place), pytest.raises(TimeoutError), exclusive_lock(place, 0.1):
        pass
    assert caplog.messages == []


def test_checking_a_lock_has_no_side_effects(tmp_path: Path) -> None:
    """It creates no file and takes no lock."""
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    umask = os.umask(0o027)
    try:
        with exclusive_lock(path):
            assert is_locked(path)
            assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)
    assert not is_locked(path)
