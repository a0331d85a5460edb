"""The tree is the architecture: a stage knows only the stages before it, and Dagster stands outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_PIPELINES = REPOSITORY / "pipelines"
# In the order of an event's way, as in ARCHITECTURE.md.
_STAGES = ("contract", "emit", "ingest", "lake", "local", "notify", "reputation", "serving")
_ABOVE_ALL = {"cli", "dashboard", "lag", "monitoring"}
_BELOW_ALL = {"beside", "errors", "http_exchange", "private", "settings", "toml_file", "visible"}
_MODULES = sorted(_PIPELINES.rglob("*.py"))


def _imported(source: str, package: str) -> Iterator[str]:
    """Yield the dotted name of every import in `source`, wherever it stands; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _imports(path: Path) -> set[str]:
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    return set(_imported(path.read_text(encoding="utf-8"), package))


def _parts_of_pipelines(path: Path) -> set[str]:
    """Return the stages and top-level modules of `pipelines` that a module imports."""
    return {name.split(".")[1] for name in _imports(path) if name.startswith("pipelines.")}


def _part(path: Path) -> str:
    return path.relative_to(_PIPELINES).parts[0].removesuffix(".py")


def test_imports_are_found_wherever_they_stand() -> None:
    """The reader of imports itself: plain, renamed, relative, late and type-checking ones."""
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
    """A new folder has its place in the order of the data, or looks at all of them from above."""
    folders = {path.parent.relative_to(_PIPELINES).parts[0] for path in _PIPELINES.rglob("*/__init__.py")}
    assert folders <= {*_STAGES, *_ABOVE_ALL}


@pytest.mark.parametrize("stage", [stage for stage in _STAGES if (_PIPELINES / stage).exists()])
def test_a_stage_imports_only_stages_before_it(stage: str) -> None:
    """Nothing before a stage knows of it, and no stage knows of the modules that join them."""
    known = _BELOW_ALL | set(_STAGES[: _STAGES.index(stage) + 1])
    found = {path: _parts_of_pipelines(path) - known for path in _MODULES if _part(path) == stage}
    assert found
    assert {str(path): sorted(others) for path, others in found.items() if others} == {}


def test_errors_and_settings_stand_below_all() -> None:
    """What every stage may import imports no stage."""
    assert _parts_of_pipelines(_PIPELINES / "errors.py") == set()
    assert _parts_of_pipelines(_PIPELINES / "beside.py") == {"errors"}
    assert _parts_of_pipelines(_PIPELINES / "settings.py") == {"errors", "toml_file"}
    assert _parts_of_pipelines(_PIPELINES / "toml_file.py") == {"errors"}
    assert _parts_of_pipelines(_PIPELINES / "http_exchange.py") == {"errors"}
    assert _parts_of_pipelines(_PIPELINES / "visible.py") == set()
    assert _parts_of_pipelines(_PIPELINES / "private.py") == set()


def test_notifications_know_only_the_contract_and_the_bus() -> None:
    """A branch of the fan-out stands beside ingest: nothing of the lake or the scores can hold it up (`isolated`)."""
    known = _BELOW_ALL | {"contract", "emit", "notify"}
    assert set().union(*(_parts_of_pipelines(path) for path in _MODULES if _part(path) == "notify")) <= known


def test_only_the_command_line_imports_the_command_line() -> None:
    """Options and output decide nothing: whatever the CLI can do, a caller in Python can do without it."""
    importers = {_part(path) for path in _MODULES if "cli" in _parts_of_pipelines(path)}
    assert importers <= {"cli"}


@pytest.mark.parametrize("outside", ["dagster", "assets", "tests", "pytest"])
def test_pipelines_knows_nothing_of(outside: str) -> None:
    """Dagster observes and schedules from outside; production code knows of no test."""
    importers = [
        str(path)
        for path in _MODULES
        if any(name == outside or name.startswith(f"{outside}.") for name in _imports(path))
    ]
    assert importers == []
