"""A user without a folder for numba's cache gets one of its own, never one of another user."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import numba_cache
from pipelines.cli.numba_cache import choose_numba_cache


@pytest.mark.parametrize(
    ("prepare", "is_used"),
    [
        (lambda _: None, True),
        (lambda folder: folder.mkdir(mode=0o700), True),
        (lambda folder: folder.parent.chmod(0o2700), True),  # as a volume of Kubernetes with a group
        (lambda folder: (folder.mkdir(), folder.chmod(0o755)), False),
        (lambda folder: folder.write_text(""), False),
        (lambda folder: folder.symlink_to(folder.parent), False),
    ],
)
def test_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], object], *, is_used: bool
) -> None:
    """Only one that no other user can write to, since numba runs what is in it; none where it has a place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv("HOME", "")
    choose_numba_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == ""
    monkeypatch.setattr(numba_cache, "_can_hold", lambda _: False)
    folder = tmp_path / f"karmalake-numba-{os.geteuid()}"
    prepare(folder)
    choose_numba_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == (str(folder) if is_used else "")


def test_where_a_folder_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not exist; that of a user without a home folder would be relative."""
    monkeypatch.chdir(tmp_path)
    assert numba_cache._can_hold(tmp_path / "a" / "b")
    assert not numba_cache._can_hold(Path("~/.cache"))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert not numba_cache._can_hold(tmp_path / "a" / "b")
