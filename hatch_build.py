"""Build hooks: the wheel takes one name, `karmalake`, and the README has no link into this tree.

In the tree `pipelines` and `assets` are packages of their own. In the wheel they are inside `karmalake`, so that an
installation works beside folders and packages of a user with such names: the hook copies them there and prefixes their
names in imports, and in strings that are exactly the name of one of our modules (`-m`, resources, loggers).
"""

import ast
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_PACKAGES = ("assets", "pipelines")
_DOOR = "karmalake"
_IMAGE = re.compile(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]*\)")
_TARGET = re.compile(r"\]\((?!https?:|#)([^)]*)\)")
_PAGES = "\nThe pages that this text names are in the source distribution, most of them in its folder `docs`.\n"


class PortableReadme(MetadataHookInterface):
    """Makes the README the description of the package; a package index has neither our images nor our pages."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        text = portable(text) if repository is None else linked(text, repository, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


class OneName(BuildHookInterface[Any]):
    """Puts everything into `karmalake`; an editable installation uses the tree as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Collect the renamed files in a temporary folder."""
        self._folder = None if version == "editable" else Path(tempfile.mkdtemp())
        if self._folder is None:
            return
        collect(Path(self.root), self._folder / _DOOR)
        build_data["force_include"][str(self._folder / _DOOR)] = _DOOR

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - its interface
        """Remove the temporary folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder)


def portable(readme: str) -> str:
    """Return a README without images of this tree, and with the text of each link into it instead of the link."""
    return _LINK.sub(r"\1", _IMAGE.sub("", readme)) + _PAGES


def linked(readme: str, repository: str, tag: str) -> str:
    """Return a README whose links into this tree lead to a tag of the repository; without images of this tree."""
    return _TARGET.sub(rf"]({repository.rstrip('/')}/blob/{tag}/\1)", _IMAGE.sub("", readme))


def collect(root: Path, target: Path) -> None:
    """Copy the packages of the tree `root` into `target`, under their names in the wheel."""
    modules = {_module(path, root) for package in _PACKAGES for path in (root / package).rglob("*.py")}
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / _DOOR, target, ignore=unwanted)
    for package in _PACKAGES:
        shutil.copytree(root / package, target / package, ignore=unwanted)
    shutil.copyfile(root / "docs" / "operations.md", target / "pipelines" / "operations.md")  # for `karmalake errors`
    shutil.copyfile(root / "dagster.yaml", target / "assets" / "dagster.yaml")  # for `karmalake dagster`
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        path.write_bytes(rename(path.read_bytes(), modules))


def rename(source: bytes, modules: set[str]) -> bytes:
    """Return Python source in which our packages are inside `karmalake`; `modules` are the names of all modules."""
    lines = source.splitlines(keepends=True)
    for line, column in sorted(_places(source, lines, modules), reverse=True):
        text = lines[line - 1]
        lines[line - 1] = text[:column] + f"{_DOOR}.".encode() + text[column:]
    return b"".join(lines)


def _places(source: bytes, lines: list[bytes], modules: set[str]) -> set[tuple[int, int]]:
    """Return line and byte of each name to be prefixed."""
    found: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=str(name), level=0) if _is_ours(name):
                found.add((node.lineno, node.col_offset + len("from ")))
            case ast.Import():
                found |= {(alias.lineno, alias.col_offset) for alias in node.names if _is_ours(alias.name)}
                if any(_is_ours(alias.name) and not alias.asname for alias in node.names):
                    raise ValueError(f"`{ast.unparse(node)}` would bind another name in the wheel: import it `as` one")
            case ast.Constant(value=str(name)) if name in modules:
                found.add((node.lineno, lines[node.lineno - 1].index(name.encode(), node.col_offset)))
            case _:
                pass
    return found


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _PACKAGES


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
