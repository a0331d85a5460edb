"""A wall clock that jumps back and forth, as after a manual change or by a bad time server.

Only the wall clock of `pipelines` in this process jumps; monotonic clocks do not.
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
_offset = timedelta(0)
_real_time = time.time


class _DatetimeMeta(type(datetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class JumpingDatetime(datetime, metaclass=_DatetimeMeta):
    """A datetime whose `now` is that of the jumping clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return a plain datetime."""
        moved: Any = datetime.now(tz) + _offset
        return moved


def with_jumping_clock(seed: int, task: Callable[..., object], *arguments: Any) -> None:
    """Run a task in this process with a wall clock that jumps."""
    install()
    threading.Thread(target=_jump, args=(random.Random(seed),), daemon=True).start()  # noqa: S311 - no secret
    task(*arguments)


def install() -> None:
    """Make the imported modules of `pipelines` use the clock that `set_offset` moves."""
    time.time = lambda: _real_time() + _offset.total_seconds()
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.") and vars(module).get("datetime") is datetime:
            module.datetime = JumpingDatetime  # pyright: ignore[reportAttributeAccessIssue]


def set_offset(seconds: float) -> None:
    """Set the clock ahead of the real one, or behind it for negative `seconds`."""
    global _offset  # noqa: PLW0603 - a process has one wall clock
    _offset = timedelta(seconds=seconds)


def _jump(rng: random.Random) -> None:
    pause = threading.Event()
    while True:
        pause.wait(rng.uniform(*_PAUSE_SECONDS))
        max_seconds = rng.choice(_JUMPS_SECONDS)
        set_offset(rng.uniform(-max_seconds, max_seconds))
