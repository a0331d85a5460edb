"""A reader's own tables: which there are, where SQL sees them, and that the warehouse stays locked and itself."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

ROWS = {"user_id": ["ann", "bob"], "segment": ["new", "old"]}
JOINED = "SELECT segment FROM reputation JOIN segments USING (user_id)"
KINDS: dict[str, Callable[[], Any]] = {
    "polars": lambda: pl.DataFrame(ROWS),
    "polars, lazy": lambda: pl.LazyFrame(ROWS),
    "arrow": lambda: pa.table(ROWS),
    "record batch": lambda: pa.RecordBatch.from_pydict(ROWS),
    "arrow reader": lambda: pa.table(ROWS).to_reader(),
    "duckdb": lambda: duckdb.sql("SELECT 'ann' AS user_id, 'new' AS segment"),
    "pandas": lambda: PandasLike(ROWS),
}


class PandasLike:
    """What Arrow sees of a pandas data frame: its stream. pandas is not among the packages of the tests."""

    def __init__(self, rows: dict[str, list[str]]) -> None:
        self._table = pa.table(rows)

    def __arrow_c_stream__(self, schema: object = None) -> object:
        return self._table.__arrow_c_stream__(schema)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("own")
    events = [Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"})]
    derive(snapshot_of(folder / "lake", events), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    return folder


@pytest.fixture
def warehouse(folder: Any) -> Iterator[Warehouse]:
    with open_warehouse(folder) as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_everywhere(warehouse: Warehouse, shell: InteractiveShell, kind: str) -> None:
    """As an argument, registered, and as a variable of a notebook."""
    assert warehouse.sql(JOINED, tables={"segments": KINDS[kind]()}).rows() == [("new",)]
    assert warehouse.arrow(JOINED, tables={"segments": KINDS[kind]()}).to_pylist() == [{"segment": "new"}]
    with pytest.raises(UsageError, match="Table with name segments does not exist"):
        warehouse.sql(JOINED)  # it was for that query only
    warehouse.register("segments", KINDS[kind]())
    assert warehouse.relation(JOINED).fetchall() == [("new",)]
    shell.user_ns["Mine"] = KINDS[kind]()
    assert shell.run_cell_magic("karma", "", "SELECT count(*) FROM mine WHERE user_id = 'ann'").item() == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_python_objects_are_refused(warehouse: Warehouse, lazy: bool) -> None:
    """Their column is named: without a cast, SQL would see the addresses of the objects."""
    frame = pl.DataFrame({"user_id": ["ann"], "note": pl.Series([object()], dtype=pl.Object)})
    with pytest.raises(UsageError, match=r"^mine has Python objects in the column 'note': cast it"):
        warehouse.sql("FROM mine", tables={"mine": frame.lazy() if lazy else frame})


def test_columns_of_other_types_keep_their_values(warehouse: Warehouse) -> None:
    """Categories and enums are texts, times of other zones the same moments, names of SQL are names."""
    moment = datetime(2026, 11, 1, 12, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "select": pl.Series(["b"], dtype=pl.Enum(["b", "a"])),
            "order": pl.Series(["c"], dtype=pl.Categorical),
            "from": pl.Series([moment]).dt.convert_time_zone("Asia/Tokyo"),
        }
    )
    assert warehouse.sql('FROM "table"', tables={"table": frame}).row(0) == ("b", "c", moment)
    arrow = pa.table({"group": pa.array(["d"]).dictionary_encode()})
    assert warehouse.sql('SELECT "group" FROM "user"', tables={"user": arrow}).item() == "d"


def test_registered_tables_stay(warehouse: Warehouse) -> None:
    """Over a query that borrows the name, a refresh and a snapshot; another one replaces them."""
    warehouse.register("segments", pl.DataFrame({"user_id": ["ann"], "segment": ["kept"]}))
    assert warehouse.sql(JOINED, tables={"segments": pl.DataFrame(ROWS)}).item() == "new"
    assert warehouse.snapshot().sql(JOINED).item() == "kept"
    warehouse.refresh()
    assert warehouse.sql(JOINED).item() == "kept"
    assert warehouse["segments"].pl().item(0, "segment") == "kept"
    warehouse.register("segments", pl.DataFrame(ROWS))
    assert warehouse.sql(JOINED).item() == "new"


@pytest.mark.parametrize("name", ["events", "EVENTS", "reputation"])
def test_a_table_of_the_warehouse_is_not_replaced(warehouse: Warehouse, shell: InteractiveShell, name: str) -> None:
    """Its name is refused; a variable of that name is ignored by a cell, since notebooks keep results by such names."""
    frame = pl.DataFrame({"user_id": ["zoe"]})
    with pytest.raises(UsageError, match=f"'{name}' is a table of the warehouse"):
        warehouse.register(name, frame)
    with pytest.raises(UsageError, match=f"'{name}' is a table of the warehouse"):
        warehouse.sql(f"FROM {name}", tables={name: frame})
    shell.user_ns[name] = frame
    assert shell.run_cell_magic("karma", "", f"FROM {name} SELECT user_id").rows() == [("ann",)]


def test_own_names_do_not_meet_ours(warehouse: Warehouse) -> None:
    """Scores and trends create temporary tables; a reader's of the same names change no result."""
    before, ratings = warehouse.scores(), warehouse.trend("rating")
    for name in ("contribution", "fact", "role", "emission", "rating_given", "known_event", "arrow_rows"):
        warehouse.register(name, pl.DataFrame({"user_id": ["zoe"]}))
    assert warehouse.scores().equals(before)
    assert warehouse.trend("rating").equals(ratings)
    assert warehouse.sql("FROM fact").item() == "zoe"


def test_a_name_of_duckdb_itself_breaks_nothing(warehouse: Warehouse) -> None:
    """The list of tables reads DuckDB's own ones, not a reader's of such a name."""
    before = warehouse.tables()
    for name in ("duckdb_views", "duckdb_tables", 'it\'s; "quoted"'):
        warehouse.register(name, pl.DataFrame({"user_id": ["zoe"]}))
    assert warehouse.tables() == before
    assert warehouse["duckdb_views"].fetchall() == [("zoe",)]


def test_names_that_differ_only_by_case(warehouse: Warehouse) -> None:
    """The spelling of the query decides, where it can; the last one registered stays, over queries and refreshes."""
    one, two = (pl.DataFrame({"number": [number]}) for number in (1, 2))
    for name, number in (("df", 1), ("DF", 2)):
        assert warehouse.sql(f"FROM {name}", tables={"df": one, "DF": two}).item() == number
        assert warehouse.sql(f"FROM {name}", tables={"DF": two, "df": one}).item() == number
    for query in ("FROM Df", "FROM df, DF"):
        with pytest.raises(UsageError, match="'DF' and 'df' are one name in SQL, which ignores case: rename one"):
            warehouse.sql(query, tables={"df": one, "DF": two})
    for name, table in (("Kept", one), ("kept", two), ("Kept", one)):
        warehouse.register(name, table)
    assert warehouse.sql("FROM KEPT", tables={"KEPT": two}).item() == 2
    assert warehouse.sql("FROM kept").item() == 1
    warehouse.refresh()
    assert warehouse.sql("FROM kept").item() == 1


def test_what_is_no_name(warehouse: Warehouse) -> None:
    """Tables without names, and names of another type, are mistakes with a sentence."""
    frame = pl.DataFrame(ROWS)
    for tables in (frame, [frame]):
        with pytest.raises(UsageError, match=r"tables is a \w+: give a dictionary, such as tables={'mine': frame}"):
            warehouse.sql("FROM mine", tables=tables)  # pyright: ignore[reportArgumentType]
    for name in (5, ""):
        with pytest.raises(UsageError, match=f"{name!r} is not a name: give a text, such as 'mine'"):
            warehouse.register(name, frame)  # pyright: ignore[reportArgumentType]


def test_only_named_tables_are_read(warehouse: Warehouse) -> None:
    """`tables` may hold anything that the query does not name: a lazy frame there is not run."""
    failing = pl.LazyFrame({"a": [1]}).map_batches(lambda _: sys.exit("was run"))
    assert warehouse.sql("SELECT 1", tables={"costly": failing, "number": 5}).item() == 1
    assert warehouse.sql("WITH own AS (SELECT 2) FROM own", tables={}).item() == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (5, "mine is a int, which is not a table: give a frame of polars"),
        ([{"a": 1}], "mine is a list"),
        (pl.DataFrame, "mine is a type"),
        (pl.Series([1]), "mine is a Series"),
        (pl.scan_csv("no/such/file.csv"), "mine cannot be read as a table: .*no/such/file.csv"),
        (pl.LazyFrame({"a": [1]}).select("b"), "mine cannot be read as a table: .*b"),
        (
            duckdb.sql("SELECT CAST(a AS INTEGER) FROM (VALUES ('x')) AS v(a)"),
            "mine cannot be read as a table: Conversion",
        ),
    ],
)
def test_what_is_no_table(warehouse: Warehouse, table: object, message: str) -> None:
    """The message says what was given, or why it cannot be read."""
    with pytest.raises(UsageError, match=message):
        warehouse.register("mine", table)
    with pytest.raises(UsageError, match=message):
        warehouse.sql("FROM mine", tables={"mine": table})


def test_the_connection_stays_locked(warehouse: Warehouse, folder: Any) -> None:
    """A table of one's own opens no file, runs no Python name, and lifts no setting."""
    warehouse.register("mine", pl.DataFrame({"path": [f"{folder}/secret"]}))
    frame = pl.DataFrame(ROWS)
    assert frame.height
    for query in (f"FROM read_text('{folder}/secret')", "FROM frame", "SET enable_external_access = true"):
        with pytest.raises(UsageError):
            warehouse.sql(query)
