"""Files in the data folder are not readable by other users, unless the owner opened the folder."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.boundary.database import connect
from pipelines.boundary.file_lock import try_lock
from pipelines.boundary.private_files import is_private, make_inner_dir, make_private_dir, restrict_umask
from pipelines.cli.failures import describe_failure
from pipelines.cli.options import bare_settings
from pipelines.errors import PERMISSION, is_transient
from pipelines.lake.tables import create_lake, is_lake
from pipelines.operate.doctor import diagnose
from pipelines.reputation.warehouse_file import attach
from pipelines.settings import Settings
from tests.commands import run
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.test_crashes import environment

_KARMALAKE = ["-c", "import os; os.umask(0o022); from pipelines.cli import main; main()"]
_OTHER_USER = 65_534
_NO_NAME = 12_345


@pytest.fixture
def umask() -> object:
    """Restore the umask after the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def other_user() -> Iterator[None]:
    """Run the test as another user, who has no name."""
    os.setegid(_NO_NAME)
    os.seteuid(_NO_NAME)
    yield
    os.seteuid(0)
    os.setegid(0)


def _run(settings: Settings, *command: str) -> None:
    run([*_KARMALAKE, *command], env=environment(settings), check=True)


def _modes(folder: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for path in (folder, *folder.rglob("*")):
        kind = 0o700 if path.is_dir() else 0o600
        shared = stat.S_IMODE(path.stat().st_mode) & ~kind
        found.setdefault(shared, []).append(str(path.relative_to(folder)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "shared"), [(0o700, {0}), (0o2750, {0o2050, 0o040})], ids=["private", "group"])
def test_commands_write_files_as_private_as_the_folder(
    settings: Settings, tmp_path: Path, mode: int, shared: set[int]
) -> None:
    """Lake, index, warehouse, state, history of lag, locks, exports: 0700 and 0600, also if a library writes them.

    What is shared with a group, all that is in it, folders and files.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    settings.data_dir.chmod(mode)
    send(settings, valid_records(range(20)))
    for command in (["drain"], ["refresh"], ["publish"], ["lag"], ["compact"]):
        _run(settings, *command)
    _run(settings, "scores", "--output", str(tmp_path / "scores.csv"))
    _run(settings, "dead-letters", "export", str(tmp_path / "letters.ndjson"))
    assert _modes(settings.data_dir).keys() == shared, _modes(settings.data_dir)
    for file in ("scores.csv", "letters.ndjson"):
        assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600 | mode & 0o040


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_has_no_access(settings: Settings) -> None:
    """Files written in-process, as Dagster does, are in a folder that another user cannot enter."""
    bus = with_ingest(settings)
    send(bus, valid_records(range(5)))
    drain_all(bus)
    temporary = Path(tempfile.gettempdir())
    for folder in bus.data_dir.parents:
        if temporary in folder.parents:  # only the data folder itself is tested
            folder.chmod(0o755)
    files = [str(path) for path in bus.data_dir.rglob("*") if path.is_file()]
    read = ["/bin/sh", "-c", 'for file; do test -r "$file" && echo "$file"; done; true', "sh", "/etc/passwd", *files]
    other: dict[str, Any] = {"user": _OTHER_USER, "group": _OTHER_USER, "extra_groups": [], "cwd": "/"}
    assert files
    assert subprocess.run(read, stdout=subprocess.PIPE, check=True, **other).stdout == b"/etc/passwd\n"


@pytest.mark.usefixtures("umask")
def test_folders_are_made_private_with_their_parents(tmp_path: Path) -> None:
    """All missing folders are private; an existing one keeps its mode."""
    (tmp_path / "own").mkdir(mode=0o750)
    make_private_dir(tmp_path / "own" / "data" / "lag")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "own").rglob("*")}
    assert modes == {"data": 0o700, "lag": 0o700}
    make_private_dir(tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o750
    create_lake(tmp_path / "lake")
    assert stat.S_IMODE((tmp_path / "lake").stat().st_mode) == 0o700


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mode", "inner"), [(0o700, 0o700), (0o2750, 0o2750), (0o755, 0o700)])
def test_a_folder_shared_with_a_group_has_shared_folders(tmp_path: Path, mode: int, inner: int) -> None:
    """One that all users may enter has private ones."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(mode)
    make_inner_dir(tmp_path / "data" / "lake")
    assert stat.S_IMODE((tmp_path / "data" / "lake").stat().st_mode) == inner
    make_inner_dir(tmp_path / "data" / "new" / "index")
    assert stat.S_IMODE((tmp_path / "data" / "new" / "index").stat().st_mode) & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "use", "denial"),
    [
        (0o700, 0o600, Path.read_text, "enter {folder}, which has mode 0700"),
        (0o755, 0o600, Path.read_text, "read {folder}/file, which has mode 0600"),
        (0o755, 0o644, try_lock, "write to {folder}/file, which has mode 0644"),
        (0o755, 0o666, Path.unlink, "write to {folder}, which has mode 0755"),
        (0o755, 0o644, lambda file: try_lock(file.with_name("new")), "write to {folder}, which has mode 0755"),
        (0o700, 0o644, lambda file: connect(file).close(), "enter {folder}, which has mode 0700"),
        (0o755, 0o600, attach, "read {folder}/file, which has mode 0600"),
        (0o700, 0o644, lambda file: is_lake(file.parent), "enter {folder}, which has mode 0700"),
    ],
)
def test_a_denial_says_who_may_use_what(
    request: pytest.FixtureRequest, folder_mode: int, file_mode: int, use: Callable[[Path], object], denial: str
) -> None:
    """The folder or file that this user may not use, its mode and owner, and what to do; it is not retried.

    Also if a library hides the error of the system in a text.
    """
    with tempfile.TemporaryDirectory() as temporary:  # that others may enter
        folder = Path(temporary) / "shared"
        Path(temporary).chmod(0o755)
        folder.mkdir()
        (folder / "file").write_text("")
        (folder / "file").chmod(file_mode)
        folder.chmod(folder_mode)
        request.getfixturevalue("other_user")
        with pytest.raises(Exception, match=r"[Pp]ermission denied") as raised:
            use(folder / "file")
        message, status = describe_failure(raised.value)
        os.seteuid(0)
    assert (status, is_transient(raised.value)) == (PERMISSION, False)
    assert f"; uid {_NO_NAME} may not {denial.format(folder=folder)} and belongs to root (uid 0) and group" in message
    assert f": `chown -R {_NO_NAME} {folder}" in message


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [(0o700, 0o022, 0o077), (0o750, 0o022, 0o027), (0o755, 0o022, 0o022), (0o755, 0o077, 0o077), (None, 0o002, 0o077)],
)
def test_files_are_as_private_as_the_folder(tmp_path: Path, mode: int | None, before: int, after: int) -> None:
    """The umask follows the mode of the data folder, and is never relaxed."""
    folder = tmp_path / "data"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    os.umask(before)
    restrict_umask(folder)
    assert os.umask(before) == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root leaves files in another user's folder")
@pytest.mark.usefixtures("umask")
def test_root_is_warned_of_another_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files would lock the owner out: a command says so once. A folder of its own is no reason."""
    for name, owner in (("own", 0), ("other", _NO_NAME)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
        monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / name))
        bare_settings()
        bare_settings()
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{tmp_path / 'other'} belongs to uid {_NO_NAME}, who cannot use files that root writes")
    assert warning.endswith(f": run as uid {_NO_NAME}")


def test_the_doctor_reports_an_open_folder(settings: Settings) -> None:
    """It says what to do; a private folder is no finding."""
    make_private_dir(settings.data_dir)
    assert is_private(settings.data_dir)
    [disk] = [finding.message for finding in diagnose(settings) if finding.subject == "disk"]
    assert "chmod" not in disk
    settings.data_dir.chmod(0o755)
    [disk] = [finding.message for finding in diagnose(settings) if finding.subject == "disk"]
    assert f"`chmod 700 {settings.data_dir}`" in disk
