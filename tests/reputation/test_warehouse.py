"""Use of a warehouse in a notebook: display, completion, other moments and policies, snapshots, and errors."""

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import altair as alt
import duckdb
import polars as pl
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.reputation import notebook_progress
from pipelines.reputation.compare import compare_policies
from pipelines.reputation.derive import derive
from pipelines.reputation.lake_views import create_lake_views
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.trends import trends
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of
from tests.services.waiting import wait_for

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


def test_the_html_shows_contents_and_metadata(warehouse: Warehouse) -> None:
    """Tables and trends are listed, in HTML that a file name cannot break."""
    shown = warehouse._repr_html_()
    assert all(name in shown for name in ("reputation", "user_days", "events", "default 2", *trends()))
    warehouse.path = Path("/data/<script>/warehouse.duckdb")
    assert "<script>" not in warehouse._repr_html_()
    assert repr(warehouse).startswith("<Warehouse at /data/")


def test_tables_by_name(warehouse: Warehouse) -> None:
    """The tab key completes exactly the tables and views; the error for another name lists them."""
    for name in warehouse._ipython_key_completions_():
        assert warehouse[name].columns
    assert warehouse["reputation"].pl().equals(warehouse.sql("FROM reputation"))
    with pytest.raises(UsageError, match=r"no table 'reputations': there are .*reputation"):
        _ = warehouse["reputations"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [AS_OF - timedelta(days=2.5), (AS_OF - timedelta(days=2.5)).isoformat()])
def test_another_moment(warehouse: Warehouse, moment: object) -> None:
    """A moment may be a time or a text; later events are not in it."""
    then = warehouse.as_of(moment)  # pyright: ignore[reportArgumentType]
    assert then.scores()["user_id"].to_list() == ["ann"]
    assert then.explain("<bob>")["event_id"].drop_nulls().to_list() == []
    assert warehouse.scores()["user_id"].to_list() == ["<bob>", "ann"]
    assert warehouse.events(since=moment)["event_id"].to_list() == ["b"]  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_another_policy(warehouse: Warehouse, tmp_path: Path) -> None:
    """By name, by file or as an object; `compare` compares it with the policy of that moment."""
    policy, file = load_policy("marketplace-feedback"), tmp_path / "mine.toml"
    file.write_text('name = "mine"\nversion = "1"\nactions.DriverRated.points = 7\n', encoding="utf-8")
    assert warehouse.scores("marketplace-feedback").equals(warehouse.scores(policy))
    assert warehouse.explain("ann", file)["earned"].sum() == 7
    assert warehouse.compare(file)["score_after"].to_list() == [7, 7]
    then = warehouse.as_of(AS_OF - timedelta(days=2.5))
    assert then.compare(file).rows() == [("ann", 10, 7, -3, 1, 1)]
    assert then.compare("default", before=file)["change"].to_list() == [3]
    with duckdb.connect() as connection:
        create_lake_views(connection, snapshot_of(tmp_path / "again", EVENTS))
        compared = compare_policies(connection, load_policy("default"), load_policy(file), then.moment)
    assert compared.equals(then.compare(file))


@pytest.mark.slow
def test_compare_uses_what_was_known(warehouse: Warehouse) -> None:
    """Nothing was known before the first commit."""
    assert warehouse.as_of(known_at="2000-01-01").compare("decayed-karma").is_empty()


def test_repr_of_a_moment_and_a_policy(warehouse: Warehouse) -> None:
    """One line, without the policy's rules."""
    shown = repr(warehouse.as_of("2026-01-31", known_at="2026-02-01"))
    assert shown == "<AsOf 2026-01-31 00:00:00 UTC, as known at 2026-02-01 00:00:00 UTC, policy default>"
    assert repr(warehouse.info.policy) == "Policy(name='default', versions=['2'])"


def test_result_types(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have the same rows; without pandas, the error names it and the alternatives."""
    query, values = "SELECT user_id, all_time_score FROM reputation WHERE all_time_score > ?", [0]
    rows = warehouse.sql(query, values).rows()
    assert warehouse.relation(query, values).fetchall() == rows
    assert pl.from_arrow(warehouse.arrow(query, values)).rows() == rows  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("pipelines.reputation.warehouse_session.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"needs pandas, .* pip install pandas, or take \.sql\(\)"):
        warehouse.pandas(query, values)


@pytest.mark.usefixtures("shell")
def test_slow_calls_show_progress_in_their_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the task and its duration; a quick call shows nothing."""
    shown: list[tuple[str, object]] = []
    monkeypatch.setattr(notebook_progress, "_in_notebook", lambda: True)
    for module in ("IPython.display", "IPython.core.display_functions"):  # as marimo does in its processes
        monkeypatch.setattr(f"{module}.display", lambda *_, **__: None)
        monkeypatch.setattr(f"{module}.update_display", lambda *_, **__: None)
    publisher = InteractiveShell.instance().display_pub  # where `display` shows, whichever test made that shell
    monkeypatch.setattr(
        publisher, "publish", lambda data, metadata=None, **_: shown.append((data["text/plain"], metadata))
    )
    with notebook_progress.show_progress("a quick one"):
        pass
    assert shown == []
    monkeypatch.setattr(notebook_progress, "DELAY_SECONDS", 0.0)
    with notebook_progress.show_progress("a slow one"):
        wait_for("the progress", lambda: bool(shown))
    assert shown[0] == ("a slow one: under way 0 s", notebook_progress.PROGRESS)
    assert shown[-1][0].startswith("a slow one: took ")


def test_all_moments_are_utc(warehouse: Warehouse) -> None:
    """A day means its midnight, what has no zone is UTC in any zone of the machine; errors say what to write."""
    assert warehouse.as_of(date(2026, 1, 31)).moment == warehouse.as_of("2026-01-31").moment
    assert warehouse.as_of("2026-01-31T01:00:00+01:00").moment == warehouse.as_of("2026-01-31").moment
    with pytest.raises(UsageError, match="'yesterday' is not a time: write it like"):
        warehouse.as_of("yesterday")
    assert warehouse.as_of(datetime(2026, 1, 31)).moment == warehouse.as_of("2026-01-31").moment  # noqa: DTZ001
    assert warehouse.events(since=AS_OF.replace(tzinfo=None)).equals(warehouse.events(since=AS_OF))
    with pytest.raises(UsageError, match="5 is not a time"):
        warehouse.as_of(5)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_pinned_snapshot_stays(warehouse: Warehouse, tmp_path: Path) -> None:
    """It keeps its contents after the other handle is refreshed; so does a relation."""
    pinned, relation = warehouse.snapshot(), warehouse["reputation"]
    publish(tmp_path, [*EVENTS, Event("c", "cyd", "TransactionCompleted", NOW - DAY)])
    assert warehouse.refresh()
    assert warehouse["reputation"].pl().height == 3
    assert relation.pl().height == 2
    with pinned:
        assert pinned.reputation()["user_id"].to_list() == ["<bob>", "ann"]
        assert pinned.sql("SELECT CAST(TIMESTAMPTZ '2026-01-01 12:00:00+05' AS VARCHAR)").item().endswith("07:00:00+00")


def test_the_magic_queries_the_notebooks_warehouse(shell: InteractiveShell) -> None:
    """Variables are parameters; the rows are shown, or stored in a variable."""
    shell.user_ns["who"] = "ann"
    shown = shell.run_cell_magic("karma", "", "SELECT user_id FROM reputation WHERE user_id = $who")
    assert shown.rows() == [("ann",)]
    assert shell.run_cell_magic("karma", "kept", "FROM reputation") is None
    assert isinstance(shell.user_ns["kept"], pl.DataFrame)


@pytest.mark.slow
def test_charts_are_images_without_network(shell: InteractiveShell) -> None:
    """`%load_ext karmalake` makes altair show images with a title and without external references."""
    chart = alt.Chart(pl.DataFrame({"a": [1, 2]})).mark_bar().encode(x="a").properties(title="two <bars>")
    shown = shell.display_formatter.format(chart)[0]  # pyright: ignore[reportOptionalMemberAccess]
    assert shown["text/plain"] == "two <bars>"
    before, drawn = shown["text/html"].split("base64,")
    assert before == '<img alt="two &lt;bars&gt;" src="data:image/svg+xml;'
    picture = b64decode(drawn.removesuffix('">')).decode()
    assert picture.startswith("<svg")
    assert [elsewhere for elsewhere in ("<script", "<image", "https://") if elsewhere in picture] == []


@pytest.mark.parametrize(
    ("line", "cell", "message"),
    [("", "SELECT $whom", r"\$whom has no value"), ("two words", "SELECT 1", "is not a variable name")],
)
def test_errors_of_the_magic(shell: InteractiveShell, line: str, cell: str, message: str) -> None:
    """A missing variable, or an invalid name."""
    with pytest.raises(UsageError, match=message):
        shell.run_cell_magic("karma", line, cell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "columns"),
    [
        (lambda one: one.explain("ann"), "explain"),
        (lambda one: one.as_of().explain("ann"), "explain"),
        (lambda one: one.explain_change("<bob>", AS_OF - 3 * timedelta(days=1)), "explain_change"),
        (lambda one: one.compare("decayed-karma"), "compare"),
    ],
)
def test_help_lists_every_column(warehouse: Warehouse, call: Callable[[Warehouse], pl.DataFrame], columns: str) -> None:
    """The docstring of a method names every column of its result, and the unit of points."""
    text = getattr(Warehouse, columns).__doc__
    assert [name for name in call(warehouse).columns if not re.search(rf"\b{name}\b", text)] == []
    assert "points" in text


def test_a_closed_handle_says_so(warehouse: Warehouse) -> None:
    """Every call, also of a snapshot and of another moment, until the warehouse is opened again."""
    pinned, then = warehouse.snapshot(), warehouse.as_of()
    warehouse.close()
    calls = (warehouse.reputation, warehouse.scores, warehouse.trend, warehouse.snapshot, pinned.scores, then.scores)
    for call in calls:
        with pytest.raises(UsageError, match=r"this warehouse is closed: open it again"):
            call()
    for shown in (repr(warehouse), warehouse._repr_html_(), repr(pinned), pinned._repr_html_()):
        assert "closed" in shown
        assert "open_warehouse()" in shown


def test_a_lake_file_that_is_gone(tmp_path: Path) -> None:
    """A retry may succeed, for a file that is out of reach may come back."""
    publish(tmp_path, EVENTS)
    with open_warehouse(tmp_path) as opened:
        for file in tmp_path.glob("lake-2/*.parquet"):
            file.unlink()
        for call in (opened.events, opened.scores):
            with pytest.raises(
                TransientError, match=r"parquet is gone, a file of the lake: call warehouse.refresh\(\)"
            ):
                call()


@pytest.mark.parametrize("code", ["%%karma\nSELECT\n  usr_id\nFROM reputation", "warehouse.relation('FROM bad').pl()"])
def test_a_mistake_in_a_notebook_is_short(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    """The message, the line with a mark, and the page: no traceback."""
    shell.run_cell(code)
    output = capsys.readouterr().out
    assert "UsageError KL-USAGE: the query failed:" in output
    assert "LINE" in output
    assert "^^^" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 7


def test_a_lazy_relation_fails_in_a_sentence_too(
    shell: InteractiveShell, warehouse: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are taken outside our calls, by code or by the notebook that shows it."""
    message = "UsageError KL-USAGE: the query failed: Conversion Error"
    shell.run_cell("warehouse.relation('SELECT user_id::INTEGER FROM reputation').fetchall()")
    output = capsys.readouterr().out
    assert message in output
    assert "Traceback" not in output
    show = shell.display_formatter.format  # pyright: ignore[reportOptionalMemberAccess]
    assert message in show(warehouse.relation("SELECT user_id::INTEGER FROM reputation"))[0]["text/plain"]
    assert "<bob>" in show(warehouse.relation("SELECT user_id FROM reputation"))[0]["text/plain"]


def test_an_error_in_a_notebook_is_one_sentence(
    shell: InteractiveShell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback: what, where, what to do, and the page with details."""
    shell.user_ns["folder"] = tmp_path / "nothing"
    shell.run_cell("from karmalake import open_warehouse; open_warehouse(folder)")
    output = capsys.readouterr()
    assert "UsageError KL-USAGE: there is no warehouse at" in output.out + output.err
    assert "see karmalake errors KL-USAGE" in output.out + output.err
    assert "set data_dir" in output.out + output.err
    assert "Traceback" not in output.out + output.err
