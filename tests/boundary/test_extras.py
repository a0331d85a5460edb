"""The core installs what `karmalake stream` needs; if packages of an extra are missing, the error names the extra."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import karmalake
from pipelines.boundary.extras import EXTRAS, extra
from pipelines.cli.pages import dagster, dashboard
from pipelines.cli.relay import relay
from pipelines.contract import avro
from pipelines.contract.compatibility.avro import avro_breaking_changes
from pipelines.contract.compatibility.protobuf import protobuf_breaking_changes
from pipelines.emit.outbox.database import open_database
from pipelines.errors import ConfigurationError
from pipelines.lake.stores import register_s3
from pipelines.local import binaries
from pipelines.mapping.proto_files import message_type
from pipelines.reputation.engines import load_engine
from pipelines.settings import Settings
from tests.conftest import REPOSITORY

_PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_TRANSITIVE = {"lz4", "snappy", "zstandard", "pydantic_core"}
"""Modules of packages that kafka-python's extras and pydantic bring."""
_OPTIONAL = {
    "assets/": "dagster",
    "pipelines/contract/avro.py": "avro",
    "pipelines/contract/avro_worker.py": "avro",
    "pipelines/contract/compatibility/avro.py": "contract",
    "pipelines/contract/score_change.py": "avro",
    "pipelines/mapping/avro_values.py": "avro",
    "pipelines/dashboard/": "dashboard",
    "pipelines/pages/": "dashboard",
    "pipelines/emit/outbox/": "outbox",
    "pipelines/emit/relay.py": "outbox",
    "pipelines/reputation/charts.py": "notebooks",
    "pipelines/reputation/plots.py": "notebooks",
    "pipelines/reputation/notebook_progress.py": "notebooks",
    "pipelines/reputation/spark/": "spark",
}
"""Files whose callers ask for the extra."""
_INDIRECT = {
    "dagster": {"dagster_shared", "sqlalchemy"},
    "dashboard": {"starlette", "uvicorn"},
    "notebooks": {"IPython"},
    "spark": {"py4j"},
    "sqs": {"botocore"},
    "contract": {"antlr4"},
}
"""Modules of packages that those of an extra bring, or that run it."""


def _enter(address: str) -> None:
    with open_database(address):
        pass


def _avro() -> None:
    avro._parser.cache_clear()
    avro.parse_avro(pa.array([b""]))


_ENTRIES: list[tuple[str, Callable[[], Any]]] = [
    ("avro", _avro),
    ("cassandra", lambda: importlib.import_module("pipelines.serving.cassandra_store")),
    ("contract", lambda: avro_breaking_changes('"int"', '"int"')),
    ("contract", lambda: protobuf_breaking_changes("message A {}", "message A {}")),
    ("dagster", lambda: importlib.import_module("assets")),
    ("dagster", dagster),
    ("dashboard", dashboard),
    ("mysql", lambda: _enter("mysql://u:p@127.0.0.1:1/x")),
    ("notebooks", lambda: karmalake.load_ipython_extension(None)),
    ("outbox", lambda: relay(database="sqlite:///x.db")),
    ("postgresql", lambda: _enter("postgresql://u:p@127.0.0.1:1/x")),
    ("proto", lambda: message_type('syntax = "proto3"; message A {}', "", ())),
    ("rabbitmq", lambda: importlib.import_module("pipelines.ingest.rabbitmq")),
    ("s3", lambda: register_s3(duckdb.connect())),
    ("spark", lambda: load_engine("spark", Settings())),
    ("sqs", lambda: importlib.import_module("pipelines.ingest.sqs")),
]


@pytest.mark.parametrize(("name", "enter"), _ENTRIES, ids=[name for name, _ in _ENTRIES])
def test_a_missing_extra_is_named(name: str, enter: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry point that needs an extra says in one message what needs it and how to install it."""
    for module in EXTRAS[name]:
        if not (module == "sqlalchemy" and name != "outbox"):  # a driver is missing, and SQLAlchemy is there
            _hide(module, monkeypatch)
    for module in [module for module in sys.modules if _is_optional(module)]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigurationError) as caught:
        enter()
    assert re.fullmatch(rf"[^\n]+ needs packages that are not installed: .*'karmalake\[{name}\]'", str(caught.value))


def _hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)


def _is_optional(module: str) -> bool:
    direct = {"pipelines.serving.cassandra_store", "pipelines.ingest.rabbitmq", "pipelines.ingest.sqs"}
    spark_or_relay = ("assets", "pipelines.reputation.spark.", "pipelines.emit.relay")
    return module in direct or module.startswith(spark_or_relay)


def test_the_extra_of_the_embedded_servers_is_named() -> None:
    """Without the packages of broker and cache, the error names the extra `local`."""
    with pytest.raises(ConfigurationError, match=r"embedded broker or cache needs .*karmalake\[local\]"):
        binaries.checked_binary("karmalake-has-no-such-package", "x", "KARMALAKE_REDIS_URL")


def test_our_own_import_error_is_not_a_missing_package() -> None:
    """An import of a nonexistent module of our own is a defect, and raised unchanged."""
    with pytest.raises(ModuleNotFoundError), extra("s3", "a lake on S3"):
        importlib.import_module("pipelines.no_such_module")


def test_the_extras_are_those_of_the_package() -> None:
    """Each extra is declared and has modules, `all` is extras only, and no package is both core and optional."""
    declared: dict[str, list[str]] = _PROJECT["optional-dependencies"]
    assert {*declared} == {"all", *EXTRAS}
    assert re.fullmatch(r"karmalake\[[a-z0-9,]+\]", declared["all"][0])
    optional = {_name(line) for lines in declared.values() for line in lines}
    assert not optional & {_name(line) for line in _PROJECT["dependencies"]}


@pytest.mark.slow
def test_every_import_is_declared() -> None:
    """A module's imports are in the core, or in the extra that its callers or the import itself require."""
    core = {_name(line) for line in _PROJECT["dependencies"]}
    distributions = packages_distributions()
    for path in [*(REPOSITORY / "pipelines").rglob("*.py"), *(REPOSITORY / "assets").rglob("*.py")]:
        name = path.relative_to(REPOSITORY).as_posix()
        required = {extra for prefix, extra in _OPTIONAL.items() if name.startswith(prefix)}
        for module, within in _third_party(ast.parse(path.read_text(encoding="utf-8"))):
            declared = {each for one in {*required, *within} for each in (*EXTRAS[one], *_INDIRECT.get(one, ()))}
            known = module in _TRANSITIVE or core & {_name(each) for each in distributions.get(module, [])}
            assert known or module in declared, (
                f"{name} imports {module}, which neither the core nor {required} declares"
            )


@pytest.mark.slow
def test_starting_imports_only_the_core() -> None:
    """The imports of the command line and of `stream` at start-up need no extra."""
    for start in ("pipelines.cli.app", "pipelines.stream", "pipelines.drain", "pipelines.refresh"):
        for module in _reachable(start, set()):
            file = _file(module)
            assert file is None or not _outside_an_extra(file), f"{start} imports {module}, which needs an extra"


def _outside_an_extra(file: Path) -> bool:
    """Return whether the module level of a file imports packages of an extra."""
    optional = {module for modules in EXTRAS.values() for module in modules}
    return any(name.partition(".")[0] in optional for name in _at_module_level(file))


def _reachable(module: str, found: set[str]) -> set[str]:
    """Return our own modules that importing `module` imports."""
    file = _file(module)
    if module in found or file is None:
        return found
    found.add(module)
    for name in _at_module_level(file):
        if name.startswith(("pipelines", "assets")):
            _reachable(name, found)
    return found


def _file(module: str) -> Path | None:
    place = REPOSITORY.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _at_module_level(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        yield from _names(node)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def _third_party(node: ast.AST, within: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each imported package, with the extras of the blocks around the import."""
    for child in ast.iter_child_nodes(node):
        for name in (name.partition(".")[0] for name in _names(child)):
            if name not in {"assets", "pipelines"} and name not in sys.stdlib_module_names:
                yield name, within
        yield from _third_party(child, (*within, *_asked_by(child)))


def _asked_by(node: ast.AST) -> list[str]:
    calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
    named = [call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) == "extra"]
    return [argument.value for call in named if isinstance(argument := call.args[0], ast.Constant)]  # pyright: ignore[reportReturnType]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_all_packages_of_extras_are_here() -> None:
    """The tests run with every extra: a wrong module name in the table would go unnoticed otherwise."""
    assert [module for modules in EXTRAS.values() for module in modules if find_spec(module) is None] == []
