"""Free ports on 127.0.0.1 that stay free while their server is down.

Ports that the system assigns (bind to 0) are in the ephemeral range: while a killed server is down, a client could take
its port, and a client that retries could even connect to itself. These ports are below that range.
"""

import secrets
import socket

HOST = "127.0.0.1"
_LOWEST, _HIGHEST = 15_000, 32_000
_used: set[int] = set()


def free_port() -> int:
    """Return a free port that this process has not used before."""
    for _ in range(1_000):
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if port not in _used and _is_free(port):
            _used.add(port)
            return port
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST} on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
