"""Two real builds on one lake: the upgrade and the rollback of a running `stream`."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.errors import NewerFormatError
from pipelines.formats import LAKE
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.conftest import REPOSITORY
from tests.copied_code import copy_code
from tests.draining import send, valid_records
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

pytestmark = pytest.mark.slow
_BATCH = 20


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Return the root of a newer build: this source tree with the next number of the lake, and one more column."""
    root = tmp_path / "newer"
    copy_code(REPOSITORY / "pipelines", root / "pipelines")
    _patch(root / "pipelines/formats.py", rf'("lake",\s+){LAKE.number},', rf"\g<1>{LAKE.number + 1},")
    _patch(
        root / "pipelines/lake/tables.py",
        r"EVENTS = pa.schema\(\[(.+)\]\)",
        r'EVENTS = pa.schema([\1, ("origin", pa.string())])',
    )
    return root


def _patch(file: Path, pattern: str, replacement: str) -> None:
    text, changes = re.subn(pattern, replacement, file.read_text(encoding="utf-8"))
    assert changes == 1
    file.write_text(text, encoding="utf-8")


def _environment(build: Path, settings: Settings) -> dict[str, str]:
    return environment(settings) | {
        "PYTHONPATH": str(build),
        "KARMALAKE_REPUTATION_DERIVE_INTERVAL_SECONDS": "1",
        "COLUMNS": "10000",
    }


def _start(build: Path, settings: Settings, arguments: Sequence[str], output: Any) -> "subprocess.Popen[str]":
    """Start a command of a build; that of this tree is forked, without the seconds of a start."""
    options: dict[str, Any] = {
        "env": _environment(build, settings), "cwd": build, "stdout": output, "stderr": subprocess.STDOUT,
    }  # fmt: skip
    if build == REPOSITORY:
        return Started([*KARMALAKE, *arguments], **options)
    return subprocess.Popen([sys.executable, *KARMALAKE, *arguments], text=True, **options)


def _run(build: Path, settings: Settings, *arguments: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed."""
    with ended(_start(build, settings, arguments, subprocess.PIPE)) as process:
        printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, printed


@contextmanager
def _streaming(build: Path, settings: Settings, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """Yield a process that runs `karmalake stream` of a build, with its output in a file."""
    with log.open("wb") as out, ended(_start(build, settings, ["stream"], out)) as process:
        yield process


def _stored(settings: Settings) -> list[str]:
    """Return the event_ids in the lake, read without either build."""
    events = f"{settings.lake_root}/events"
    files = map(unquote, DeltaTable(events).file_uris()) if DeltaTable.is_deltatable(events) else ()
    return sorted(value for file in files for value in pq.ParquetFile(file).read(["event_id"])["event_id"].to_pylist())


def _ids(count: int) -> list[str]:
    return sorted(f"e-{number}" for number in range(count))


def _refusal(output: str) -> str:
    assert "Traceback" not in output
    (sentence,) = re.findall(r"^error KL-NEWER-FORMAT: (.+)$", output, re.MULTILINE)
    return sentence


def test_upgrade_and_rollback_of_a_running_stream(newer: Path, settings: Settings, tmp_path: Path) -> None:
    """The older build ends with a message, the newer one continues: no event is lost or doubled (`once`, `fenced`).

    Records arrive throughout. After a rollback the older build refuses to run, and changes nothing.
    """
    sent = 0

    def send_more() -> int:
        nonlocal sent
        send(settings, valid_records(range(sent, sent + _BATCH)))
        sent += _BATCH
        return sent

    older_log, newer_log = tmp_path / "older.log", tmp_path / "newer.log"
    send_more()
    with _streaming(REPOSITORY, settings, older_log) as older:
        wait_for("the older build to commit", lambda: len(_stored(settings)) == sent)
        with _streaming(newer, settings, newer_log) as running:
            wait_for("the older build to end", lambda: send_more() and older.poll() is not None)
            assert older.returncode == NewerFormatError.exit_code, older_log.read_text()
            send_more()
            wait_for("the newer build to commit", lambda: len(_stored(settings)) >= sent)
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE_SECONDS) == 0, newer_log.read_text()
    sentence = _refusal(older_log.read_text())
    assert f"has format {LAKE.number + 1} of the lake" in sentence
    assert "install that release or a newer one, or return to a copy of the lake" in sentence
    assert _stored(settings) == _ids(sent)
    for command in ("compact", "verify", "audit"):
        code, printed = _run(newer, settings, command)
        assert code == 0, printed
    send_more()
    for command in ("drain", "stream"):
        code, printed = _run(REPOSITORY, settings, command)
        assert code == NewerFormatError.exit_code
        assert f"knows formats up to {LAKE.number}" in _refusal(printed)
    code, printed = _run(newer, settings, "drain")
    assert code == 0, printed
    assert _stored(settings) == _ids(sent)
