"""The Makefile, with recorders in place of uv and Python."""

import os
import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY

_OF_AN_OUTER_MAKE = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "PYTHON", "VENV"}
"""What `make test` passes on to every make that a test runs."""
_RECORDER = '#!/bin/sh\necho "${0##*/} $*" >>calls\n'


def test_a_folder_whose_name_has_a_space(tmp_path: Path) -> None:
    """The packages are installed by uv; pip, which is slow, is only for where uv cannot."""
    folder = tmp_path / "a b"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("uv", "python"):
        (programs / name).write_text(_RECORDER)
        (programs / name).chmod(0o755)
    (folder / "Makefile").symlink_to(REPOSITORY / "Makefile")
    for name in ("requirements-demo.txt", "pyproject.toml", ".venv/.uv"):
        (folder / name).touch()
    environment = {name: value for name, value in os.environ.items() if name not in _OF_AN_OUTER_MAKE}
    done = subprocess.run(
        ["make", ".venv/.demo"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    packages, own = (folder / "calls").read_text().splitlines()
    assert done.stderr == ""
    assert packages.startswith("uv pip install --python .venv/bin/python ")
    assert own.endswith("--editable .")
