"""The container engine of these tests: the Docker that answers, or one that root starts for them.

That one has a socket, a network and a folder of its own. The folder stays in the cache of the tests, since it has the
layers of the images: four gigabytes.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.jars import cache_folder
from tests.services.process import Server

BUILD_SECONDS = 3_600.0
"""The timeout of a build, and of the tests: the first one waits for it."""
_ABSENT = (
    "no container engine: Docker does not answer; start it, or as root `apt-get install docker.io docker-compose "
    "debootstrap`, then `make test-containers`"
)


@dataclass(frozen=True)
class Engine:
    """A Docker that answers."""

    variables: dict[str, str]
    """The environment of its commands."""

    def run(self, *arguments: str | Path, timeout: float = BUILD_SECONDS) -> str:
        """Run a command of the client; return what it prints. Raises AssertionError with its output if it fails."""
        done = self.attempt("docker", *arguments, timeout=timeout)
        assert done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def attempt(
        self, *command: str | Path, folder: Path | None = None, timeout: float = BUILD_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program that uses the engine, whatever its exit code."""
        return subprocess.run(
            command,
            env=os.environ | self.variables,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def compose(self) -> list[str]:
        """Return the command of Docker Compose; skips the test if there is none."""
        if self.attempt("docker", "compose", "version").returncode == 0:
            return ["docker", "compose"]
        if shutil.which("docker-compose"):
            return ["docker-compose"]
        pytest.skip("no Docker Compose: on Debian, `apt-get install docker-compose`")

    def has(self, image: str) -> bool:
        """Return whether the engine has an image, or can fetch it."""
        known = self.attempt("docker", "image", "inspect", image).returncode == 0
        return known or self.attempt("docker", "pull", "--quiet", image, timeout=600).returncode == 0


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Yield the engine; skips the tests, with one line, where there is none. `folder` is for its socket and log."""
    answering = Engine({})
    if shutil.which("docker") and answering.attempt("docker", "info", timeout=60).returncode == 0:
        yield answering
        return
    if os.geteuid() != 0 or not all(map(shutil.which, ("docker", "dockerd", "containerd"))):
        pytest.skip(_ABSENT)
    with Server("dockerd", _command(folder), folder / "dockerd.log", "API listen on") as server:
        try:
            yield Engine({"DOCKER_HOST": f"unix://{folder}/socket"})
        finally:
            server.stop()
            _unmount_below(folder)


def _unmount_below(folder: Path) -> None:
    """Unmount what the engine leaves mounted when it ends (`netns/default`): pytest cannot remove its folder else."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in reversed(mounts):  # the inner ones first
        if mount.is_relative_to(folder):
            subprocess.run(["umount", mount], check=True, timeout=60)


def _command(folder: Path) -> list[str]:
    options = {
        "data-root": cache_folder() / "docker",
        "exec-root": folder / "state",
        "pidfile": folder / "pid",
        "host": f"unix://{folder}/socket",
        "iptables": "false",  # a machine's own rules stay as they are
        "bip": "172.31.255.1/24",
    }
    return ["dockerd", *(f"--{name}={value}" for name, value in options.items())]
