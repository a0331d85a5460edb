"""The turns of the refresh loop: which of them begins which work beside the scores."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast
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


def test_the_work_of_a_replacement_is_spread_over_turns(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores wait for each of them; at 10,000 events per second they waited for all in a row."""
    seconds = 0.0
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: seconds))
    loop_type = stream._RefreshLoop  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loop_type, "_derive", MagicMock())
    draft, replacements, upkeep = MagicMock(), _Pool(), _Pool()
    draft.deferred_users.return_value = 0
    draft.start_publication.side_effect = replacements.submit
    loop = loop_type(
        settings, MagicMock(), draft, MagicMock(), MagicMock(), cast("ThreadPoolExecutor", upkeep), MagicMock()
    )

    def begun(moment: float) -> str:
        """Return what a turn at a moment, in intervals, began."""
        nonlocal seconds
        seconds = moment * settings.reputation.derive_interval_seconds
        before = replacements.calls, upkeep.calls
        loop.turn(last=False)
        after = replacements.calls, upkeep.calls
        names = ("replacement", "upkeep")
        return ", ".join(name for name, old, new in zip(names, before, after, strict=True) if new > old)

    often = (0, 0.1, 0.45, 0.5, 0.6, 0.9, 1, 1.1)
    assert [begun(moment) for moment in often] == [
        "replacement, upkeep", "", "", "upkeep", "", "", "replacement", "",
    ]  # fmt: skip
    assert [begun(moment) for moment in (1.98, 1.99, 2)] == ["upkeep", "", "replacement"]
    assert begun(3) == "replacement, upkeep"


def test_the_end_refreshes_before_it_repeats_a_publication(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft of one that failed may be unusable, also when nothing was recorded since."""
    loop_type, derive = stream._RefreshLoop, MagicMock()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loop_type, "_derive", derive)
    monkeypatch.setattr(stream, "reflects_lake", lambda *_: True)
    failed, done = Future[None](), Future[None]()
    failed.set_exception(OSError("No space left on device"))
    done.set_result(None)
    draft = MagicMock()
    draft.deferred_users.return_value = 0
    draft.start_publication.side_effect = [failed, done]
    loop = loop_type(
        settings, MagicMock(), draft, MagicMock(), MagicMock(), cast("ThreadPoolExecutor", _Pool()), MagicMock()
    )
    loop._lake, loop._derived = MagicMock(), MagicMock()  # pyright: ignore[reportPrivateUsage]
    loop.turn(last=False)
    loop.turn(last=True)
    assert derive.call_count == 2
    assert draft.start_publication.call_count == 2
