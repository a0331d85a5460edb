"""The shares of a few days have every case of a large test, and every test file."""

from pathlib import Path

import pytest

from tests import share as share_module
from tests.share import count, is_of_today, share


@pytest.mark.parametrize("first_day", [20_784, 20_787])
def test_consecutive_days_take_every_case_once(first_day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many days as the share says, beginning at any."""
    monkeypatch.setattr(share_module, "LONG", False)
    taken: list[int] = []
    for day in range(first_day, first_day + 6):
        monkeypatch.setattr(share_module, "DAY", day)
        taken += share(range(20), 6)
    assert sorted(taken) == [*range(20)]


def test_consecutive_days_take_every_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each day takes about as many."""
    monkeypatch.setattr(share_module, "LONG", False)
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    taken: list[list[Path]] = []
    for day in range(20_784, 20_788):
        monkeypatch.setattr(share_module, "DAY", day)
        taken.append([file for file in files if is_of_today(file, 4)])
    assert sorted(file for of_day in taken for file in of_day) == files
    assert max(map(len, taken)) < 2 * min(map(len, taken))


def test_a_long_run_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """LONG=1 takes all cases of every day, and the larger number of random ones."""
    monkeypatch.setattr(share_module, "LONG", True)
    assert share(range(20), 6) == range(20)
    assert all(is_of_today(Path(name), 6) for name in ("test_a.py", "test_b.py"))
    assert count(3, 20) == 20
