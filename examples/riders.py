"""Riders who rate: each rating is sent until the service has answered that it is kept."""

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
_SECONDS = 5.0
_PAUSE_SECONDS = 0.1


@dataclass(slots=True)
class Rider:
    """A client of the service with a connection of its own, which it opens again after any trouble."""

    port: int
    connection: HTTPConnection | None = None

    def rate(self, ride: str, driver: str, rider: str, stars: int) -> bool:
        """Send a rating once; return whether the service said that it is kept."""
        body = json.dumps({"driver": driver, "rider": rider, "stars": stars})
        self.connection = self.connection or HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)
        try:
            self.connection.request("PUT", f"/rides/{ride}/rating", body, {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            answer.read()
        except (HTTPException, OSError):
            self.close()
            return False
        return answer.status in {HTTPStatus.CREATED, HTTPStatus.OK}

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def ride_on(port: int, seed: int, enough: Callable[[int], bool], pause_seconds: float) -> int:
    """Rate rides, each until it is kept, until `enough` says so of the number kept; return that number."""
    rng, rider, kept, pause = random.Random(seed), Rider(port), 0, threading.Event()  # noqa: S311 - not secret
    try:
        while not enough(kept):
            ride, driver = f"ride-{seed}-{kept}", f"driver-{rng.randrange(_DRIVERS)}"
            (stars,) = rng.choices(_STARS, _WEIGHTS)
            while not rider.rate(ride, driver, f"rider-{seed}", stars):
                pause.wait(_PAUSE_SECONDS)
            kept += 1
            pause.wait(pause_seconds)
    finally:
        rider.close()
    return kept
