"""The virtual environment of the peers: outside the repository, created on first use from `requirements.txt`."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.protocol import PeerError

_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_INSTALL_SECONDS = 900


def peers_python() -> str:
    """Return the interpreter of the peers' environment. Raises PeerError if it cannot be installed.

    Only a finished installation is marked complete, so an interrupted one is repeated.
    """
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karmalake-benchmarks"
    folder = cache / f"peers-{digest}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"installing the peers into {folder}")
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)],
        ):
            _run(command)
        complete.touch()
    return str(python)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        output = getattr(error, "stderr", None) or ""
        raise PeerError(f"the peers could not be installed: {error} {output[-300:]}") from error
