"""The wheel takes one name, and works beside folders of a user that are called `pipelines` and `assets`.

Without extras it has what `karmalake stream` needs, and names the extra that a command or module needs.
"""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import nbformat
import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from pyarrow import parquet

from benchmarks.footprint import dependencies
from hatch_build import rename
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import send, valid_records
from tests.services.waiting import PATIENCE_SECONDS
from tests.share import share

pytestmark = pytest.mark.slow
_OWN = "raise ImportError('the package of the user')\n"
_MODULES = {"pipelines", "pipelines.lake", "assets.scores"}
_LIBRARY = """
from importlib.resources import files
import pyarrow as pa
import karmalake, karmalake.dagster, karmalake.outbox
from karmalake.pipelines.contract.avro import parse_avro

assert callable(karmalake.open_warehouse) and karmalake.outbox.add
assert karmalake.dagster.build_defs().resolve_job_def("refresh")
assert files("karmalake.assets").joinpath("dagster.yaml").is_file()
assert len(parse_avro(pa.array([b"", b"x"])).errors) == 2
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with packages of a user and, in `venv`, the wheel beside the packages of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(REPOSITORY, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    packages = _install(folder, next(folder.glob("*.whl")))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def core(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like `installed`, with only the packages that the wheel without extras requires."""
    folder = tmp_path_factory.mktemp("core")
    packages = _install(folder, next(installed.glob("*.whl")))
    for name, place in _core_files().items():
        (packages / name).symlink_to(place)
    return folder


def _install(folder: Path, wheel: Path) -> Path:
    """Install a wheel without dependencies in `folder / "venv"`, beside packages of a user; return its packages."""
    _run(folder, sys.executable, "-m", "venv", "--without-pip", "venv")
    target = ["--python", "venv/bin/python", "--offline", "--no-deps", str(wheel)]
    _run(folder, sys.executable, "-m", "uv", "pip", "install", *target)
    for name in ("pipelines", "assets"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(_OWN, encoding="utf-8")
    return next((folder / "venv").glob("lib/python*/site-packages"))


def _core_files() -> dict[str, Path]:
    """Return the top-level files and folders of the packages that the core requires, by name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, Path] = {}
    for requirement in map(Requirement, project["dependencies"]):
        for package in dependencies(requirement.name, requirement.extras).values():
            names = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
            found |= {name: Path(str(package.locate_file(name))) for name in names}
    return found


def _finish(folder: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KARMALAKE_", "PYTHON"))}
    environment = clean | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def _run(folder: Path, *command: str, **variables: str) -> str:
    done = _finish(folder, *command, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _command(folder: Path, *arguments: str, **variables: str) -> str:
    return _run(folder, "venv/bin/karmalake", *arguments, **variables)


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
    """A page of errors and a backfill, whose worker is a process of its own, run in such a folder."""
    assert "KL-USAGE" in _command(installed, "errors", "KL-USAGE")
    rows = {"user_id": ["ann"], "action_type": ["UserRated"], "timestamp": ["2026-01-01T00:00:00Z"]}
    parquet.write_table(pa.table(rows), installed / "history.parquet")
    columns = ["--user-id", "user_id", "--action-type-column", "action_type", "--time", "timestamp"]
    assert "1 row, 1 accepted" in _command(installed, "backfill", *columns, "history.parquet")
    _command(installed, "refresh")
    assert "ann" in _command(installed, "sql", "SELECT user_id FROM events")


def test_the_library_loads_beside_packages_of_the_same_name(installed: Path) -> None:
    """`import karmalake`, its outbox, Avro's worker and Dagster's definitions touch no package of the user's.

    What notebooks and pages import of ours is in `karmalake`, and the wheel has it.
    """
    imports = sorted(set(_our_imports()))
    assert len(imports) > 10
    assert [line for line in imports if not re.match(r"(from|import) karmalake\b", line)] == []
    _run(installed, "venv/bin/python", "-W", "ignore", "-c", "\n".join([_LIBRARY, *imports]))


def _our_imports() -> Iterator[str]:
    """Yield each import of ours in notebooks, and in the Python of pages."""
    for source in (*_cells(), *_blocks()):
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        yield from (line for line in map(ast.unparse, imports) if re.search(r"\b(karmalake|pipelines|assets)\b", line))


def _cells() -> Iterator[str]:
    """Yield the Python of each cell, without magics of a line."""
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and not cell.source.startswith("%%"):
                yield re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def _blocks() -> Iterator[str]:
    for path in (REPOSITORY / "docs").glob("*.md"):
        yield from re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_description_leads_nowhere_into_the_tree(installed: Path) -> None:
    """It is the README, without images, and without links to files that an index of packages does not have."""
    metadata = next((installed / "venv").glob("lib/python*/site-packages/karmalake-*.dist-info/METADATA"))
    text = str(message_from_string(metadata.read_text(encoding="utf-8")).get_payload())
    assert "counted exactly once" in text
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []


def test_the_core_streams(core: Path, settings: Settings) -> None:
    """Without any extra, events get from Kafka to documents in Redis."""
    send(settings, valid_records(range(5)))
    assert settings.redis.url is not None
    servers = {
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
    }
    assert "accepted 5" in " ".join(_command(core, "drain", **servers).split())
    for command in ("refresh", "publish"):
        _command(core, command, **servers)
    assert '"user_id"' in _command(core, "show", "u-1", **servers)


_NEEDING: list[tuple[str, list[str], dict[str, str]]] = [
    ("cassandra", ["show", "ann"], {"KARMALAKE_CASSANDRA_HOSTS": "127.0.0.1"}),
    ("contract", ["contract", "check", "a.proto", "a.proto"], {}),
    ("contract", ["contract", "check", "a.avsc", "a.avsc"], {}),
    ("dashboard", ["dashboard"], {}),
    ("local", ["local", "start"], {}),
    ("outbox", ["relay", "--once"], {"KARMALAKE_RELAY_DATABASE_URL": "sqlite:///x.db"}),
    ("rabbitmq", ["drain"], {"KARMALAKE_QUEUE_KIND": "rabbitmq", "KARMALAKE_QUEUE_URL": "amqp://u:p@127.0.0.1:1/"}),
    ("spark", ["rebuild", "--engine", "spark"], {}),
    ("sqs", ["drain"], {"KARMALAKE_QUEUE_KIND": "sqs", "KARMALAKE_QUEUE_URL": "https://127.0.0.1:1/q"}),
]

_LOADING = [
    ("avro", "import pyarrow; import karmalake.pipelines.contract.avro as a; a.parse_avro(pyarrow.array([b'']))"),
    ("dagster", "import karmalake.dagster"),
    ("notebooks", "import karmalake; karmalake.load_ipython_extension(None)"),
    ("notebooks", "import karmalake.charts"),
    ("outbox", "import karmalake.outbox"),
    ("s3", "import duckdb; import karmalake.pipelines.lake.stores as s; s.register_s3(duckdb.connect())"),
]


@pytest.mark.parametrize(("extra", "arguments", "variables"), share(_NEEDING, 3))
def test_a_command_names_the_extra_that_it_needs(
    core: Path, extra: str, arguments: list[str], variables: dict[str, str]
) -> None:
    """One sentence, with what to install, where the packages of an extra are not there."""
    (core / "a.proto").write_text('syntax = "proto3"; message A {}', encoding="utf-8")
    (core / "a.avsc").write_text('"int"', encoding="utf-8")
    done = _finish(core, "venv/bin/karmalake", *arguments, **variables)
    assert done.returncode == 78, done.stdout + done.stderr
    assert f"packages that are not installed: pip install 'karmalake[{extra}]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("extra", "call"), share(_LOADING, 3))
def test_a_module_names_the_extra_that_it_needs(core: Path, extra: str, call: str) -> None:
    """The last line of the error says what to install."""
    last = _finish(core, "venv/bin/python", "-c", call).stderr.splitlines()[-1]
    assert last.startswith("karmalake.pipelines.errors.ConfigurationError: ")
    assert last.endswith(f"needs packages that are not installed: pip install 'karmalake[{extra}]'")


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
