"""Jars of a server: fetched with Maven once, kept in a cache outside the repository.

The cache is `$XDG_CACHE_HOME/karmalake-tests/<name>-<version>-<digest of the pom>`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_DOWNLOAD_SECONDS = 240.0


def jar_folder(name: str) -> Path:
    """Return where the jars of `<name>.pom.xml` are or will be."""
    pom = _pom(name).read_bytes()
    version = re.search(rb"<server.version>([^<]+)<", pom)
    assert version is not None, f"{_pom(name)} names no server.version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "karmalake-tests" / f"{name}-{version[1].decode()}-{hashlib.sha256(pom).hexdigest()[:8]}"


def jars(name: str) -> Path:
    """Return the folder of the jars, fetching them if they are not there.

    Several test processes may do so at once: a finished download appears under its name in one step.
    """
    folder = jar_folder(name)
    if not folder.exists():
        _download(name, folder)
    return folder


def class_path(folder: Path) -> str:
    """Return all jars of a folder, spelt out: Java accepts a class archive only for the path it was made with."""
    return os.pathsep.join(str(jar) for jar in sorted(folder.glob("*.jar")))


def _pom(name: str) -> Path:
    return _HERE / f"{name}.pom.xml"


def _download(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fetched = Path(temporary) / "jars"
        quiet = ("--quiet", "--batch-mode", "--strict-checksums", "-Dstyle.color=never")
        goal = ("dependency:copy-dependencies", f"-DoutputDirectory={fetched}")
        subprocess.run(["mvn", *quiet, "-f", str(_pom(name)), *goal], check=True, timeout=_DOWNLOAD_SECONDS)
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(fetched)  # another process was first
