"""A wall clock that a test can set back under a running pipeline; monotonic clocks are not affected."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest


@dataclass
class Clock:
    """The clock of every module of `pipelines` that calls `datetime.now`."""

    behind: timedelta = timedelta(0)

    def set_back(self, seconds: float) -> None:
        """Set the clock this many seconds behind the real time, for all threads at once."""
        self.behind = timedelta(seconds=seconds)


def replaced_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the wall clock; it shows the real time until it is set back."""
    clock = Clock()

    class Replaced(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz or UTC) - clock.behind

    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Replaced)
    return clock
