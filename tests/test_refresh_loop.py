"""The turns of the refresh loop: which of them begins which work beside the scores."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pipelines import stream
from pipelines.settings import Settings


class _Pool:
    """An executor that ends each call at once, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, *_: object) -> "Future[None]":
        self.calls += 1
        done: Future[None] = Future()
        done.set_result(None)
        return done


def test_small_files_are_merged_between_two_replacements(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keep the processors busy: at 10,000 events per second scores waited for one, then for the other."""
    seconds = 0.0
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: seconds))
    draft: Any = MagicMock()
    draft.deferred_users.return_value = 0
    replacements = _Pool()
    draft.start_publication.side_effect = replacements.submit
    upkeep: Any = _Pool()
    loop_type = stream._RefreshLoop  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loop_type, "_derive", MagicMock())
    loop = loop_type(settings, draft, MagicMock(), MagicMock(), upkeep, MagicMock())
    interval = settings.reputation.derive_interval_seconds
    begun: list[tuple[int, int]] = []
    for step in (0, 0.1, 0.4, 0.5, 0.6, 0.9, 1, 1.1, 2):
        seconds = step * interval
        loop.turn(last=False)
        begun.append((replacements.calls, upkeep.calls))
    often, rare = begun[:8], begun[8]
    assert often == [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (2, 2), (2, 2)]
    assert rare == (3, 3)
