"""The loop of `make chaos` applies every fault of its table, and its report passes no wrong lake."""

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
from pipelines.operate.audit import Audit, PartitionAudit
from pipelines.operate.check import Check
from tests.chaos import clock
from tests.chaos.faults import FAULTS
from tests.chaos.power import Disk, recording_flushes
from tests.chaos.report import Findings, report
from tests.chaos.run import main
from tests.chaos.world import Story
from tests.services.requirements import require

_UNSOUND = Check("totals", "once", passed=False, evidence="they do not add up")
_SEED = "15"


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.usefixtures("broken_connections")
def test_a_few_seconds_of_chaos(capsys: pytest.CaptureFixture[str]) -> None:
    """Under all faults, nothing is lost, duplicated or blocked (`once`, `nothing-lost`, `not-blocked`)."""
    require("kafka")
    assert main(["0", "--seed", _SEED]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "lost 0, duplicated 0"
    assert all(_number(lines, f"fault: {name}") > 0 for name in FAULTS)
    assert _number(lines, "processes killed") > 0
    assert _number(lines, "of them dead letters") > 20
    assert _number(lines, "of them lost") == 0
    assert _number(lines, "accepted losses") == 2


def _number(lines: list[str], name: str) -> int:
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[-1].replace(",", ""))


def _story(distinct: int = 10) -> Story:
    return Story(distinct=distinct, done=Counter(list(FAULTS)))


def _findings(*, lost: int = 0, duplicated: int = 0, events: int = 10, failed: tuple[Check, ...] = ()) -> Findings:
    return Findings(10, [Audit([PartitionAudit("events", 0, 0, 20, lost=lost)], events, duplicated)], failed)


def test_a_missing_dead_letter_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Even if everything else reconciles."""
    assert report(_story(), [_findings()]) == 0
    assert report(_story(), [_findings()], missing=1) == 1
    assert "of them dead letters" in capsys.readouterr().out


def test_an_unrecorded_loss_fails_the_run() -> None:
    """The commits table must have each accepted loss with its number of records."""
    assert report(_story(), [_findings()], unrecorded=1) == 1


def test_a_fault_that_never_happened_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The report names a fault that was skipped."""
    story = _story()
    del story.done["power_fails"]
    assert report(story, [_findings()]) == 1
    assert "FAILED: power_fails never happened" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "ending"),
    [
        (_findings(events=9), "lost 1, duplicated 0"),
        (_findings(lost=2), "lost 2, duplicated 0"),
        (_findings(duplicated=3), "lost 0, duplicated 3"),
        (_findings(events=11), "lost 0, duplicated 1"),
        (_findings(failed=(_UNSOUND,)), "lost 0, duplicated 0"),
    ],
)
def test_a_wrong_lake_fails_the_run(wrong: Findings, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the audit, another check or the count of sent events finds it, in either lake."""
    for findings in ([wrong], [_findings(), wrong]):
        assert report(_story(), findings) == 1
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
    """Return the contents that `file` may have after a task and a power failure, over many of them; None: no file."""
    found: set[bytes | None] = set()
    for seed in range(40):
        folder = tmp_path / str(seed) / "disk"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"old")
        disk = Disk(folder.parent / "shadow", [folder])
        disk.record_all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", os.fsync)  # restored at the end
            recording_flushes(disk, task, folder)
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
def test_a_power_cut_keeps_for_certain_only_what_was_flushed(
    tmp_path: Path, *, flush_file: bool, flush_folder: bool, expected: set[bytes]
) -> None:
    """For a file that replaces another: fsync of the folder keeps the name, fsync of the file the content."""

    def replace(folder: Path) -> None:
        _write(folder / "new", b"newer", flush=flush_file)
        (folder / "new").rename(folder / "file")
        if flush_folder:
            _flush_folder(folder)

    assert _fates(tmp_path, replace) == expected


def test_a_deletion_that_was_not_flushed_may_be_undone(tmp_path: Path) -> None:
    """A flushed deletion is final."""

    def delete(folder: Path) -> None:
        (folder / "file").unlink()

    def delete_and_flush(folder: Path) -> None:
        delete(folder)
        _flush_folder(folder)

    assert _fates(tmp_path / "unflushed", delete) == {b"old", None}
    assert _fates(tmp_path / "flushed", delete_and_flush) == {None}


@pytest.mark.parametrize("ahead", [-300.0, 300.0])
def test_the_clock_jumps_both_ways(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """`datetime.now` in pipelines and `time.time` jump; the result is a plain datetime."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", time.time)
        patch.setattr(clock, "_offset", timedelta(0))
        for module in [module for name, module in sys.modules.items() if name.startswith("pipelines.")]:
            if vars(module).get("datetime") is datetime:
                patch.setattr(module, "datetime", datetime)
        real = datetime.now(UTC)
        clock.install()
        clock.set_offset(ahead)
        now = vars(refresh)["datetime"].now(UTC)
        assert type(now) is datetime
        assert isinstance(now, vars(refresh)["datetime"])
        assert ahead <= (now - real).total_seconds() < ahead + 60
        assert ahead <= time.time() - real.timestamp() < ahead + 60
    assert vars(refresh)["datetime"] is datetime
