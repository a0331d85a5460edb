"""Make a release on this machine: `make release VERSION=x.y.z`. Nothing is published.

Checks come first and change nothing. Then each step in order; the first that fails ends the release, and
`git restore . && git clean -fd tests/golden` undoes what the steps before it changed. Commit and tag come last.
`SKIP="lint test"` leaves steps out, for the tests of this command.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_VERSION_LINE = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
_NEXT = "## [Unreleased]\n"
_UNRELEASED = re.compile(rf"^{re.escape(_NEXT)}(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_IMAGES = {"stream": "karmalake", "dagster": "karmalake-dagster"}
"""The targets of the Dockerfile, and the names of their images."""
_UNDO = "`git restore . && git clean -fd tests/golden` undoes what was changed"


class ReleaseError(Exception):
    """A release cannot be made; the message says why and what to do."""


def check_version(version: str, pyproject: str, tags: list[str]) -> None:
    """Raise ReleaseError unless a version is x.y.z, not older than the one in pyproject.toml, and has no tag."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION={version!r} is not of the form x.y.z: make release VERSION=0.2.0")
    current = _current_version(pyproject)
    if _as_numbers(version) < _as_numbers(current):
        raise ReleaseError(f"{version} is older than {current}, the version in pyproject.toml: give a newer one")
    if f"v{version}" in tags:
        raise ReleaseError(f"the tag v{version} exists: {version} is released; give a newer version")


def check_tree(status: str) -> None:
    """Raise ReleaseError if `git status --porcelain` names a file."""
    if status.strip():
        files = ", ".join(line[3:] for line in status.splitlines()[:5])
        raise ReleaseError(f"the tree has uncommitted changes ({files}): commit or stash them first")


def set_version(pyproject: str, version: str) -> str:
    """Return the text of pyproject.toml with another version."""
    return _VERSION_LINE.sub(f'version = "{version}"', pyproject, count=1)


def release_changelog(changelog: str, version: str, day: date) -> str:
    """Return the changelog with the unreleased section as that of a version, below an empty unreleased one.

    Raises ReleaseError if there is nothing in it.
    """
    section = _UNRELEASED.search(changelog)
    if section is None or not section["text"].strip():
        raise ReleaseError("CHANGELOG.md has nothing below `## [Unreleased]`: say there what changed")
    released = f"{_NEXT}\n## [{version}] - {day.isoformat()}\n{section['text']}"
    return changelog[: section.start()] + released + changelog[section.end() :]


_NEXT_STEPS = """{version} is committed and tagged here. Nothing was published. What you do next:
  git show v{version}                      read what was committed
  git push origin HEAD v{version}          publish the commit and the tag
  python -m twine upload dist/*            publish wheel and sdist
  docker push karmalake:{version}          publish the image, under your registry's name;
                                           likewise karmalake-dagster:{version}
  site/                                    the documentation, for your web server
To take it back: git tag --delete v{version} && git reset --hard HEAD~1"""


def main() -> None:
    """Make the release that the arguments name."""
    version, skipped = sys.argv[1] if len(sys.argv) > 1 else "", os.environ.get("SKIP", "").split()
    try:
        _check(version)
        for name, step in _STEPS.items():
            if name in skipped:
                _say(f"{name}: left out")
            else:
                _say(f"{name} ...")
                step(version)
    except ReleaseError as error:
        sys.exit(f"make release: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"make release: `{' '.join(map(str, error.cmd))}` failed, see above; {_UNDO}")
    _say(_NEXT_STEPS.format(version=version))


def _check(version: str) -> None:
    check_version(version, Path("pyproject.toml").read_text(encoding="utf-8"), _output("git", "tag").split())
    check_tree(_output("git", "status", "--porcelain"))
    release_changelog(Path("CHANGELOG.md").read_text(encoding="utf-8"), version, _today())


def _prepare(version: str) -> None:
    for path, text in (
        ("pyproject.toml", set_version(Path("pyproject.toml").read_text(encoding="utf-8"), version)),
        ("CHANGELOG.md", release_changelog(Path("CHANGELOG.md").read_text(encoding="utf-8"), version, _today())),
    ):
        Path(path).write_text(text, encoding="utf-8")


def _make(*targets: str) -> None:
    _run("make", *targets)


def _make_golden_folder(_version: str) -> None:
    _make("setup")  # installs this tree again, so that it has the new version
    _run(sys.executable, "-m", "tests.golden")


def _build(version: str) -> None:
    """Build the wheel and the sdist, and try the wheel in an empty environment and an empty folder."""
    shutil.rmtree("dist", ignore_errors=True)
    _run(sys.executable, "-m", "hatchling", "build", "-d", "dist")
    wheel = Path(f"dist/karmalake-{version}-py3-none-any.whl").absolute()
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "venv", f"{folder}/venv")
        _run(f"{folder}/venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
        karmalake = f"{folder}/venv/bin/karmalake"
        answer = _output(karmalake, "--version", folder=folder)
        if answer != f"karmalake {version}\n":
            raise ReleaseError(f"{wheel} answers {answer!r} to `karmalake --version`; {_UNDO}")
        _output(karmalake, "contract", "show", folder=folder)


def _build_images(version: str) -> None:
    engine = shutil.which("docker") or shutil.which("podman")
    if engine is None or subprocess.run([engine, "info"], capture_output=True, check=False).returncode:
        _say("images: not built, there is no container engine; the head of the Dockerfile has the commands")
        return
    for target, name in _IMAGES.items():
        _run(engine, "build", "--target", target, "--tag", f"{name}:{version}", ".")


def _commit(version: str) -> None:
    _run("git", "add", "--all", "pyproject.toml", "CHANGELOG.md", "docs", "tests/golden")
    _run("git", "commit", "--quiet", "--message", f"Release {version}")
    _run("git", "tag", "--annotate", f"v{version}", "--message", f"karmalake {version}")


_STEPS: dict[str, Callable[[str], None]] = {
    "prepare": _prepare,
    "golden": _make_golden_folder,
    "docs": lambda _version: _make("docs"),
    "lint": lambda _version: _make("lint"),
    "test": lambda _version: _make("test"),
    "build": _build,
    "image": _build_images,
    "commit": _commit,
}


def _current_version(pyproject: str) -> str:
    found = _VERSION_LINE.search(pyproject)
    if found is None:
        raise ReleaseError('pyproject.toml has no line `version = "x.y.z"`')
    return found[1]


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _today() -> date:
    return datetime.now(UTC).date()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _output(*command: str, folder: str | None = None) -> str:
    return subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
