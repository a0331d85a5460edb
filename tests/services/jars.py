"""Jars of a server: downloaded once, kept in a cache outside the repository.

`<name>.jars` lists them with their SHA-512, as requirements.txt lists packages; `python -m tests.services.jars`
(`make pins`) resolves it from `<name>.pom.xml` with Maven, which nothing else needs. `hadoop-aws.jars` is written by
hand, without a pom: the version of the Hadoop in PySpark's jars, and the jars that it depends on (0.7 GB). They come
from Maven Central, or from the mirror that MAVEN_REPOSITORY names, into
`$XDG_CACHE_HOME/karmalake-tests/<name>-<digest of the list>`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

_HERE = Path(__file__).parent
_CENTRAL = "https://repo.maven.apache.org/maven2"
_DOWNLOAD_SECONDS = 240.0
_CONNECTIONS = 8


def cache_folder() -> Path:
    """Return the folder for what the tests download or make once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karmalake-tests"


def jar_folder(name: str) -> Path:
    """Return where the jars of `<name>.jars` are or will be."""
    return cache_folder() / f"{name}-{hashlib.sha256(_list(name).read_bytes()).hexdigest()[:8]}"


def jars(name: str) -> Path:
    """Return the folder of the jars, downloading them if they are not there.

    Several test processes may do so at once: a finished download appears under its name in one step.
    """
    folder = jar_folder(name)
    if not folder.exists():
        _download(name, folder)
    return folder


def class_path(folder: Path) -> str:
    """Return all jars of a folder, spelt out: Java accepts a class archive only for the path it was made with."""
    return os.pathsep.join(str(jar) for jar in sorted(folder.glob("*.jar")))


def resolve(name: str) -> None:
    """Write `<name>.jars` from the pom: a line is a path in the repository and the SHA-512 of its bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        quiet = ("--quiet", "--batch-mode", "--strict-checksums", "-Dstyle.color=never")
        goal = ("dependency:copy-dependencies", "-Dmdep.useRepositoryLayout=true", f"-DoutputDirectory={temporary}")
        subprocess.run(["mvn", *quiet, "-f", str(_HERE / f"{name}.pom.xml"), *goal], check=True)
        found = {file.relative_to(temporary).as_posix(): file.read_bytes() for file in Path(temporary).rglob("*.jar")}
    lines = [f"{path} {hashlib.sha512(found[path]).hexdigest()}\n" for path in sorted(found)]
    _list(name).write_text("".join(lines), encoding="utf-8")


def _list(name: str) -> Path:
    return _HERE / f"{name}.jars"


def _download(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fetched = Path(temporary) / "jars"
        fetched.mkdir()
        _fetch_all(_list(name).read_text(encoding="utf-8").splitlines(), fetched)
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(fetched)  # another process was first


def _fetch_all(lines: list[str], folder: Path) -> None:
    base = os.environ.get("MAVEN_REPOSITORY", _CENTRAL).rstrip("/")
    with (
        httpx.Client(base_url=f"{base}/", timeout=_DOWNLOAD_SECONDS, follow_redirects=True) as client,
        ThreadPoolExecutor(_CONNECTIONS) as pool,
    ):
        list(pool.map(lambda line: _fetch(client, line, folder), lines))


def _fetch(client: httpx.Client, line: str, folder: Path) -> None:
    path, digest = line.split()
    with client.stream("GET", path) as response, (folder / path.rpartition("/")[2]).open("w+b") as jar:
        for part in response.raise_for_status().iter_bytes():
            jar.write(part)
        jar.seek(0)
        found = hashlib.file_digest(jar, "sha512").hexdigest()
    assert found == digest, f"{response.url} is not the jar that was locked"


if __name__ == "__main__":
    for server in sys.argv[1:]:
        resolve(server)
