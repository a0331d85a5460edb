"""A clock that a test sets back under a running pipeline; monotonic clocks go on, as they do."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest


@dataclass
class Clock:
    """The clock of every module of `pipelines` that reads the time by `datetime.now`."""

    behind: timedelta = timedelta(0)

    def set_back(self, seconds: float) -> None:
        """Let the time be so many seconds before the true one, for all threads at once."""
        self.behind = timedelta(seconds=seconds)


def replaced_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock in the place of the machine's, true until it is set back."""
    clock = Clock()

    class Replaced(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz or UTC) - clock.behind

    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Replaced)
    return clock
