"""Spark computes the tables that DuckDB computes, row for row and type for type, with the same statements."""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.errors import ConfigurationError
from pipelines.lake.stores import list_files
from pipelines.lake.tables import Snapshot, create_lake
from pipelines.reputation.derive import derive, derive_in_duckdb, open_draft
from pipelines.reputation.engines import load_engine
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.merged_users import Aliases
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.scopes import is_scope_table
from pipelines.reputation.spark import storage
from pipelines.reputation.spark.derivation import _prepare, define_functions
from pipelines.reputation.spark.session import open_session
from pipelines.reputation.spark.translation import translate
from pipelines.reputation.steps import define_steps
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.lake import builders as making
from tests.reputation import test_raters
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, snapshot_of, stored_schema
from tests.reputation.merges import Pair, merges_table, stored
from tests.reputation.policies import ACTIONS, EVENTS, policy, versioned
from tests.reputation.strategies import AMOUNTS, CITIES, RATINGS
from tests.reputation.test_incremental import SOME, TABLES
from tests.services.requirements import require
from tests.share import share

pytestmark = pytest.mark.jvm

_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # for runs of seconds
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_SHIPPED_EVENTS = (
    *("UserRated", "ReviewPosted", "TransactionCompleted", "DriverRated") * 8,
    *("AccountSuspended", "AccountReinstated", "RatingRetracted"),
    *[*load_policy("stackexchange-2018").versions[0].actions] * 8,
)
_EVENTS = (*ACTIONS * 8, *EVENTS)
_BINARY = {"positive_from": 4, "negative_to": 2}
_VOTES = {
    "points": {"from": "rating", "map": {"five": 3, "5": 2, "4.5": -1}},
    "rating": {"from": "rating", "map": {"five": "4.5", " 5": 2}},
}
_TIPS = {"points": {"from": "target", "maximum": 100, "missing": "0.5"}, "rating": 3}
_UNRATED = {"rating": {"from": "target", "minimum": 0, "maximum": 5, "missing": "3.5"}}
_WEIGHED = {
    "rating": {
        "from": "rating",
        "minimum": -10,
        "maximum": 10,
        "digits": 1,
        "weight": {"from": "amount", "minimum": 0, "maximum": 100, "digits": 2, "missing": 1, "unreadable": "0.1"},
    }
}
_WHERE = {"rater_id": 'r"\\', "amount": {"minimum": "0.01"}}
_EVERYTHING = {
    "order_by": "amount",
    "status": {"suspend": ("Suspended",), "reinstate": ("Reinstated",), "rule": "reset"},
    "score": {"start": "1", "floor": "-3", "ceiling": "1000000"},
    "actions": {
        "Rated": {"half_life_days": "0.5", "penalties_expire_after_days": 7},
        "Done": {"half_life_days": 30, "where": _WHERE},
        "Starred": _VOTES,
        "Tipped": _TIPS,
        "Many": _UNRATED,
    },
    "time": {
        "member": {"points": "0.25", "every": "month", "half_life_days": 30, "since": ("Done", "Rated")},
        "daily": {"points": "-0.5", "every": "day", "times": 9},
    },
    "completion": {"rides": {"actions": ("Rated", "Done"), "by": ("Tipped",), "key": "ride_id"}},
    "once": {
        "rater": {"actions": ("Starred", "Many"), "per": ("rater_id", "ride_id"), "period": "year", "keep": "last"}
    },
    "caps": {"daily": {"period": "day", "maximum": "2.5", "counts": "gains", "per": "rater_id"}},
    "scopes": {"city": {"from": "city", "default": "elsewhere"}, "ride": {"from": "ride_id"}},
    "measures": {
        "rating_average": {"formula": "mean", "digits": 1, "rounding": "half_even"},
        "bayes": {"formula": "bayesian", "prior_mean": "2.5", "prior_weight": "1.5"},
        "learned": {"formula": "bayesian", "prior": "global", "prior_mean": "2.5", "prior_weight": 10},
        "bound": {"formula": "wilson", **_BINARY},
        "expected": {"formula": "beta", **_BINARY, "digits": 3, "last": 4},
        "good": {"formula": "positives", **_BINARY},
        "middle": {"formula": "median", "last": 6},
        "recent": {"formula": "mean", "half_life_days": 30},
    },
}
_HIDING = {
    "levels": {"low": 0, "high": {"at": 10, "falls_below": "4.5"}},
    "status": {"suspend": ("Suspended",), "reinstate": ("Reinstated",), "rule": "hide", "shown": "0.5"},
    "caps": {"monthly": {"period": "month", "maximum": "20", "counts": "net", "exempt": ("Done",)}},
}
_RECENT = {"measures": {"recent": {"formula": "mean", "half_life_days": "0.5"}}, "scopes": {"city": {"from": "city"}}}
_MERGED = [("u1", "u2"), ("u2", "Zoë"), ("u3", "o'hara"), ('r"\\', "rob"), ("r1", "r2")]
_POLICIES = {
    "everything": policy(**_EVERYTHING),
    **{name: load_policy(name) for name in ("ride-hailing-last-50", "stackexchange-2018")},
    "versions": versioned(
        (at(NOW - 30 * DAY),),
        "prospective",
        {"once": _EVERYTHING["once"]} | {"actions": {"Rated": _WEIGHED}},
        _HIDING | _RECENT,
    ),
}
_NAMES = share(["ride-hailing-last-50", "everything", "stackexchange-2018"], 2)
"""The policies of a run. The cluster of `object_store/test_spark.py` has that of all rules on the other days."""


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """Return a running Spark on two cores: a derivation in this process uses it."""
    require("java")
    builder = SparkSession.builder.master("local[2]").config(map=_LOCAL)
    session = builder.getOrCreate()
    yield session
    session.stop()


def history(action_types: tuple[str, ...], number: int = 4_000, days: int = 400) -> list[Event]:
    """Return random events of some users over some days and a day after now; many retract or correct another one.

    Two of three name an event of their own user, of which the earliest are named several times.
    """
    dice = random.Random(number)  # noqa: S311 - the same history every time
    users = [dice.choice(("", "Zoë", "o'hara", *(f"u{n}" for n in range(40)))) for _ in range(number)]
    own = {user: [i for i, other in enumerate(users) if other == user] for user in users}
    return [
        Event(
            f"e{i}",
            user,
            dice.choice((*action_types, "Unknown")),
            NOW + DAY - int(dice.random() ** 3 * days * DAY),
            {
                "rating": dice.choice((*RATINGS, "3", "4", "5")),
                "amount": dice.choice(AMOUNTS),
                "target_event_id": f"e{dice.choice((dice.randrange(number), dice.choice(own[user]), own[user][0]))}",
                "rater_id": dice.choice(("rita", "rob", 'r"\\')),
                "city": dice.choice(CITIES),
                "ride_id": f"r{dice.randrange(number // 5)}",
            },
        )
        for i, user in enumerate(users)
    ]


def snapshot(folder: Path, events: list[Event], pairs: Sequence[Pair] = ()) -> Snapshot:
    """Return a snapshot of two commits, the second one late, and of merges, in a folder named like that of a day."""
    half = len(events) // 2
    commits = pa.Table.from_pylist([{"batch_id": "batch", "version": 1}], stored_schema("commits"))
    others = {"commits": commits} | ({"merged_users": merges_table(stored(pairs))} if pairs else {})
    return snapshot_of(folder / "event_day=2024-02-29", events[:half], events[half:], **others)


def assert_same_tables(path: Path, expected: Path) -> None:
    with Warehouse(path) as ours, Warehouse(expected) as reference:
        assert (ours.info.decayed_to, ours.info.recipe) == (reference.info.decayed_to, reference.info.recipe)
        sums = ("reputation_sums",) if ours.info.decayed_to else ()
        others = (name for name in reference.tables() if is_scope_table(name) or name in SOME)
        for table in (*TABLES, *sums, *others):
            query = f"FROM {table} ORDER BY ALL"
            assert_frame_equal(ours.sql(query), reference.sql(query), check_exact=True)
            assert ours.sql(f"DESCRIBE {table}").rows() == reference.sql(f"DESCRIBE {table}").rows()


@pytest.mark.slow
@pytest.mark.parametrize("name", _NAMES)
def test_same_tables(spark: SparkSession, tmp_path: Path, name: str) -> None:
    """Suspensions, retractions, corrections, late and future events, bad numbers, merges: every table is DuckDB's."""
    rules = _POLICIES[name]
    events, pairs = (_EVENTS, _MERGED) if name == "everything" else (_SHIPPED_EVENTS, ())
    lake = snapshot(tmp_path, history(events), pairs)
    derive(lake, rules, AS_OF, tmp_path / "duckdb" / "warehouse.duckdb")
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        rebuilt = draft.rebuild(lake, rules, AS_OF, load_engine("spark", Settings()))
        draft.publish()
        assert draft.refresh(lake, rules, AS_OF).rebuild_reason is None  # DuckDB continues where Spark ended
    assert rebuilt.events > 1_000
    assert rebuilt.counted > 100
    assert_same_tables(tmp_path / "warehouse.duckdb", tmp_path / "duckdb" / "warehouse.duckdb")


@pytest.mark.slow
def test_raters_weights(spark: SparkSession, tmp_path: Path) -> None:
    """Every measure of weighted ratings, and the table of the weights, are DuckDB's."""
    lake, rules = snapshot(tmp_path, test_raters.HISTORY), parse_policy(test_raters.RULES)
    derive(lake, rules, AS_OF, tmp_path / "duckdb" / "warehouse.duckdb")
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        draft.rebuild(lake, rules, AS_OF, load_engine("spark", Settings()))
        draft.publish()
    assert_same_tables(tmp_path / "warehouse.duckdb", tmp_path / "duckdb" / "warehouse.duckdb")
    weights = [
        test_raters.rows_of(path / "warehouse.duckdb", "rater_weights") for path in (tmp_path, tmp_path / "duckdb")
    ]
    assert weights[0].height > 0
    assert_frame_equal(*weights, check_exact=True)


@pytest.mark.slow
def test_same_rulings(spark: SparkSession, tmp_path: Path) -> None:
    """The reason of each event, the event it names and its corrected rating are DuckDB's, if many are at one moment."""
    events = [replace(event, t=event.t - event.t % DAY) for event in history(("Rated", "Retracted", "Corrected"), 600)]
    for number in range(20):
        target = {"target_event_id": f"rated-{number}"}
        events.append(Event(f"rated-{number}", "tim", "Rated", NOW - DAY, {"rating": "1"}))
        both = [Event(f"{number}-{n}", "tim", "Corrected", NOW - DAY, target | {"rating": n}) for n in ("2", "3")]
        events += both if number % 2 else both[::-1]
    lake, rules = snapshot(tmp_path, events), policy()
    query = "SELECT event_id, reason, related_event_id, rating FROM contribution ORDER BY event_id"
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        define_steps(connection, rules, AS_OF)
        expected = connection.sql(query).fetchall()
    with open_session() as session:
        _prepare(session, lake, rules.at(AS_OF), AS_OF, Aliases())
        assert [tuple(row) for row in session.sql(query).collect()] == expected
    reasons = {reason for _, reason, *_ in expected}
    assert {"retracted", "retraction", "retraction stands", "correction", "no effect"} <= reasons


@pytest.mark.slow
def test_files_of_an_older_release(spark: SparkSession, tmp_path: Path) -> None:
    """Columns that the first file lacks are null, as in DuckDB: a release added them."""
    lake = snapshot(tmp_path, history(_EVENTS, 400))
    oldest = lake.files["events"][0]
    pq.write_table(pq.ParquetFile(oldest).read().drop_columns(["metadata"]), oldest)
    lake = replace(lake, mixed=frozenset({"events"}))
    derive(lake, policy(), AS_OF, tmp_path / "duckdb" / "warehouse.duckdb")
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        draft.rebuild(lake, policy(), AS_OF, load_engine("spark", Settings()))
        draft.publish()
    assert_same_tables(tmp_path / "warehouse.duckdb", tmp_path / "duckdb" / "warehouse.duckdb")


@pytest.mark.slow
def test_same_numbers(spark: SparkSession) -> None:
    """Casts and powers round as in DuckDB, also beyond 64 bits: halves, and values next to them."""
    dice = random.Random(1)  # noqa: S311 - the same numbers every time
    signs = (1, -1)
    integers = [dice.choice(signs) * dice.getrandbits(bits) for bits in range(1, 120) for _ in range(20)]
    floats = [dice.choice(signs) * (dice.getrandbits(53) / 2 + 0.5) * 10.0 ** dice.randrange(12) for _ in range(1_000)]
    ages = [-dice.random() * dice.choice((1, 100)) for _ in range(1_000)]
    for values, kind, query in (
        (integers, pa.decimal128(38), "SELECT CAST(CAST(v AS HUGEINT) AS DOUBLE) FROM given"),
        (floats, pa.float64(), "SELECT CAST(CAST(round(v) AS HUGEINT) AS VARCHAR) FROM given"),
        (ages, pa.float64(), "SELECT pow(2.0, v) FROM given"),
    ):
        given = pa.table({"v": pa.array(map(Decimal, values) if kind != pa.float64() else values, kind)})
        assert in_spark(spark, query, given) == duckdb.sql(query).fetchall()


def in_spark(spark: SparkSession, query: str, given: pa.Table) -> list[tuple[object, ...]]:
    """Return the rows of a query over `given` in Spark."""
    define_functions(spark)
    spark.createDataFrame(given).coalesce(1).createOrReplaceTempView("given")
    return [tuple(row) for row in spark.sql(translate(query)).collect()]


@pytest.mark.slow
def test_the_command(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`karmalake rebuild --engine spark` publishes what DuckDB does, from a lake partitioned by day."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KARMALAKE_DATA_DIR", "data")
    lake = create_lake(Path("data/lake"))
    events = making.make_events(map(str, range(60)), payload="TransactionCompleted")
    making.commit(lake, lake.table("events"), "batch", events)
    for engine in ("duckdb", "spark"):
        done = CliRunner().invoke(app, ["rebuild", "--as-of", "2026-03-03", "--engine", engine])
        assert done.exit_code == 0, done.output
        export_warehouse(Path("data/warehouse.duckdb"), Path(f"{engine}.duckdb"))
    assert_same_tables(Path("spark.duckdb"), Path("duckdb.duckdb"))
    with Warehouse(Path("spark.duckdb")) as warehouse:
        assert warehouse.reputation()["all_time_score"].sum() == 48


@pytest.mark.slow
def test_rows_that_another_machine_kept(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this machine does not see every file that executors wrote, the draft is refused."""
    lake = snapshot(tmp_path, history(_EVENTS, 400))
    monkeypatch.setattr(storage, "list_files", lambda folder, suffix: list_files(folder, suffix)[1:])
    with open_draft(tmp_path / "warehouse.duckdb") as draft, pytest.raises(ConfigurationError, match="/fact on all of"):
        draft.rebuild(lake, policy(), AS_OF, load_engine("spark", Settings()))
    assert not (tmp_path / "warehouse.duckdb").exists()


def test_an_empty_lake(tmp_path: Path) -> None:
    """An empty lake gives empty tables of the same types, and needs no Spark to run."""
    lake = snapshot_of(tmp_path, version=0)
    derive(lake, _POLICIES["everything"], AS_OF, tmp_path / "duckdb" / "warehouse.duckdb")
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        draft.rebuild(lake, _POLICIES["everything"], AS_OF, load_engine("spark", Settings()))
        draft.publish()
    assert_same_tables(tmp_path / "warehouse.duckdb", tmp_path / "duckdb" / "warehouse.duckdb")


def test_the_spark_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra; DuckDB needs none."""
    monkeypatch.delitem(sys.modules, "pipelines.reputation.spark.derivation", raising=False)
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(ConfigurationError, match=r"--engine spark needs .*karmalake\[spark\]"):
        load_engine("spark", Settings())
    assert load_engine("duckdb", Settings()) is derive_in_duckdb
