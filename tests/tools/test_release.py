"""`make release`: what it refuses, what it changes, and that it commits and tags only at the end."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.release import ReleaseError, check_tree, check_version, release_changelog, set_version

_PYPROJECT = '[project]\nname = "karmalake"\nversion = "0.1.0"\n[tool.x]\nversion = "9"\n'
_CHANGELOG = "# Changes\n\n## [Unreleased]\n\n- A line.\n\n## [0.1.0] - 2026-01-01\n\n- Old.\n"
_DAY = date(2026, 2, 3)


@pytest.mark.parametrize(
    ("version", "tags", "message"),
    [
        ("", [], "is not of the form x.y.z: make release VERSION=0.2.0"),
        ("1.0", [], "is not of the form"),
        ("v1.0.0", [], "is not of the form"),
        ("0.0.9", [], "is older than 0.1.0"),
        ("0.2.0", ["v0.2.0"], "the tag v0.2.0 exists"),
    ],
)
def test_a_wrong_version_is_refused(version: str, tags: list[str], message: str) -> None:
    """The sentence names the version and what to give instead."""
    with pytest.raises(ReleaseError, match=message):
        check_version(version, _PYPROJECT, tags)


def test_the_first_release_may_have_the_version_of_the_tree() -> None:
    """A version that has no tag yet can be released."""
    check_version("0.1.0", _PYPROJECT, [])
    check_version("0.10.0", _PYPROJECT, ["v0.9.0"])


def test_a_tree_with_changes_is_refused() -> None:
    """The files are named."""
    check_tree("")
    with pytest.raises(ReleaseError, match=r"uncommitted changes \(a\.py, b c\.py\): commit or stash"):
        check_tree(" M a.py\n?? b c.py\n")


def test_the_version_is_set_in_one_place() -> None:
    """Only the project's version changes."""
    assert set_version(_PYPROJECT, "0.2.0") == _PYPROJECT.replace('"0.1.0"', '"0.2.0"')
    assert set_version((REPOSITORY / "pyproject.toml").read_text(), "9.8.7").count("9.8.7") == 1


def test_the_changelog_is_released() -> None:
    """The unreleased section becomes that of the version; an empty one is above it."""
    released = release_changelog(_CHANGELOG, "0.2.0", _DAY)
    heading = "## [Unreleased]\n\n## [0.2.0] - 2026-02-03"
    assert released == _CHANGELOG.replace("## [Unreleased]", heading)
    with pytest.raises(ReleaseError, match=r"has nothing below `## \[Unreleased\]`: say there what changed"):
        release_changelog(released, "0.3.0", _DAY)
    with pytest.raises(ReleaseError, match="has nothing below"):
        release_changelog("# Changes\n\n## [0.1.0] - 2026-01-01\n\n- Old.\n", "0.3.0", _DAY)
    assert f"## [9.8.7] - {_DAY}\n" in release_changelog((REPOSITORY / "CHANGELOG.md").read_text(), "9.8.7", _DAY)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with what a release changes."""
    (tmp_path / "pyproject.toml").write_text(_PYPROJECT)
    (tmp_path / "CHANGELOG.md").write_text(_CHANGELOG)
    for folder in ("docs", "tests/golden"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").write_text("a")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", "--all")
    _git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def _environment() -> dict[str, str]:
    names = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return os.environ | names | {"PYTHONPATH": str(REPOSITORY), "SKIP": "golden docs lint test build image"}


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=_environment(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _release(folder: Path, version: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tools.release", version], cwd=folder, env=_environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_a_release_is_committed_and_tagged_here(repository: Path) -> None:
    """It says what comes next, and what it left out; a second one of the same version is refused."""
    done = _release(repository, "0.2.0")
    assert done.returncode == 0, done.stderr
    assert "test: left out" in done.stdout
    assert "git push origin HEAD v0.2.0" in done.stdout
    assert _git(repository, "status", "--porcelain") == ""
    assert _git(repository, "log", "-1", "--format=%s %D").startswith("Release 0.2.0 HEAD")
    assert _git(repository, "tag") == "v0.2.0\n"
    again = _release(repository, "0.2.0")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert again.stderr.startswith("make release: the tag v0.2.0 exists")


def test_a_refused_release_changes_nothing(repository: Path) -> None:
    """One sentence, and the same files as before."""
    (repository / "docs" / "a").write_text("changed")
    refused = _release(repository, "0.2.0")
    assert refused.stderr.startswith("make release: the tree has uncommitted changes (docs/a)")
    assert (repository / "CHANGELOG.md").read_text() == _CHANGELOG
    assert (repository / "pyproject.toml").read_text() == _PYPROJECT
