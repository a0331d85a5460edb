"""Scopes in documents, explanations, trends and messages; `test_features.py` has the properties."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipelines.cli import main
from pipelines.errors import KarmalakeError, PolicyError, UsageError
from pipelines.lake.tables import create_lake
from pipelines.reputation.derive import DerivationResult, Draft, derive, open_draft
from pipelines.reputation.documents import documents
from pipelines.reputation.explain import explain, explain_change
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scopes import of_known_value
from pipelines.reputation.trends import find_trend
from pipelines.reputation.warehouse import Warehouse
from tests.conftest import REPOSITORY
from tests.lake.builders import commit
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, snapshot_of
from tests.reputation.test_incremental import lake

PAGE = REPOSITORY / "pipelines" / "reputation" / "policies" / "README.md"
HOSTILE = "\x1b[31m\u202e</script>'; DROP TABLE reputation; -- \\"
RULES = """
name = "cities"
version = "1"
windows_days = [30]
score = { start = 1, floor = 0, ceiling = 20 }
correction = { actions = ["Corrected"] }
[caps.daily]
period = "day"
maximum = 5
[actions.Done]
points = 3
[actions.Rated]
rating = { from = "stars", minimum = 1, maximum = 5 }
[scopes.city]
from = "city"
default = "elsewhere"
limit = 3
[scopes.tag]
from = "tag"
"""
CITIES = ("berlin", "berlin", "paris", HOSTILE, "", "x" * 101)
EVENTS = [
    *(Event(f"e{n}", "ann", "Done", NOW - (50 - n // 2) * DAY + n, {"city": city}) for n, city in enumerate(CITIES)),
    Event("r1", "ann", "Rated", NOW - DAY, {"city": "paris", "stars": "4", "tag": "fast"}),
    Event("b1", "bob", "Unknown", NOW - DAY, {"city": "rome"}),
]
MOVE = Event("c1", "ann", "Corrected", NOW - 2, {"target_event_id": "r1", "city": "rome"})
_DECAYING = RULES.replace("points = 3", "points = 3\nhalf_life_days = 10")


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("scopes")
    derive(snapshot_of(folder, EVENTS), parse_policy(RULES), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as opened:
        yield opened


def document(path: Path, user_id: str) -> dict[str, Any]:
    texts = documents(path, pl.Series("user_id", [user_id]))["document"]
    return json.loads(texts[0])


def test_a_document_has_the_largest_values(warehouse: Warehouse) -> None:
    """Those with the most events, ties by their bytes; the others are counted; each value has every view."""
    ann = document(warehouse.path, "ann")
    assert list(ann["by_city"]) == ["berlin", "elsewhere", "paris"]
    assert ann["by_city_omitted"] == 1
    paris = ann["by_city"]["paris"]
    assert paris["reputation_all_time"] == {"score": 3, "events": 2, "rating_average": 4.0, "rating_count": 1}
    assert paris["reputation_last_30_days"] == {"score": 0, "events": 1, "rating_average": 4.0, "rating_count": 1}
    assert (list(ann["by_tag"]), ann["by_tag_omitted"]) == (["fast"], 0)
    bob = document(warehouse.path, "bob")
    assert (bob["by_city"], bob["by_city_omitted"]) == ({}, 0)


def test_the_example_of_the_page(warehouse: Warehouse) -> None:
    """The document of policies/README.md is that of ann."""
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown = json.loads(example)
    assert shown == {member: document(warehouse.path, "ann")[member] for member in shown}


def test_the_values_add_up_to_the_score_before_its_bounds(warehouse: Warehouse) -> None:
    """The caps are shared: two events of one day earn 3 and 2 points, whichever cities they are in."""
    rows = warehouse.sql("SELECT value, all_time_score FROM reputation_by_city WHERE user_id = 'ann' ORDER BY value")
    assert rows.rows() == [(HOSTILE, 2), ("berlin", 5), ("elsewhere", 5), ("paris", 3)]
    assert warehouse.reputation("ann")["all_time_score"].to_list() == [1 + 15]


@pytest.mark.parametrize("value", ["berlin", "elsewhere", HOSTILE])
@pytest.mark.parametrize("view", ["all_time", "last_30_days"])
def test_an_explanation_adds_up_to_the_score_there(warehouse: Warehouse, value: str, view: str) -> None:
    """No start and no bounds are in it."""
    found = warehouse.sql("FROM reputation_by_city WHERE user_id = 'ann' AND value = ?", [value])
    ledger = warehouse.explain("ann", view=view, scope=f"city={value}")
    assert ledger["earned"].sum() == found[f"{view}_score"].item()
    assert ledger["event_id"].null_count() == 0


def test_a_value_that_the_user_does_not_have(warehouse: Warehouse) -> None:
    """It is a mistake to name, as a user without events is; other users have other values."""
    with pytest.raises(KarmalakeError, match=r"^no event of the user has city=berlinn: did you mean 'berlin'\?$"):
        warehouse.explain("ann", scope="city=berlinn")
    with pytest.raises(KarmalakeError, match=r"^no event of the user has tag=slow: there is only fast$"):
        warehouse.explain("ann", scope="tag=slow", view="last_30_days")
    with pytest.raises(KarmalakeError, match=r"^no event of the user has city=rome: none has a value of city$"):
        warehouse.explain("bob", scope="city=rome")  # without a rule for it, it is of no city
    with pytest.raises(KarmalakeError, match=r"no events of user 'an': check the spelling; did you mean 'ann'\?$"):
        warehouse.explain("an", scope="city=berlinn")
    assert warehouse.explain("ann", scope="city=berlin", view="last_30_days").is_empty()


def test_a_value_that_an_event_left(tmp_path: Path) -> None:
    """A correction moves an event to another value; the change of the value that it left has rows, and no mistake."""
    moved = Event("c1", "ann", "Corrected", NOW - 2, {"target_event_id": "r1", "tag": "slow"})
    with open_lake_views(snapshot_of(tmp_path, [*EVENTS, moved])) as connection:
        policy, moments = parse_policy(RULES), (at(NOW - 3), at(NOW))
        changes = explain_change(connection, policy, "ann", *moments, scope="tag=fast")
        assert of_known_value(connection, "tag=fast", changes).height == 1
        ledger = explain(connection, policy, "ann", at(NOW), scope="tag=fast")
        with pytest.raises(KarmalakeError, match="no event of the user has tag=fast: there is only slow"):
            of_known_value(connection, "tag=fast", ledger)


def test_mistakes_are_named(warehouse: Warehouse) -> None:
    """A scope that the policy lacks, or no value, is refused with those that it has."""
    with pytest.raises(UsageError, match="no scope 'citty': did you mean 'city'"):
        warehouse.explain("ann", scope="citty=berlin")
    with pytest.raises(UsageError, match=r"no scope 'x': there are city, tag$"):
        warehouse.explain("ann", scope="x=berlin")
    with pytest.raises(UsageError, match=r"no scope 'x': there are city, tag; a value is written as city=x or tag=x$"):
        warehouse.explain("ann", scope="x")
    with pytest.raises(UsageError, match="has no value: write it as city=VALUE"):
        warehouse.explain("ann", scope="city")
    with pytest.raises(UsageError, match="no scope 'cities': did you mean 'city'"):
        warehouse.trend("scopes", scope="cities")
    with pytest.raises(UsageError, match="has no scopes: leave out"):
        warehouse.explain("ann", policy="default", scope="city=berlin")


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ('[scopes.city]\nfrm = "city"', "did you mean 'from'"),
        ("[scopes.city]\nlimit = 3", "is missing: add it"),
        ('[scopes.city]\nfrom = "city"\nlimit = 0', "scopes.city.limit: has to be at least 1, not 0"),
        ('[scopes.city_omitted]\nfrom = "city"', "choose another name"),
        ('[scopes."City; --"]\nfrom = "city"', "the name of a scope is a small letter"),
        ("\n".join(f'[scopes.s{n}]\nfrom = "s"' for n in range(9)), "scopes: has more than 8 entries"),
    ],
)
def test_a_policy_says_what_is_wrong_with_a_scope(scope: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(f'name = "a"\nversion = "1"\n{scope}')


def test_a_trend_has_the_days_of_each_value(warehouse: Warehouse) -> None:
    """Of the values with the most events; a scope can be chosen."""
    rows = warehouse.trend("scopes", since="2024-02-01", scope="city", top=3).rows(named=True)
    assert [(row["value"], row["events"], row["active_users"], row["rating_average"]) for row in rows] == [
        ("paris", 1, 1, 4.0)
    ]
    both = warehouse.trend("scopes")
    assert set(both["scope"]) == {"city", "tag"}
    assert both.rows_by_key("label").keys() == {f"{row['value']} ({row['scope']})" for row in both.rows(named=True)}
    assert find_trend("scopes").chart.color == "label", "a line of a chart is of one scope"


@pytest.mark.parametrize(("scope", "rows"), [("city=paris", ["ann,paris"]), ("tag", ["ann,fast"])])
def test_the_command_scores_lists_a_scope_or_one_value(
    scope: str,
    rows: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`scores --scope city=paris` has the users of that city, `--scope tag` those of all tags."""
    (tmp_path / "p.toml").write_text(RULES, encoding="utf-8")
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path))
    created = create_lake(tmp_path / "lake")
    commit(created, created.table("events"), "first", events_table(EVENTS))
    arguments = ["--policy", str(tmp_path / "p.toml"), "--as-of", AS_OF.isoformat(), "--scope", scope]
    monkeypatch.setattr(sys, "argv", ["karmalake", "scores", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert [",".join(line.split(",")[:2]) for line in capsys.readouterr().out.splitlines()[1:]] == rows


def refreshed(draft: Draft, folder: Path, rules: str, *commits: list[Event]) -> DerivationResult:
    return draft.refresh(lake(folder / "lake", commits), parse_policy(rules), AS_OF)


def assert_both_by_one_statement(draft: Draft, users: pl.Series, boards: Sequence[str]) -> None:
    """Check that documents, and what is shown, are the same computed together as each alone."""
    both = draft.tables.documents_and_shown(users, boards)
    alone = (pl.concat(draft.tables.document_parts(users, boards)), draft.tables.shown_rows(users))
    for together, expected in zip(both, alone, strict=True):
        assert_frame_equal(together.sort("user_id"), expected.sort("user_id"))


@pytest.mark.slow
@pytest.mark.parametrize("rules", [RULES, _DECAYING], ids=["exact", "decaying"])
def test_a_refresh_publishes_a_value_that_changed(tmp_path: Path, rules: str) -> None:
    """A correction moves a rating to another city; the overall row stays, and the document and the ranks are new."""
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        refreshed(draft, tmp_path, rules, EVENTS)
        derived = refreshed(draft, tmp_path, rules, EVENTS, [MOVE])
        assert derived.rebuild_reason is None
        assert derived.changed_users is not None
        assert derived.changed_users.to_list() == ["ann"]
        boards = ("all_time", "all_time.city=paris", "all_time.city=berlin")
        drafted = pl.concat(draft.tables.document_parts(derived.changed_users, boards)).sort("user_id")
        assert_both_by_one_statement(draft, derived.changed_users, boards)
        draft.publish()
        assert_frame_equal(drafted, documents(tmp_path / "warehouse.duckdb", derived.changed_users, boards))
        assert_frame_equal(drafted, documents(tmp_path / "warehouse.duckdb", None, boards).filter(user_id="ann"))
        assert drafted["all_time.city=paris_score"][0] != drafted["all_time.city=berlin_score"][0]
    moved = json.loads(drafted["document"][0])
    assert moved["by_city_omitted"] == 2
    assert "reputation_by_city" in Warehouse(tmp_path / "warehouse.duckdb").tables()


def test_without_scopes_nothing_is_added(tmp_path: Path) -> None:
    """The document has no member, and the warehouse no table, more."""
    path = tmp_path / "warehouse.duckdb"
    derive(snapshot_of(tmp_path, EVENTS), parse_policy(RULES.partition("[scopes")[0]), AS_OF, path)
    assert not [member for member in document(path, "ann") if member.startswith("by_")]
    with Warehouse(path) as opened:
        assert not [name for name in opened.tables() if "_by_" in name]
