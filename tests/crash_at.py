"""A drain that ends its process before or after a given call of a given function.

Run as `python -m tests.crash_at pipelines.drain:commit_batch after 2`; the settings come from the environment. It
exits with EXIT_CODE at that moment, and with 0 if the moment never comes.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from pipelines.drain import drain, open_ingest
from pipelines.settings import load_settings

EXIT_CODE = 9


def crashing(function: Callable[..., Any], when: str, call: int) -> Callable[..., Any]:
    """Return a function that ends the process at its `call`-th call, without cleanup."""
    calls: list[int] = []

    def wrapper(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if when == "before" and len(calls) == call:
            os._exit(EXIT_CODE)
        answer = function(*arguments, **named)
        if when == "after" and len(calls) == call:
            os._exit(EXIT_CODE)
        return answer

    return wrapper


def main() -> None:
    """Drain, and crash at the moment given by the arguments."""
    place, when, call = sys.argv[1:]
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, crashing(getattr(owner, name), when, int(call)))
    with open_ingest(load_settings()) as ingest:
        drain(ingest, lambda _: None)


if __name__ == "__main__":
    main()
