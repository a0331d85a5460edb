"""The crash loop of `make chaos`: every disturbance of its table, and a verdict that passes nothing wrong."""

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import refresh
from pipelines.operate.audit import Audit, Audited
from pipelines.operate.check import Check
from tests.chaos import clock
from tests.chaos.disturbances import DISTURBANCES
from tests.chaos.power import Disk, noting_flushes
from tests.chaos.run import main
from tests.chaos.verdict import Books, verdict
from tests.chaos.world import Story
from tests.services.requirements import require

_UNSOUND = Check("books", "once", passed=False, evidence="they do not add up")
_SEED = "15"


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.usefixtures("broken_connections")
def test_a_few_seconds_of_chaos(capsys: pytest.CaptureFixture[str]) -> None:
    """Among all disturbances, nothing is lost, doubled or blocked (`once`, `nothing-lost`, `not-blocked`)."""
    require("kafka")
    assert main(["0", "--seed", _SEED]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "lost 0, doubled 0"
    assert all(_number(lines, f"disturbed by {name}") > 0 for name in DISTURBANCES)
    assert _number(lines, "processes killed") > 0
    assert _number(lines, "of them dead letters") > 20
    assert _number(lines, "of them lost") == 0
    assert _number(lines, "accepted losses") == 2


def _number(lines: list[str], name: str) -> int:
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[-1].replace(",", ""))


def _story(distinct: int = 10) -> Story:
    return Story(distinct=distinct, done=Counter(list(DISTURBANCES)))


def _books(*, lost: int = 0, doubled: int = 0, events: int = 10, failed: tuple[Check, ...] = ()) -> Books:
    return Books(10, [Audit([Audited(0, 0, 20, lost=lost)], events, doubled)], failed)


def test_poison_that_is_no_dead_letter_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """However well the books agree otherwise."""
    assert verdict(_story(), [_books()]) == 0
    assert verdict(_story(), [_books()], missing=1) == 1
    assert "of them dead letters" in capsys.readouterr().out


def test_a_loss_that_is_not_told_does_not_pass() -> None:
    """An accepted loss stands in the commits table as it was."""
    assert verdict(_story(), [_books()], untold=1) == 1


def test_a_disturbance_that_never_happened_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that skips one says which."""
    story = _story()
    del story.done["power_fails"]
    assert verdict(story, [_books()]) == 1
    assert "FAILED: power_fails never happened" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "ending"),
    [
        (_books(events=9), "lost 1, doubled 0"),
        (_books(lost=2), "lost 2, doubled 0"),
        (_books(doubled=3), "lost 0, doubled 3"),
        (_books(events=11), "lost 0, doubled 1"),
        (_books(failed=(_UNSOUND,)), "lost 0, doubled 0"),
    ],
)
def test_what_is_wrong_does_not_pass(wrong: Books, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the audit finds it, the other checks, or the count of what was sent; in either lake."""
    for books in ([wrong], [_books(), wrong]):
        assert verdict(_story(), books) == 1
        assert capsys.readouterr().out.splitlines()[-1] == ending


def _write(path: Path, content: bytes, *, flush: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if flush:
            os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _fates(tmp_path: Path, task: Callable[[Path], None]) -> set[bytes | None]:
    """Return what `file` may hold once the power failed after a task, over many power cuts; None: it is gone."""
    found: set[bytes | None] = set()
    for seed in range(40):
        folder = tmp_path / str(seed) / "disk"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"old")
        disk = Disk(folder.parent / "shadow", [folder])
        disk.note_all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", os.fsync)  # put back in the end
            noting_flushes(disk, task, folder)
        disk.cut(random.Random(seed))  # noqa: S311 - no secret
        found.add((folder / "file").read_bytes() if (folder / "file").exists() else None)
    return found


@pytest.mark.parametrize(
    ("flush_file", "flush_folder", "expected"),
    [
        (True, True, {b"newer"}),
        (True, False, {b"newer", b"old"}),
        (False, True, {b"newer", b"", bytes(5), b"ne"}),
        (False, False, {b"newer", b"", bytes(5), b"ne", b"old"}),
    ],
)
def test_a_power_cut_keeps_what_was_flushed_and_nothing_else_for_sure(
    tmp_path: Path, *, flush_file: bool, flush_folder: bool, expected: set[bytes]
) -> None:
    """Of a file that replaces another: the name by its folder, the content by itself."""

    def replace(folder: Path) -> None:
        _write(folder / "new", b"newer", flush=flush_file)
        (folder / "new").rename(folder / "file")
        if flush_folder:
            _flush_folder(folder)

    assert _fates(tmp_path, replace) == expected


def test_a_deletion_that_was_not_flushed_may_be_undone(tmp_path: Path) -> None:
    """And one that was flushed is not."""

    def delete(folder: Path) -> None:
        (folder / "file").unlink()

    def delete_and_flush(folder: Path) -> None:
        delete(folder)
        _flush_folder(folder)

    assert _fates(tmp_path / "unflushed", delete) == {b"old", None}
    assert _fates(tmp_path / "flushed", delete_and_flush) == {None}


@pytest.mark.parametrize("ahead", [-300.0, 300.0])
def test_the_clock_jumps_both_ways(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """For `datetime.now` as pipelines ask it, and for `time.time`; a datetime stays a plain one."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", time.time)
        patch.setattr(clock, "_ahead", timedelta(0))
        for module in [module for name, module in sys.modules.items() if name.startswith("pipelines.")]:
            if vars(module).get("datetime") is datetime:
                patch.setattr(module, "datetime", datetime)
        real = datetime.now(UTC)
        clock.install()
        clock.set_ahead(ahead)
        now = vars(refresh)["datetime"].now(UTC)
        assert type(now) is datetime
        assert isinstance(now, vars(refresh)["datetime"])
        assert ahead <= (now - real).total_seconds() < ahead + 60
        assert ahead <= time.time() - real.timestamp() < ahead + 60
    assert vars(refresh)["datetime"] is datetime
