"""A wall clock that jumps back and forth, as after a manual setting or a bad time server; other clocks go on.

It jumps for the code of `pipelines` alone, within one process: tests put it there, no setting does.
"""

import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

_PAUSE_SECONDS = (0.05, 1.0)
_JUMPS_SECONDS = (2.0, 30.0, 300.0)
_ahead = timedelta(0)
_real_time = time.time


class _Datetimes(type(datetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class Jumping(datetime, metaclass=_Datetimes):
    """A datetime whose `now` is that of the jumping clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return a plain datetime."""
        moved: Any = datetime.now(tz) + _ahead
        return moved


def with_jumping_clock(seed: int, task: Callable[..., object], *arguments: Any) -> None:
    """Run a task in this process, whose wall clock jumps from now on."""
    install()
    threading.Thread(target=_jump, args=(random.Random(seed),), daemon=True).start()  # noqa: S311 - no secret
    task(*arguments)


def install() -> None:
    """Let the modules of `pipelines` that are imported ask the clock that `set_ahead` moves."""
    time.time = lambda: _real_time() + _ahead.total_seconds()
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.") and vars(module).get("datetime") is datetime:
            module.datetime = Jumping  # pyright: ignore[reportAttributeAccessIssue]


def set_ahead(seconds: float) -> None:
    """Let the clock be ahead of the real one, or behind it."""
    global _ahead  # noqa: PLW0603 - a process has one wall clock
    _ahead = timedelta(seconds=seconds)


def _jump(rng: random.Random) -> None:
    pause = threading.Event()
    while True:
        pause.wait(rng.uniform(*_PAUSE_SECONDS))
        most = rng.choice(_JUMPS_SECONDS)
        set_ahead(rng.uniform(-most, most))
