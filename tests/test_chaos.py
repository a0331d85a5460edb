"""The crash loop of `make chaos` reports what the audit found, and does not pass what is lost or doubled."""

import sys

import pytest

from pipelines.audit import Audit, Audited
from pipelines.check import Check
from tests.chaos import Story, main, verdict

_UNSOUND = Check("books", "once", passed=False, evidence="they do not add up")


@pytest.mark.slow
def test_a_few_seconds_of_chaos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Among kills and poison, nothing is lost, doubled or blocked (`once`, `nothing-lost`, `not-blocked`)."""
    monkeypatch.setattr(sys, "argv", ["chaos", "0.2"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "lost 0, doubled 0"
    assert _number(lines, "processes killed") > 0
    assert _number(lines, "of them dead letters") > 20
    assert _number(lines, "of them lost") == 0


def _number(lines: list[str], name: str) -> int:
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[-1].replace(",", ""))


def test_poison_that_is_no_dead_letter_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """However well the books agree otherwise."""
    found = Audit([Audited(0, 0, 20)], 10, 0)
    assert verdict(Story(distinct=10, letters={1, 2}), found, [], missing=1) == 1
    assert "of them dead letters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "doubled", "events", "failed", "ending"),
    [
        (0, 0, 9, [], "lost 1, doubled 0"),
        (2, 0, 10, [], "lost 2, doubled 0"),
        (0, 3, 10, [], "lost 0, doubled 3"),
        (0, 0, 11, [], "lost 0, doubled 1"),
        (0, 0, 10, [_UNSOUND], "lost 0, doubled 0"),
    ],
)
def test_what_is_wrong_does_not_pass(
    lost: int, doubled: int, events: int, failed: list[Check], ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever finds it: the audit, the other checks, or the count of what was sent."""
    found = Audit([Audited(0, 0, 20, lost=lost)], events, doubled)
    assert verdict(Story(distinct=10), found, failed) == 1
    assert capsys.readouterr().out.splitlines()[-1] == ending
