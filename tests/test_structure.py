"""The architecture, as rules for imports: a stage imports only earlier stages, and nothing imports Dagster."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES, REPOSITORY

_PIPELINES = REPOSITORY / "pipelines"
# In the order in which an event passes them, as in ARCHITECTURE.md.
_STAGES = (
    "contract",
    "bus",
    "emit",
    "sources",
    "mapping",
    "simulate",
    "ingest",
    "lake",
    "local",
    "notify",
    "reputation",
    "serving",
)
_ABOVE_ALL = {"cli", "dashboard", "monitoring", "operate", "pages"}
_BELOW_ALL = {"best_effort", "boundary", "errors", "formats", "settings"}
_NAMED_IN = ("assets", "benchmarks", "docs", "examples", "pipelines", "tests")
_FILES_OF_USERS = {"karmalake.toml", "votes.toml"}
_MODULES = sorted(_PIPELINES.rglob("*.py"))


def _imported(source: str, package: str) -> Iterator[str]:
    """Yield the dotted name of every import in `source`; `package` resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@functools.cache
def _imports(path: Path) -> set[str]:
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    return set(_imported(path.read_text(encoding="utf-8"), package))


def _parts_of_pipelines(path: Path) -> set[str]:
    """Return the stages and top-level modules of `pipelines` that a module imports."""
    return {name.split(".")[1] for name in _imports(path) if name.startswith("pipelines.")}


def _part(path: Path) -> str:
    return path.relative_to(_PIPELINES).parts[0].removesuffix(".py")


def test_all_kinds_of_imports_are_found() -> None:
    """Plain, renamed, relative, local and type-checking imports are found."""
    source = """
import a.b as c
from d import e, f as g
from . import h
from .i import j
from ..k import l
if TYPE_CHECKING:
    from m import n
def late():
    import o
"""
    assert set(_imported(source, "p.q")) == {"a.b", "d.e", "d.f", "p.q.h", "p.q.i.j", "p.k.l", "m.n", "o"}


def test_every_folder_is_a_stage() -> None:
    """A new folder is in the order of the stages, or above or below all of them."""
    folders = {path.parent.relative_to(_PIPELINES).parts[0] for path in _PIPELINES.rglob("*/__init__.py")}
    assert folders <= {*_STAGES, *_ABOVE_ALL, *_BELOW_ALL}


@pytest.mark.parametrize("stage", [stage for stage in _STAGES if (_PIPELINES / stage).exists()])
def test_a_stage_imports_only_stages_before_it(stage: str) -> None:
    """Neither later stages nor the modules that join stages are imported."""
    known = _BELOW_ALL | set(_STAGES[: _STAGES.index(stage) + 1])
    found = {path: _parts_of_pipelines(path) - known for path in _MODULES if _part(path) == stage}
    assert found
    assert {str(path): sorted(others) for path, others in found.items() if others} == {}


def test_errors_and_settings_stand_below_all() -> None:
    """Modules that every stage may import do not import stages."""
    assert _parts_of_pipelines(_PIPELINES / "errors.py") == set()
    assert _parts_of_pipelines(_PIPELINES / "best_effort.py") == {"errors"}
    assert _parts_of_pipelines(_PIPELINES / "formats.py") == {"errors"}
    for path in (_PIPELINES / "settings").glob("*.py"):
        assert _parts_of_pipelines(path) <= {"boundary", "errors", "settings"}
    for path in (_PIPELINES / "boundary").glob("*.py"):
        assert _parts_of_pipelines(path) <= {"boundary", "errors"}


def test_folders_import_only_rows_above_them() -> None:
    """The table of ARCHITECTURE.md is the order of the imports: no folder imports one below it."""
    table = re.findall(
        r"^\| `pipelines/(\w+)`", (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(table) == {path.parent.name for path in _PIPELINES.glob("*/__init__.py")}
    below = {folder: set(table[table.index(folder) + 1 :]) for folder in table}
    found = {str(path): _parts_of_pipelines(path) & below[_part(path)] for path in _MODULES if _part(path) in below}
    assert {path: sorted(parts) for path, parts in found.items() if parts} == {}


def test_no_import_leads_back() -> None:
    """The imports of stages and joining modules have an order, so none is part of a circle."""
    imports = {part: set[str]() for part in map(_part, _MODULES)}
    for path in _MODULES:
        imports[_part(path)] |= (_parts_of_pipelines(path) & imports.keys()) - {_part(path)}
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)


def test_notifications_know_only_the_contract_and_the_bus() -> None:
    """Notifications are independent of ingest: neither the lake nor scores can delay them (`isolated`)."""
    known = _BELOW_ALL | {"bus", "contract", "emit", "notify"}
    assert set().union(*(_parts_of_pipelines(path) for path in _MODULES if _part(path) == "notify")) <= known


def test_connections_to_duckdb_are_made_in_one_place() -> None:
    """All have the same time zone, and no progress bar."""
    modules = [*_MODULES, *(REPOSITORY / "assets").glob("*.py"), *(REPOSITORY / "karmalake").glob("*.py")]
    made = [str(path) for path in modules if "duckdb.connect(" in path.read_text(encoding="utf-8")]
    assert made == [str(_PIPELINES / "boundary" / "database.py")]


def test_results_of_duckdb_are_read_to_their_end() -> None:
    """A result that `fetchone` leaves open may fail what follows on its connection; the feed reads SQLite's."""
    reading = [path.name for path in _MODULES if ".fetchone()" in path.read_text(encoding="utf-8")]
    assert reading == ["feed_state.py"]


def test_delta_rs_does_not_read_rows() -> None:
    """Its scans leave threads that need Python; one that outlived the interpreter aborted a command (exit 134)."""
    scanning = [path.name for path in _MODULES if "to_pyarrow_" in path.read_text(encoding="utf-8")]
    assert scanning == []


def test_delta_rs_does_not_block_other_threads() -> None:
    """Two of its calls hold Python's lock while they wait for a store; of those, minutes in an outage."""
    blocking = re.compile(r"\.(is_deltatable|history)\(")
    assert [path.name for path in _MODULES if blocking.search(path.read_text(encoding="utf-8"))] == []


def test_the_process_that_maps_records_starts_light() -> None:
    """It knows neither settings nor registries: each source starts one, and they were a third of its start."""
    unwanted = {"httpx", "pydantic", "pipelines.settings", "pipelines.contract.registry"}
    program = f"import sys, pipelines.mapping.worker; print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_the_command_line_imports_the_command_line() -> None:
    """The CLI has no logic: a Python caller needs none of it."""
    importers = {_part(path) for path in _MODULES if "cli" in _parts_of_pipelines(path)}
    assert importers <= {"cli"}


@pytest.mark.parametrize("outside", ["dagster", "assets", "tests", "pytest"])
def test_pipelines_knows_nothing_of(outside: str) -> None:
    """Dagster is outside of `pipelines`; production code does not import tests."""
    importers = [
        str(path)
        for path in _MODULES
        if any(name == outside or name.startswith(f"{outside}.") for name in _imports(path))
    ]
    assert importers == []


def test_long_files_exist() -> None:
    """The list names existing files, also after a rename."""
    assert [name for name in LONG_FILES if not (REPOSITORY / "tests" / name).exists()] == []


def test_files_named_in_text_exist() -> None:
    """A docstring or page that names a file of the tree in backticks names one that exists; a user's own are listed."""
    tree = {path.name for top in _NAMED_IN for path in (REPOSITORY / top).rglob("*") if path.is_file()}
    tree |= {path.name for path in REPOSITORY.iterdir()}
    sources = [path for top in _NAMED_IN for path in (REPOSITORY / top).rglob("*") if path.suffix in {".py", ".md"}]
    named = {
        (path, name.rpartition("/")[2])
        for path in [*sources, *REPOSITORY.glob("*.md")]
        for name in re.findall(r"`([a-z_/]+\.(?:py|sql|toml|md))`", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    assert [(path, name) for path, name in sorted(named) if name not in tree | _FILES_OF_USERS] == []
