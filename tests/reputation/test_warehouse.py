"""What a notebook does with a warehouse: look, complete, ask of other moments, pin, and be told of mistakes."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.testing.globalipapp import start_ipython

from pipelines.errors import KarmalakeError, UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.trends import trends
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

EVENTS = [
    Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"}),
    Event("b", "<bob>", "DriverRated", NOW - 2 * DAY, {"rating": "1"}),
]


def publish(folder: Path, events: list[Event]) -> None:
    derive(
        snapshot_of(folder / f"lake-{len(events)}", events), load_policy("default"), AS_OF, folder / "warehouse.duckdb"
    )


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    """Return the warehouse of two events."""
    publish(tmp_path, EVENTS)
    with open_warehouse(tmp_path) as opened:
        yield opened


@pytest.fixture
def shell(warehouse: Warehouse) -> InteractiveShell:
    """Return a notebook's shell that has the magic, and the warehouse as `warehouse`."""
    shell = start_ipython() or InteractiveShell.instance()
    shell.user_ns.clear()
    shell.user_ns["warehouse"] = warehouse
    shell.run_line_magic("reload_ext", "pipelines")
    return shell


def test_it_shows_what_it_is_and_what_can_be_asked(warehouse: Warehouse) -> None:
    """Tables and trends are named, in HTML that no name of a file can break."""
    shown = warehouse._repr_html_()
    assert all(name in shown for name in ("reputation", "user_days", "events", "default 1", *trends()))
    warehouse.path = Path("/data/<script>/warehouse.duckdb")
    assert "<script>" not in warehouse._repr_html_()
    assert repr(warehouse).startswith("<Warehouse at /data/")


def test_tables_by_name(warehouse: Warehouse) -> None:
    """The tab key completes exactly what can be asked for; another name says what there is."""
    for name in warehouse._ipython_key_completions_():
        assert warehouse[name].columns
    assert warehouse["reputation"].pl().equals(warehouse.sql("FROM reputation"))
    with pytest.raises(UsageError, match=r"no table 'reputations': there are .*reputation"):
        _ = warehouse["reputations"]


@pytest.mark.parametrize("moment", [AS_OF - timedelta(days=2.5), (AS_OF - timedelta(days=2.5)).isoformat()])
def test_another_moment(warehouse: Warehouse, moment: object) -> None:
    """A moment may be a time or a text; what came later is not in it."""
    then = warehouse.as_of(moment)  # pyright: ignore[reportArgumentType]
    assert then.scores()["user_id"].to_list() == ["ann"]
    assert then.explain("<bob>")["event_id"].drop_nulls().to_list() == []
    assert warehouse.scores()["user_id"].to_list() == ["<bob>", "ann"]
    assert warehouse.events(since=moment)["event_id"].to_list() == ["b"]  # pyright: ignore[reportArgumentType]


def test_days_and_texts_are_utc(warehouse: Warehouse) -> None:
    """A day is its midnight; a text that is no time, and a time without a zone, are told what to write."""
    assert warehouse.as_of(date(2026, 1, 31)).moment == warehouse.as_of("2026-01-31").moment
    assert warehouse.as_of("2026-01-31T01:00:00+01:00").moment == warehouse.as_of("2026-01-31").moment
    with pytest.raises(UsageError, match="'yesterday' is not a time: write it like"):
        warehouse.as_of("yesterday")
    with pytest.raises(UsageError, match="has no time zone"):
        warehouse.events(since=AS_OF.replace(tzinfo=None))


def test_a_pinned_snapshot_stays(warehouse: Warehouse, tmp_path: Path) -> None:
    """It shows what it showed when the other handle has moved on; so does a relation."""
    pinned, relation = warehouse.snapshot(), warehouse["reputation"]
    publish(tmp_path, [*EVENTS, Event("c", "cyd", "TransactionCompleted", NOW - DAY)])
    assert warehouse.refresh()
    assert warehouse["reputation"].pl().height == 3
    assert relation.pl().height == 2
    with pinned:
        assert pinned.reputation()["user_id"].to_list() == ["<bob>", "ann"]
        assert pinned.sql("SELECT current_setting('TimeZone') AS zone")["zone"][0] == "UTC"


def test_the_magic_asks_the_notebooks_warehouse(shell: InteractiveShell) -> None:
    """Variables are parameters; the rows are shown, or kept under a name."""
    shell.user_ns["who"] = "ann"
    shown = shell.run_cell_magic("karma", "", "SELECT user_id FROM reputation WHERE user_id = $who")
    assert shown.rows() == [("ann",)]
    assert shell.run_cell_magic("karma", "kept", "FROM reputation") is None
    assert isinstance(shell.user_ns["kept"], pl.DataFrame)


@pytest.mark.parametrize(
    ("line", "cell", "said"),
    [("", "SELECT $whom", r"\$whom has no value"), ("two words", "SELECT 1", "is no name of a variable")],
)
def test_the_magic_says_what_is_wrong(shell: InteractiveShell, line: str, cell: str, said: str) -> None:
    """A missing variable, or a name that is none."""
    with pytest.raises(UsageError, match=said):
        shell.run_cell_magic("karma", line, cell)


def test_a_mistake_in_a_notebook_is_a_sentence(
    shell: InteractiveShell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback: what, where, what to do, and the page that says more."""
    shell.user_ns["folder"] = tmp_path / "nothing"
    shell.run_cell("from pipelines import open_warehouse; open_warehouse(folder)")
    said = capsys.readouterr()
    assert "UsageError: there is no warehouse at" in said.out + said.err
    assert "karmalake drain" in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_every_error_names_a_page_that_exists() -> None:
    """The page, and the heading on it if one is named."""
    kinds = [KarmalakeError, *KarmalakeError.__subclasses__()]
    assert len(kinds) > 8
    for kind in kinds:
        page, _, anchor = kind.page.partition("#")
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        headings = {line.lstrip("#").strip().lower().replace(" ", "-") for line in text.splitlines() if line[:1] == "#"}
        assert not anchor or anchor in headings, kind
