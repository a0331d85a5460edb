"""The images of these tests: those of the Dockerfile, and the ones that they and compose.yaml begin with.

Where a registry answers, the latter are pulled. Elsewhere the base is a Debian made by debootstrap, and the servers are
stand-ins (`standins/`); they take the names of the images, so that Dockerfile and compose.yaml are used as they are.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.containers.engine import Engine
from tests.services.jars import cache_folder, jars

BASE = "python:3.12-slim-bookworm"
IMAGES = {"stream": "karmalake", "dagster": "karmalake-dagster"}
"""The targets of the Dockerfile, and their names in compose.yaml."""
_STANDINS = Path(__file__).with_name("standins")
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_NO_CACHE = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; Binary::apt::APT::Keep-Downloaded-Packages "false";'
"""For apt, as in the images of Debian: 80 MB less in each layer."""


def build_images(engine: Engine) -> None:
    """Build both images; a build uses the network of this machine, since that of the engine may not reach out."""
    if not engine.has(BASE):
        _import_base(engine)
    for target, name in IMAGES.items():
        engine.run("build", "--network", "host", "--target", target, "--tag", name, REPOSITORY)


def provide_servers(engine: Engine, images: dict[str, str], folder: Path) -> None:
    """Provide the images of the servers: `images` has the name of each by its service."""
    absent = {service: image for service, image in images.items() if not engine.has(image)}
    if not absent:
        return
    shutil.copytree(_STANDINS, folder)
    shutil.copytree(jars("kafka"), folder / "jars")
    for service, image in absent.items():
        engine.run("build", "--network", "host", "--target", service, "--tag", image, folder)


def _import_base(engine: Engine) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip(f"no base image: no registry has {BASE}; as root `apt-get install debootstrap` makes one")
    archive = cache_folder() / "debian-bookworm.tar"
    if not archive.exists():
        _make_base(archive)
    engine.run("import", archive, BASE)


def _make_base(archive: Path) -> None:
    """Make a minimal Debian with Python, which trusts the certificates that this machine trusts."""
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(["chroot", root, "apt-get", "clean"], check=True)
    (root / "etc/apt/apt.conf.d/no-cache").write_text(_NO_CACHE)
    shutil.copyfile(f"/{_CERTIFICATES}", root / _CERTIFICATES)
    subprocess.run(["tar", "-C", root, "-cf", archive.with_suffix(".part"), "."], check=True)
    archive.with_suffix(".part").rename(archive)
    shutil.rmtree(root)
