"""The address of the repository: one setting of pyproject.toml, which site and wheel follow."""

import os
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_ADDRESS = "https://git.example.org/team/karmalake"
_COMMENT = '# [project.urls]\n# Repository = "https://..."\n'
_LEFT = shutil.ignore_patterns(".*", "tests", "benchmarks", "data", "history", "storage", "__pycache__", "dist")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of this tree in which the commented lines are set."""
    folder = tmp_path_factory.mktemp("tree") / "karmalake"
    shutil.copytree(REPOSITORY, folder, ignore=_LEFT)
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert _COMMENT in project
    lines = f'[project.urls]\nRepository = "{_ADDRESS}"\n'
    (folder / "pyproject.toml").write_text(project.replace(_COMMENT, lines), encoding="utf-8")
    return folder


def _run(tree: Path, *command: str) -> None:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_links_to_the_repository(tree: Path) -> None:
    """In the navigation of a page, and where a page names code."""
    _run(tree, "mkdocs", "build", "--strict", "--site-dir", "site")
    assert f'href="{_ADDRESS}"' in (tree / "site" / "support" / "index.html").read_text(encoding="utf-8")
    architecture = (tree / "site" / "architecture" / "index.html").read_text(encoding="utf-8")
    assert f'href="{_ADDRESS}/blob/main/' in architecture


@pytest.mark.slow
def test_the_wheel_links_to_the_repository(tree: Path) -> None:
    """Its metadata names the address, and its description links to the pages of the release."""
    _run(tree, "hatchling", "build", "-t", "sdist", "-d", "dist")
    (built,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(built) as archive:
        information = archive.extractfile(f"{built.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert information is not None
        metadata = message_from_bytes(information.read())
    assert metadata["Project-URL"] == f"Repository, {_ADDRESS}"
    assert f"]({_ADDRESS}/blob/v{metadata['Version']}/docs/start.md)" in str(metadata.get_payload())
