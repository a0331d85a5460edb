"""Paths of trust behind the weight of a rater: against all walks of a small world in plain Python, and as printed."""

import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.errors import UsageError
from pipelines.lake.tables import Snapshot
from pipelines.reputation.derive import derive
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import AS_OF, Event, snapshot_of
from tests.reputation.naive_raters import trust, weights
from tests.reputation.test_raters import RULES, rated

WALKERS = [f"user-{number}" for number in range(9)]
SEEDS = ("user-0", "user-1")
DAMPING, ROUNDS, STEPS, MOST = 250_000, 6, 4, 3
POLICY = RULES.replace('seeds = "ann"', 'seeds = ["ann", "user-0", "user-1"]').replace(
    "rounds = 3", f"rounds = {ROUNDS}"
)


def _history() -> list[Event]:
    """Return good ratings among users at random, and one of ann by each of them the day after."""
    chosen = random.Random(1)  # noqa: S311 - a test
    pairs = [(rater, user) for rater in WALKERS for user in WALKERS if rater != user and chosen.random() < 0.4]
    return [
        *(rated(rater, user, chosen.choice((4, 5)), 3.5) for rater, user in pairs),
        *(rated(rater, "ann", 3, age) for rater in [*WALKERS, "eve"] for age in (2.5, 0.5)),
    ]


@pytest.fixture(scope="module")
def history() -> list[Event]:
    return _history()


@pytest.fixture(scope="module")
def snapshot(history: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("lake"), history)


@pytest.fixture(scope="module")
def warehouse(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("paths")
    derive(snapshot, parse_policy(POLICY), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as opened:
        yield opened


def _strongest(history: list[Event], rater: str) -> list[tuple[Decimal, str]]:
    """Return the strongest walk through each user who trusts the rater, by going through all walks from a seed."""
    seeds = {"ann", *SEEDS}
    opinions = defaultdict[str, dict[str, int]](dict)
    for event in history:
        if event.metadata["stars"] != "3":
            opinions[event.metadata["rater_id"]][event.user_id] = {"4": 500, "5": 1000}[event.metadata["stars"]]
    local = {(giver, user): opinion for giver, row in opinions.items() for user, opinion in row.items()}
    after = [trust(local, seeds, DAMPING, done) for done in range(ROUNDS + 1)]
    best: dict[str, tuple[int, list[str]]] = {}
    walks = [(number, [seed], after[number].get(seed, 0)) for number in range(ROUNDS - STEPS, ROUNDS) for seed in seeds]
    while walks:
        number, walk, amount = walks.pop()
        giver = walk[-1]
        for user, opinion in opinions[giver].items():
            passed = amount * opinion // sum(opinions[giver].values()) * (10**6 - DAMPING) // 10**6
            if passed and number + 1 == ROUNDS and user == rater:
                best[giver] = min(best.get(giver, (0, [])), (-passed, [*walk, user]))
            elif passed and number + 1 < ROUNDS and user not in seeds:
                walks.append((number + 1, [*walk, user], passed))
    weight, whole = weights(after[ROUNDS]).get(rater, 0), after[ROUNDS].get(rater, 0)
    found = sorted(best.values())[:MOST]
    return [(Decimal(-passed * weight // whole).scaleb(-6), " > ".join(walk)) for passed, walk in found]


@pytest.mark.slow
def test_the_strongest_paths_are_those_of_all_walks(history: list[Event], warehouse: Warehouse) -> None:
    """For every rater and both days: the same paths and parts, which add up to the weight (`explainable`)."""
    paths = 0
    for rater in WALKERS:
        rows = warehouse.trust_paths("ann", rater)
        days = [(AS_OF - timedelta(days=age)).date() for age in (0.5, 2.5)]
        assert rows["day"].unique(maintain_order=True).to_list() == days
        for (day,), found in rows.partition_by("day", as_dict=True).items():
            expected = _strongest(history, rater)
            paths += len(expected)
            assert found.drop_nulls("path").select("part", "path").rows() == expected, (day, rater)
            assert found["part"].sum() == found["weight"][0]
            assert found["weight"][0] == _weight(warehouse, rater, day)
    assert paths > 2 * len(WALKERS)


def _weight(warehouse: Warehouse, rater: str, day: object) -> Decimal:
    [(weight,)] = warehouse.sql(
        "SELECT weight FROM rater_weights WHERE user_id = ? AND day = ?", [rater, day]
    ).rows() or [(50_000,)]
    return Decimal(weight).scaleb(-6)


def test_the_minimum_comes_from_no_path(warehouse: Warehouse) -> None:
    """No one trusts eve: her ratings have the minimum, and one row says that no path brings it."""
    assert warehouse.trust_paths("ann", "eve").select("weight", "part", "path").unique().rows() == [
        (Decimal("0.05"), Decimal("0.05"), None)
    ]


def test_refuses_what_has_no_answer(warehouse: Warehouse) -> None:
    """A policy whose raters weigh alike, and a rater who has not rated the user."""
    with pytest.raises(UsageError, match="under the policy default all raters weigh alike"):
        warehouse.trust_paths("ann", "eve", "default")
    with pytest.raises(UsageError, match="'zoe' has not rated 'ann': the metadata of ratings name the raters"):
        warehouse.trust_paths("ann", "zoe")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--rater", "eve"], 0, "2024-02-27  0.050000  0.050000  other paths"),
        (["--rater", "eve", "--format", "csv"], 0, "2024-02-27,0.050000,0.050000,\n"),
        (["--rater", "evee"], 2, "'evee' has not rated 'ann': did you mean 'eve'?"),
        (["--rater", "eve", "--scope", "city=berlin"], 2, "leave out --scope"),
        ([], 0, "--rater NAME says through whom a rater is trusted"),
    ],
)
def test_the_command_prints_them(
    options: list[str],
    status: int,
    said: str,
    snapshot: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a table and as rows; options that select a part of a score are refused."""
    (tmp_path / "p.toml").write_text(POLICY, encoding="utf-8")
    monkeypatch.setattr("pipelines.cli.explain._lake", lambda _user: open_lake_views(snapshot))
    arguments = ["explain", "ann", "--policy", str(tmp_path / "p.toml"), "--as-of", AS_OF.isoformat(), *options]
    monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code or 0) == status
    assert said in printed.out + printed.err
