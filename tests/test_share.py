"""The shares of a few days have every case of a large test."""

import pytest

from tests import share as share_module
from tests.share import count, share


@pytest.mark.parametrize("first_day", [20_784, 20_787])
def test_consecutive_days_take_every_case_once(first_day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many days as the share says, beginning at any."""
    monkeypatch.setattr(share_module, "LONG", False)
    taken: list[int] = []
    for day in range(first_day, first_day + 6):
        monkeypatch.setattr(share_module, "DAY", day)
        taken += share(range(20), 6)
    assert sorted(taken) == [*range(20)]


def test_a_long_run_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """LONG=1 takes all cases of every day, and the larger number of random ones."""
    monkeypatch.setattr(share_module, "LONG", True)
    assert share(range(20), 6) == range(20)
    assert count(3, 20) == 20
