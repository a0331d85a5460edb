"""The warehouse: its contents, its publication, and its state after a crash."""

import json
import logging
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.tables import Snapshot
from pipelines.reputation.base import base_folder, published_base
from pipelines.reputation.derive import derive
from pipelines.reputation.documents import documents
from pipelines.reputation.policy_file import load_policy, parse_policy, shipped_policies
from pipelines.reputation.scores import scores
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.commands import Started, run
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of, stored_schema
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS

DEFAULT = load_policy("default")
EMPTY = Snapshot(0, {}, {})


def history() -> list[Event]:
    return [
        Event("e1", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"}),
        Event("e2", "ann", "DriverRated", NOW - 3 * DAY + 1, {"rating": "2"}),
        Event("e3", "ann", "TransactionCompleted", NOW - 40 * DAY),
        Event("e4", "bob", "Waved", NOW - 2 * DAY),
        Event("e5", "bob", "AccountSuspended", NOW - DAY),
        Event("e6", "bob", "TransactionCompleted", NOW - 1),
        Event("e7", "bob", "TransactionCompleted", NOW + 1),
    ]


def publish(folder: Path, events: list[Event], version: int = 1, as_of_days: int = 0) -> Path:
    path = folder / "warehouse.duckdb"
    snapshot = snapshot_of(folder / "lake", events, version=version)
    derive(snapshot, DEFAULT, AS_OF + timedelta(days=as_of_days), path)
    return path


def test_derive_returns_what_it_published(tmp_path: Path) -> None:
    """Users, events before as_of and events that count are reported; the warehouse, its base and its lock remain."""
    path = tmp_path / "new" / "warehouse.duckdb"
    derived = derive(snapshot_of(tmp_path / "lake", history()), DEFAULT, AS_OF, path)
    assert (derived.path, derived.lake_version, derived.as_of) == (path, 1, AS_OF)
    assert (derived.users, derived.events, derived.counted) == (2, 6, 3)
    assert sorted(p.name for p in path.parent.iterdir()) == ["base", "warehouse.duckdb", "warehouse.duckdb.lock"]
    assert [p.name for p in base_folder(path).iterdir()] == [published_base(path)]


def test_a_rebuild_logs_its_progress(tmp_path: Path, project_log: pytest.LogCaptureFixture) -> None:
    """Each step is logged when it is done, with its number: Dagster and the command line show it."""
    with project_log.at_level(logging.INFO, "pipelines.reputation.derive"):
        publish(tmp_path, history())
    begin, *steps = project_log.messages
    assert begin == "full rebuild: requested"
    assert [step.rpartition("(")[2] for step in steps] == [
        f"{n} of {len(steps)} steps)" for n in range(1, len(steps) + 1)
    ]
    assert len(steps) == 11


def test_reputation_equals_scores(tmp_path: Path) -> None:
    """The published table and the scores computed on demand are the same rows."""
    snapshot = snapshot_of(tmp_path / "lake", history())
    derive(snapshot, DEFAULT, AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.reputation().equals(scores(snapshot, DEFAULT, AS_OF))
        assert warehouse.reputation("ann")["all_time_score"].to_list() == [6]
        with pytest.raises(KarmalakeError, match="no events of user 'nobody'"):
            warehouse.reputation("nobody")


def test_user_days_adds_up_to_the_scores(tmp_path: Path) -> None:
    """The days of a user sum to the all-time score; events and counted events differ."""
    with Warehouse(publish(tmp_path, history())) as warehouse:
        days = warehouse.sql("SELECT user_id, day, action_type, events, counted, points, rating_sum FROM user_days")
        assert days.sort("user_id", "day", "action_type").rows() == [
            ("ann", (AS_OF - timedelta(days=40)).date(), "TransactionCompleted", 1, 1, 1, 0),
            ("ann", (AS_OF - timedelta(days=3)).date(), "DriverRated", 2, 2, 5, 7),
            ("bob", (AS_OF - timedelta(days=2)).date(), "Waved", 1, 0, 0, 0),
            ("bob", (AS_OF - timedelta(days=1)).date(), "AccountSuspended", 1, 0, 0, 0),
            ("bob", (AS_OF - timedelta(days=1)).date(), "TransactionCompleted", 1, 0, 0, 0),
        ]


def test_status_periods_are_open_until_reinstated(tmp_path: Path) -> None:
    """The periods of suspension, and the events that started and ended them."""
    with Warehouse(publish(tmp_path, history())) as warehouse:
        periods = warehouse.sql("FROM status_periods").rows()
    assert periods == [("bob", AS_OF - timedelta(days=1), "e5", None, None)]


def test_trends_follow_the_days(tmp_path: Path) -> None:
    """Events, active users and rating average by day and action; distribution of scores; why events did not count."""
    with Warehouse(publish(tmp_path, history())) as warehouse:
        daily, spread, why = (warehouse.trend(name) for name in ("daily", "scores", "reasons"))
    rides = daily.row(by_predicate=pl.col("action_type") == "DriverRated", named=True)
    assert (rides["events"], rides["active_users"], rides["rating_average"], rides["points"]) == (2, 1, 3.5, 5)
    assert spread.select("active_users", "minimum", "median", "maximum").rows() == [
        (1, 1, 1, 1),
        (1, 6, 6, 6),
        (1, 0, 0, 0),
        (1, 0, 0, 0),
    ]
    assert set(why.select("action_type", "reason", "events").rows()) == {
        ("DriverRated", "granted", 2),
        ("TransactionCompleted", "granted", 1),
        ("TransactionCompleted", "suspended", 1),
        ("Waved", "no rule", 1),
        ("AccountSuspended", "status", 1),
    }


def test_an_empty_lake_has_an_empty_warehouse(tmp_path: Path) -> None:
    """Without files every table and view exists, with its columns and no rows."""
    derived = derive(EMPTY, DEFAULT, AS_OF, tmp_path / "warehouse.duckdb")
    assert (derived.users, derived.events, derived.counted) == (0, 0, 0)
    tables = ("events", "commits", "conflicts", "dead_letters", "reputation", "user_days", "status_periods")
    with open_warehouse(tmp_path) as warehouse:
        assert [warehouse.sql(f"FROM {table}").height for table in tables] == [0] * len(tables)
        assert warehouse.trend().height == warehouse.events().height == 0
    assert documents(tmp_path / "warehouse.duckdb").height == 0


def test_documents_have_the_specified_members(tmp_path: Path) -> None:
    """One JSON document per user, with a member per view."""
    frame = documents(publish(tmp_path, history()))
    assert frame.schema == pl.Schema({"user_id": pl.String, "document": pl.String, "digest": pl.UInt64})
    ann = json.loads(frame["document"][0])
    view = {"score": 5, "events": 2, "rating_average": 3.5, "rating_count": 2}
    assert ann == {
        "user_id": "ann",
        "status": "active",
        "as_of": "2024-03-01T00:00:00Z",
        "policy": {"name": "default", "version": "2"},
        "lake_version": 1,
        "defaults": {"rating_average": None},
        "reputation_all_time": view | {"score": 6, "events": 3},
        "reputation_last_7_days": view,
        "reputation_last_30_days": view,
        "reputation_last_90_days": view | {"score": 6, "events": 3},
        "reputation_last_365_days": view | {"score": 6, "events": 3},
    }
    assert json.loads(frame["document"][1])["status"] == "suspended"


@pytest.mark.slow
def test_the_digest_ignores_as_of_and_version(tmp_path: Path) -> None:
    """A document that differs only in version and moment has the same digest; any other change gives another one."""
    before = documents(publish(tmp_path, history()))
    later = [*history(), Event("e8", "bob", "UserRated", NOW + 5, {"rating": "1"})]
    after = documents(publish(tmp_path, later, version=2, as_of_days=1))
    assert before["user_id"].equals(after["user_id"])
    assert not before["document"].equals(after["document"])
    assert (before["digest"] == after["digest"]).to_list() == [True, True]
    changed = documents(publish(tmp_path, [*history(), Event("e9", "ann", "TransactionCompleted", NOW - 1)], 3))
    assert (before["digest"] == changed["digest"]).to_list() == [False, True]


@pytest.mark.parametrize("user_id", ['"', "a\0b", "\\", "👩‍🚀", "x" * 65_536, "\u2028"])
def test_documents_survive_hostile_user_ids(tmp_path: Path, user_id: str) -> None:
    """Any text is encoded as a JSON string and decodes to itself."""
    frame = documents(publish(tmp_path, [Event("e", user_id, "TransactionCompleted", NOW - 1)]))
    assert json.loads(frame["document"][0])["user_id"] == user_id == frame["user_id"][0]


def place(offset: int, batch_id: str, **columns: object) -> dict[str, object]:
    bus = {"topic_id": "topic-id", "topic": "topic", "topic_partition": 0, "offset": offset, "bus_time": NOW}
    return bus | columns | {"batch_id": batch_id}


def commits_of(*batch_ids: str, version: int = 1) -> pa.Table:
    rows = [{"batch_id": batch_id, "version": version} for batch_id in batch_ids]
    return pa.Table.from_pylist(rows, stored_schema("commits"))


def test_dead_letters_count_when_their_batch_is_committed(tmp_path: Path) -> None:
    """Rows of a crashed batch are visible only as the later batch wrote them, and rows of a later snapshot are not."""
    rows = [place(offset, batch, reason="undecodable") for offset, batch in [(1, "a"), (1, "b"), (2, "b"), (3, "c")]]
    letters = pa.Table.from_pylist(rows, stored_schema("dead_letters"))
    commits = pa.concat_tables([commits_of("b"), commits_of("c", version=2)])
    snapshot = snapshot_of(tmp_path / "lake", [], dead_letters=letters, commits=commits)
    derive(snapshot, DEFAULT, AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.sql('SELECT "offset", batch_id FROM dead_letters ORDER BY ALL').rows() == [(1, "b"), (2, "b")]


def test_conflicts_have_the_position_of_the_first_event(tmp_path: Path) -> None:
    """A row has the later payload and the position of the first."""
    rows = [place(7, batch, event_id="e2", user_id="ann") for batch in ("a", "b")]
    conflicts = pa.Table.from_pylist(rows, stored_schema("conflicts"))
    snapshot = snapshot_of(tmp_path / "lake", history(), conflicts=conflicts, commits=commits_of("b"))
    derive(snapshot, DEFAULT, AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as warehouse:
        got = warehouse.sql('SELECT "offset", first_offset, first_event_time FROM conflicts').rows()
    assert got == [(7, 1, AS_OF - timedelta(days=3) + timedelta(microseconds=1))]


def test_paths_with_quotes_are_only_paths(tmp_path: Path) -> None:
    """A folder may have any name."""
    folder = tmp_path / "it's [a] folder"
    with Warehouse(publish(folder, history())) as warehouse:
        assert warehouse.events().height == len(history())


@pytest.mark.slow
def test_a_crash_leaves_the_old_warehouse_and_is_cleaned_up(tmp_path: Path) -> None:
    """Killed during a build: readers still have the old warehouse, the next derive removes the draft (`atomic`)."""
    path = publish(tmp_path, history())
    script = (
        "import os, sys; from pathlib import Path; from pipelines.reputation import derive as d\n"
        "d.user_tables = lambda *_: os.kill(os.getpid(), 9)\n"
        "from tests.reputation.test_derive import publish; publish(Path(sys.argv[1]), [])"
    )
    killed = run(["-c", script, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    bases = [p.name for p in base_folder(path).iterdir()]
    assert len(bases) > 1
    with Warehouse(path) as warehouse:
        assert warehouse.reputation().height == 2
    publish(tmp_path, history(), version=2)
    assert len(list(base_folder(path).iterdir())) == 1


@pytest.mark.slow
def test_an_open_warehouse_is_unchanged_until_refreshed(tmp_path: Path) -> None:
    """Newer ones may be published meanwhile, also by the same process; refresh() switches to the newest."""
    path = publish(tmp_path, history())
    with Warehouse(path) as warehouse:
        assert warehouse.refresh() is False
        publish(tmp_path, [*history(), Event("e8", "cid", "TransactionCompleted", NOW - 1)], version=2)
        assert warehouse.reputation().height == 2
        with Warehouse(path) as newer:
            assert newer.reputation().height == 3
        assert warehouse.refresh() is True
        assert warehouse.reputation().height == 3
        assert "lake version 2, as of 2024-03-01 00:00:00 UTC, policy default 2" in repr(warehouse)


def test_results_as_polars_arrow_and_relation(tmp_path: Path) -> None:
    """One query, three results; values are bound."""
    query = "SELECT count(*) AS n FROM events WHERE user_id = $user"
    with Warehouse(publish(tmp_path, history())) as warehouse:
        assert warehouse.sql(query, {"user": "ann"}).rows() == [(3,)]
        assert warehouse.arrow(query, {"user": "ann"}).to_pylist() == [{"n": 3}]
        assert warehouse.relation(query, {"user": "ann"}).fetchall() == [(3,)]
        since = warehouse.events(user_id="ann", action_type="DriverRated", since=AS_OF - timedelta(days=3))
        assert since["event_id"].to_list() == ["e1", "e2"]
        with pytest.raises(UsageError, match="no trend"):
            warehouse.trend("weekly")  # pyright: ignore[reportArgumentType]


def test_a_missing_warehouse_says_what_to_do(tmp_path: Path) -> None:
    """The error is ours, not DuckDB's."""
    with pytest.raises(UsageError, match=r"no warehouse at .*: set data_dir"):
        open_warehouse(tmp_path)


@pytest.mark.slow
def test_readers_in_other_processes_do_not_block_a_derive(tmp_path: Path) -> None:
    """A process that has the warehouse open blocks no derivation (`not-blocked`)."""
    path = publish(tmp_path, history())
    script = (
        "import sys; from pathlib import Path; from pipelines.reputation.warehouse import Warehouse\n"
        "w = Warehouse(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read(); print(w.reputation().height)"
    )
    command, pipe = ["-c", script, str(path)], subprocess.PIPE
    with ended(Started(command, stdin=pipe, stdout=pipe)) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        publish(tmp_path, [], version=2)
        answer, _ = reader.communicate(input="", timeout=PATIENCE_SECONDS)
    assert answer == "2\n"


EVERYTHING = """
name = "everything"
version = "3"
windows_days = [14]
score = { start = 0.5, floor = 0 }
status = { suspend = ["AccountSuspended"], reinstate = ["AccountReinstated"], rule = "hide", shown = 1 }
measures.stars = { formula = "bayesian", prior_mean = 4.5, prior_weight = 2, digits = 2, default = 4.5 }
measures.likes = { formula = "positives", positive_from = 4 }
caps.daily = { period = "day", maximum = 7.25 }
actions.TransactionCompleted = { points = 1.25 }
[actions.DriverRated]
rating = { from = "rating", minimum = 1, maximum = 5 }
points = 5
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_policy_has_a_warehouse(tmp_path: Path, name: str) -> None:
    """Tables, scores and documents agree under each policy."""
    snapshot, policy = snapshot_of(tmp_path / "lake", history()), load_policy(name)
    derive(snapshot, policy, AS_OF, tmp_path / "warehouse.duckdb")
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.reputation().equals(scores(snapshot, policy, AS_OF))
        assert warehouse.info.policy == policy
    documented = [json.loads(text) for text in documents(tmp_path / "warehouse.duckdb")["document"]]
    assert [document["user_id"] for document in documented] == ["ann", "bob"]


def test_documents_have_the_members_of_the_policy(tmp_path: Path) -> None:
    """Exact decimals, the policy's measures and defaults, and a hidden user's score during the suspension."""
    path = tmp_path / "warehouse.duckdb"
    derive(snapshot_of(tmp_path / "lake", history()), parse_policy(EVERYTHING), AS_OF, path)
    texts = documents(path)["document"].to_list()
    ann, bob = map(json.loads, texts)
    assert '"score":9.00' in texts[0]
    assert ann["policy"] == {"name": "everything", "version": "3"}
    assert ann["defaults"] == {"rating_average": None, "stars": 4.5, "likes": None}
    assert ann["reputation_all_time"] == {
        "score": 0.5 + 7.25 + 1.25,
        "events": 3,
        "rating_average": 3.5,
        "stars": 4.0,
        "likes": 1,
        "rating_count": 2,
    }
    assert ann["reputation_last_14_days"]["score"] == 7.25
    assert (bob["status"], bob["reputation_all_time"]["score"]) == ("suspended", 1)
    assert bob["reputation_all_time"]["rating_average"] is None
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.sql("SELECT sum(points) FROM user_days WHERE user_id = 'ann'").item() == Decimal("8.50")


@pytest.mark.slow
def test_derives_of_one_warehouse_take_turns(tmp_path: Path) -> None:
    """Two concurrent derivations do not damage each other's draft: they run one after the other."""
    snapshot, path = snapshot_of(tmp_path / "lake", history()), tmp_path / "warehouse.duckdb"
    with ThreadPoolExecutor() as pool:
        derived = list(pool.map(lambda _: derive(snapshot, DEFAULT, AS_OF, path), range(4)))
    assert [d.users for d in derived] == [2] * 4
    with open_warehouse(tmp_path) as warehouse:
        assert warehouse.reputation().height == 2
