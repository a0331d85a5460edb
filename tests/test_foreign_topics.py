"""Four topics that were not designed for karmalake, as a newcomer brings them in: `examples/foreign`."""

import ast
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from examples.foreign.demo import bring_in
from examples.foreign.teams.moderation import decisions
from examples.foreign.teams.payments import payments
from examples.foreign.teams.reviews import changes
from examples.foreign.teams.team import Record
from tests.conftest import REPOSITORY
from tests.share import count

_EXAMPLE = REPOSITORY / "examples" / "foreign"
_KILLS = count(3, 10)


def test_the_teams_do_not_know_karmalake() -> None:
    """The producers import the standard library, Kafka's and Avro's clients, and each other."""
    modules = list((_EXAMPLE / "teams").glob("*.py"))
    imported = {name for path in modules for name in _imported(path)}
    assert len(modules) > 5
    assert {"kafka", "fastavro"} <= imported
    assert imported.isdisjoint({"assets", "karmalake", "pipelines", "tests"})
    assert {name for name in imported if name.startswith("examples")} == {"examples.foreign.teams"}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (name := node.module):
            yield name.rpartition(".")[0] if name.startswith("examples") else name.partition(".")[0]


@pytest.mark.parametrize("team", [payments, decisions, changes])
def test_a_seed_makes_the_same_records(team: Callable[[int], Iterator[Record]]) -> None:
    """Records and books follow from the seed."""
    first, again, other = (list(islice(team(seed), 200)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.services
@pytest.mark.slow
def test_kills_of_the_ingest_change_nothing_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lake has what is in the teams' books; the late suspension gates by event time (`once`, `nothing-lost`)."""
    assert bring_in(tmp_path, _KILLS) == []
    shown = capsys.readouterr().out
    for text in ("ride-ratings", "payments", "moderation", "shop.public.reviews", "suspended"):
        assert text in shown
