"""Copies of our code, with what Python and numba have compiled of it.

Without that, the programs of a copy would compile all that they import, and each compiled loop, for ten seconds.
"""

import shutil
from pathlib import Path

_BEING_WRITTEN = ("*.pyc.*", "*.tmp.*")
"""What a process of another test is writing beside the code: renamed when it is complete."""


def copy_code(source: Path, target: Path, *left: str) -> None:
    """Copy a folder of the repository, without the names of some patterns."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_BEING_WRITTEN, *left))
