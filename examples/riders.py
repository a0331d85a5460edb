"""Riders who rate: each rating is sent until the service confirms that it is stored."""

import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

_DRIVERS = 40
_STARS = (1, 2, 3, 4, 5)
_WEIGHTS = (2, 3, 10, 35, 50)
_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 0.1


@dataclass(slots=True)
class Rider:
    """A client of the service with its own connection, which it reopens after an error."""

    port: int
    connection: HTTPConnection | None = None

    def rate(self, ride: str, driver: str, rider: str, stars: int) -> bool:
        """Send a rating once; return whether the service confirmed it."""
        body = json.dumps({"driver": driver, "rider": rider, "stars": stars})
        self.connection = self.connection or HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_SECONDS)
        try:
            self.connection.request("PUT", f"/rides/{ride}/rating", body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            response.read()
        except (HTTPException, OSError):
            self.close()
            return False
        return response.status in {HTTPStatus.CREATED, HTTPStatus.OK}

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def rate_rides(port: int, seed: int, stop: Callable[[int], bool], pause_seconds: float) -> int:
    """Rate rides, retrying each until it is stored, until `stop(number stored)` is true; return that number."""
    rng, rider, stored, pause = random.Random(seed), Rider(port), 0, threading.Event()  # noqa: S311 - not secret
    try:
        while not stop(stored):
            ride, driver = f"ride-{seed}-{stored}", f"driver-{rng.randrange(_DRIVERS)}"
            (stars,) = rng.choices(_STARS, _WEIGHTS)
            while not rider.rate(ride, driver, f"rider-{seed}", stars):
                pause.wait(_RETRY_SECONDS)
            stored += 1
            pause.wait(pause_seconds)
    finally:
        rider.close()
    return stored
