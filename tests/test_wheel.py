"""The wheel takes one name, and works beside folders of a user that are called `pipelines` and `assets`."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import karmalake
from hatch_build import rename
from tests.conftest import REPOSITORY
from tests.services.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.slow
_OWN = "raise ImportError('the package of the user')\n"
_MODULES = {"pipelines", "pipelines.lake", "assets.scores"}
_LIBRARY = """
import pyarrow as pa
import karmalake, karmalake.dagster, karmalake.outbox
from karmalake.pipelines.contract.avro import parse_avro

assert callable(karmalake.open_warehouse) and karmalake.outbox.add
assert karmalake.dagster.build_defs().resolve_job_def("refresh")
assert len(parse_avro(pa.array([b"", b"x"])).errors) == 2
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with packages of a user and, in `venv`, the wheel beside the packages of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    _run("hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=REPOSITORY, program=[sys.executable, "-m"])
    _run("venv", "--without-pip", str(folder / "venv"), cwd=folder, program=[sys.executable, "-m"])
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (wheel,) = folder.glob("*.whl")
    target = ["--python", str(folder / "venv" / "bin" / "python"), "--offline", "--no-deps", str(wheel)]
    _run("uv", "pip", "install", *target, cwd=folder, program=[sys.executable, "-m"])
    for name in ("pipelines", "assets"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(_OWN, encoding="utf-8")
    return folder


def _run(*arguments: str, cwd: Path, program: list[str]) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KARMALAKE_", "PYTHON"))}
    done = subprocess.run(
        [*program, *arguments],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _command(folder: Path, *arguments: str) -> str:
    return _run(*arguments, cwd=folder, program=[str(folder / "venv" / "bin" / "karmalake")])


def test_the_wheel_takes_one_name(installed: Path) -> None:
    """Everything is in `karmalake`, marked as typed, and the page of errors and every SQL file are there."""
    (wheel,) = installed.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"karmalake"}
    assert {"karmalake/py.typed", "karmalake/pipelines/operations.md"} <= names
    sources = [path for part in ("pipelines", "assets") for path in (REPOSITORY / part).rglob("*.*") if path.is_file()]
    expected = {f"karmalake/{path.relative_to(REPOSITORY).as_posix()}" for path in sources}
    assert {name for name in expected if "__pycache__" not in name} <= names


def test_commands_run_beside_packages_of_the_same_name(installed: Path) -> None:
    """The command, its page of errors and a backfill, whose worker is a process of its own, run in such a folder."""
    assert _command(installed, "--version").startswith("karmalake ")
    assert "KL-USAGE" in _command(installed, "errors", "KL-USAGE")
    rows = {"user_id": ["ann"], "action_type": ["UserRated"], "timestamp": ["2026-01-01T00:00:00Z"]}
    parquet.write_table(pa.table(rows), installed / "history.parquet")
    columns = ["--user-id", "user_id", "--action-type-column", "action_type", "--time", "timestamp"]
    assert "1 rows, 1 accepted" in _command(installed, "backfill", *columns, "history.parquet")
    _command(installed, "refresh")
    assert "ann" in _command(installed, "sql", "SELECT user_id FROM events")


def test_the_library_loads_beside_packages_of_the_same_name(installed: Path) -> None:
    """`import karmalake`, its outbox, Avro's worker and Dagster's definitions touch no package of the user's."""
    _run("-c", _LIBRARY, cwd=installed, program=[str(installed / "venv" / "bin" / "python")])


def test_the_names_of_the_tree() -> None:
    """In the tree `karmalake` is a door to the same objects."""
    assert set(karmalake.__all__) == {name for name in karmalake.__all__ if getattr(karmalake, name)}
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = karmalake.no_such_name


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("from pipelines.lake import x", "from karmalake.pipelines.lake import x"),
        ("import pipelines.lake as p, os", "import karmalake.pipelines.lake as p, os"),
        ("def f():\n    from assets import y", "def f():\n    from karmalake.assets import y"),
        ("run('-m', 'pipelines.lake')", "run('-m', 'karmalake.pipelines.lake')"),
        ("'é', 'pipelines'", "'é', 'karmalake.pipelines'"),
        ("x = 'pipelines/lake'; assets = 1", "x = 'pipelines/lake'; assets = 1"),
        ("from . import pipelines", "from . import pipelines"),
        ("import pipelines_of_others", "import pipelines_of_others"),
    ],
)
def test_names_in_the_wheel(source: str, renamed: str) -> None:
    """Imports, and strings that name a module of ours, are renamed; nothing else is."""
    assert rename(source.encode(), _MODULES).decode() == renamed


def test_a_name_that_cannot_be_renamed() -> None:
    """A plain `import pipelines` would bind `karmalake` in the wheel: the build ends and says so."""
    with pytest.raises(ValueError, match="import it `as` one"):
        rename(b"import pipelines", _MODULES)
