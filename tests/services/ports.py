"""Free ports on 127.0.0.1 that stay free while their server is down.

A port that the system hands out (bind to 0) lies in the range of outgoing connections: while a killed server is
down, any client could take its port, and a client that retries could even connect to itself. These lie below it.
"""

import secrets
import socket

HOST = "127.0.0.1"
_LOWEST, _HIGHEST = 15_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on and that this process has not been given before."""
    for _ in range(1_000):
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST} on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
