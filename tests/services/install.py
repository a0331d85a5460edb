"""Install the test servers that are not Python packages: `make services`, and before every `make test`.

Only with apt-get, and only as root or with passwordless sudo; otherwise their tests are skipped.
"""

import os
import shutil
import subprocess

from tests.services.programs import extend_path
from tests.services.requirements import absent_packages


def main() -> None:
    """Install what is missing, package by package, so that one unknown package does not prevent the others."""
    extend_path()
    packages = absent_packages()
    if not packages or (apt := _apt_get()) is None:
        return
    print(f"installing for the tests: {' '.join(packages)}", flush=True)  # noqa: T201 - the output of a command
    subprocess.run([*apt, "update", "-qq"], check=False)
    for package in packages:
        subprocess.run([*apt, "install", "-y", "-qq", "--no-install-recommends", package], check=False)


def _apt_get() -> list[str] | None:
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    if shutil.which("apt-get") is None or os.geteuid() == 0:
        return apt if shutil.which("apt-get") else None
    sudo = ["sudo", "-n"]
    may = shutil.which("sudo") and subprocess.run([*sudo, "true"], check=False, capture_output=True).returncode == 0
    return [*sudo, *apt] if may else None


if __name__ == "__main__":
    main()
