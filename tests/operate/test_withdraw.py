"""A load is taken back as a whole: its events leave by one commit, and everything still adds up (`nothing-lost`)."""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import karmalake
import pipelines.lake.withdrawal as lake_withdrawal
import pipelines.operate.loads as operate
from pipelines.backfill import backfill, summarize_files
from pipelines.errors import UsageError
from pipelines.lake import removal
from pipelines.lake.index import DedupIndex, open_index
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.dead_letters import Selection, count_dead_letters
from pipelines.operate.loads import Later, list_loads, loads_of_file, preview_withdrawal, withdraw_loads
from pipelines.operate.verify import verify_erased, verify_index
from pipelines.refresh import rebuild_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import IngestSettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.commands import KARMALAKE, run
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, query

WRONG = ColumnMapping("giver", "t", "iso", "UserRated", None, (("rating", "n"),))
RIGHT = replace(WRONG, user_id="taker")
_BY_USER = "SELECT user_id, count(*) FROM events GROUP BY ALL ORDER BY ALL"
_WHY = "the users were the givers"


@pytest.fixture
def busless(tmp_path: Path) -> Settings:
    """Return settings without a bus, and with small batches."""
    return Settings(data_dir=tmp_path / "data", ingest=IngestSettings(max_dead_letter_share=1.0))


def _ratings(path: Path, rows: range, bad: str = "") -> Path:
    lines = (f"g{n % 3},t{n % 5},2024-01-{1 + n % 9:02},{n % 5 + 1},{n}\n" for n in rows)
    path.write_text(f"giver,taker,t,n,id\n{''.join(lines)}{bad}")
    return path


def _load(settings: Settings, path: Path, mapping: ColumnMapping) -> int:
    accepted: list[int] = []
    backfill(settings, path, mapping, lambda record: accepted.append(record.total("accepted")))
    return sum(accepted)


def _verify(settings: Settings) -> None:
    assert_verified(settings)
    checks = [verify_index(settings), verify_erased(settings)]
    assert all(check.passed is not False for check in checks), checks


def _by_user(settings: Settings) -> list[tuple[Any, ...]]:
    return query(settings, _BY_USER)


@pytest.mark.slow
def test_a_wrong_load_is_taken_back_and_loaded_again(busless: Settings, tmp_path: Path) -> None:
    """Ids are free again, other loads stay, the record says why, and a second withdrawal finds nothing to do."""
    path, other = (
        _ratings(tmp_path / "a.csv", range(60), "g0,t0,never,1,x\n"),
        _ratings(tmp_path / "b.csv", range(90, 95)),
    )
    by_id = [replace(mapping, event_id="id") for mapping in (WRONG, RIGHT)]
    assert [_load(busless, path, by_id[0]), _load(busless, other, by_id[1])] == [60, 5]
    (wrong,) = loads_of_file(busless, str(path))
    before = preview_withdrawal(busless, [wrong])
    assert (before.batches, before.events, before.users, before.dead_letters, before.later) == (1, 60, 3, 1, ())
    done = withdraw_loads(busless, [wrong], _WHY)
    assert done.record is not None
    assert (done.record.source, done.record.note, done.closed) == ("withdrawal", _WHY, 1)
    assert [each.events for each in done.record.withdrawn] == [60]
    assert query(busless, "SELECT count(*) FROM events") == [(5,)]
    _verify(busless)
    assert withdraw_loads(busless, [wrong], _WHY).record is None
    assert [(load["state"], load["accepted"], load["why"]) for load in list_loads(busless)] == [
        ("withdrawn", 60, _WHY), ("in the lake", 5, None),
    ]  # fmt: skip
    assert _load(busless, path, by_id[1]) == 60
    assert _by_user(busless) == [(f"t{n}", 13) for n in range(5)]
    assert query(busless, "SELECT count(*) FROM events") == [(65,)]
    assert [(each.reason, each.records) for each in count_dead_letters(busless, Selection())] == [("undecodable", 1)]
    _verify(busless)


@pytest.mark.slow
def test_a_withdrawn_file_is_read_from_its_start_again(busless: Settings, tmp_path: Path) -> None:
    """Also under the same mapping, and its summary is that of the load that counts."""
    path = _ratings(tmp_path / "a.csv", range(60), "g0,t0,never,1,x\n")
    assert _load(busless, path, RIGHT) == 60
    assert _load(busless, path, RIGHT) == 0
    withdraw_loads(busless, loads_of_file(busless, str(path)), _WHY)
    assert _load(busless, path, RIGHT) == 60
    (summary,) = summarize_files(busless, [path], RIGHT)
    assert (summary.reconciles, summary.accepted, summary.reasons) == (True, 60, {"undecodable": 1})
    assert [load["state"] for load in list_loads(busless)] == ["withdrawn", "in the lake"]
    _verify(busless)


@pytest.mark.slow
def test_loads_have_a_python_door(busless: Settings, tmp_path: Path) -> None:
    """`karmalake` lists loads, shows what a withdrawal would remove, and withdraws."""
    karmalake.backfill(busless, _ratings(tmp_path / "a.csv", range(60)), WRONG)
    (load,) = karmalake.list_loads(busless)
    assert karmalake.preview_withdrawal(busless, [load["load"]]).events == 60
    assert karmalake.withdraw_loads(busless, [load["load"]], _WHY).record
    assert [each["state"] for each in karmalake.list_loads(busless)] == ["withdrawn"]


@pytest.mark.slow
def test_what_depends_on_a_load_is_said(busless: Settings, tmp_path: Path) -> None:
    """Duplicates and conflicts of a later load were dropped because of it; withdrawing both and loading brings them."""
    by_id = [replace(mapping, event_id="id") for mapping in (WRONG, RIGHT)]
    first, second = _ratings(tmp_path / "a.csv", range(20)), _ratings(tmp_path / "b.csv", range(10, 30))
    assert [_load(busless, first, by_id[0]), _load(busless, second, by_id[1])] == [20, 10]
    third = _ratings(tmp_path / "c.csv", range(5))
    assert _load(busless, third, by_id[0]) == 0
    loads = {
        name: loads_of_file(busless, str(path))[0] for name, path in zip("abc", (first, second, third), strict=True)
    }
    found = preview_withdrawal(busless, [loads["a"]])
    assert found.later == (
        Later(loads["b"], f"file:{second}", 0, 10), Later(loads["c"], f"file:{third}", 5, 0),
    )  # fmt: skip
    withdraw_loads(busless, [loads["a"], loads["b"]], _WHY)
    assert query(busless, "SELECT count(*) FROM events") == [(0,)]
    assert [_load(busless, second, by_id[1]), _load(busless, first, by_id[1])] == [20, 10]
    _verify(busless)


@pytest.mark.slow
def test_names_of_loads_and_batches(busless: Settings, tmp_path: Path) -> None:
    """A batch of a file stands for its load; ids may be shortened; an unknown one is refused in a sentence."""
    small = busless.model_copy(update={"ingest": IngestSettings(max_batch_records=10)})
    path = _ratings(tmp_path / "a.csv", range(30))
    _load(small, path, RIGHT)
    (batch,) = [load["batch_id"] for load in list_loads(small, by_batch=True)]
    (load,) = loads_of_file(small, str(path))
    assert preview_withdrawal(small, [load]) == preview_withdrawal(small, [batch, batch[:8]])
    for unknown in ("file-123456789", batch[:4], ""):
        with pytest.raises(UsageError, match="there is no load or batch"):
            withdraw_loads(small, [unknown], _WHY)
    with pytest.raises(UsageError, match="--why"):
        withdraw_loads(small, [load], " ")
    with pytest.raises(UsageError, match="was not loaded"):
        loads_of_file(small, "b.csv")
    assert query(small, "SELECT count(*) FROM events") == [(30,)]


@pytest.mark.slow
def test_a_refresh_after_a_withdrawal_equals_a_rebuild(busless: Settings, tmp_path: Path) -> None:
    """Scores follow, of users who keep events, who lose all, and who get theirs back (`incremental-equals-rebuild`)."""
    tables = ("reputation", "user_days", "user_reasons")

    def rows() -> list[list[tuple[Any, ...]]]:
        return [sorted(_warehouse(busless, f"FROM {table}"), key=repr) for table in tables]

    first, second = _ratings(tmp_path / "a.csv", range(60)), _ratings(tmp_path / "b.csv", range(100, 160))
    for path, mapping in ((first, RIGHT), (second, WRONG)):
        _load(busless, path, mapping)
        refresh_warehouse(busless)
    withdraw_loads(busless, loads_of_file(busless, str(second)), _WHY)
    assert refresh_warehouse(busless).rebuild_reason is None
    users = _warehouse(busless, "SELECT user_id FROM reputation ORDER BY 1")
    assert users == [(f"t{n}",) for n in range(5)]
    _load(busless, second, RIGHT)
    withdraw_loads(busless, loads_of_file(busless, str(first)), _WHY)
    assert refresh_warehouse(busless).rebuild_reason is None
    refreshed = rows()
    rebuild_warehouse(busless)
    assert refreshed == rows()
    assert _by_user(busless) == [(f"t{n}", 12) for n in range(5)]


@pytest.mark.slow
def test_events_merged_with_those_of_other_loads_are_found(busless: Settings, tmp_path: Path) -> None:
    """A compaction mixes loads in one file; the others' rows stay, and a vacuum deletes the withdrawn ones."""
    first, second = _ratings(tmp_path / "a.csv", range(50)), _ratings(tmp_path / "b.csv", range(100, 150))
    for path, mapping in ((first, WRONG), (second, RIGHT)):
        _load(busless, path, mapping)
    lake = open_lake(busless.lake_root)
    compact(lake, 2)
    withdraw_loads(busless, loads_of_file(busless, str(first)), _WHY)
    assert vacuum(lake, 0) != []
    assert _by_user(busless) == [(f"t{n}", 10) for n in range(5)]
    assert _load(busless, first, RIGHT) == 50
    _verify(busless)


@pytest.mark.slow
def test_an_index_in_use_follows(busless: Settings, tmp_path: Path) -> None:
    """A running ingest forgets the ids at its next batch, and learns them again from another load (`once`)."""
    path = _ratings(tmp_path / "a.csv", range(50))
    _load(busless, path, WRONG)
    lake = open_lake(busless.lake_root)
    with closing(open_index(busless.index_dir, lake, lake.table("events"))) as index:
        withdraw_loads(busless, loads_of_file(busless, str(path)), _WHY)
        assert _load(busless, path, RIGHT) == 50
        index.catch_up(lake.table("events"))
        _verify(busless)


_KILLS: list[tuple[Any, str, str]] = [
    (removal, "write_rows", "after"),
    (removal, "write_erased_events", "after"),
    (removal, "replace_files", "before"),
    (removal, "replace_files", "after"),
    (lake_withdrawal, "commit_removal", "after"),
    (operate, "forget_erased", "before"),
    (DedupIndex, "forget_erased", "after"),
    (operate, "close_withdrawn", "before"),
    (operate, "close_withdrawn", "after"),
]


class _Kill(BaseException):
    """Ends the work at a step; nothing handles it."""


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "step", "when"), _KILLS, ids=lambda value: getattr(value, "__name__", value))
def test_an_interrupted_withdrawal_is_completed(
    busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, when: str
) -> None:
    """The lake adds up after it, and the same command again ends as if it had not been interrupted."""
    first = _ratings(tmp_path / "a.csv", range(50), "g0,t0,never,1,x\n")
    second = _ratings(tmp_path / "b.csv", range(100, 150))
    for path, mapping in ((first, WRONG), (second, RIGHT)):
        _load(busless, path, mapping)
    compact(open_lake(busless.lake_root), 2)
    loads = loads_of_file(busless, str(first))
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, _interrupted(getattr(owner, step), when))
        with pytest.raises(_Kill):
            withdraw_loads(busless, loads, _WHY)
    assert_verified(busless)
    withdraw_loads(busless, loads, _WHY)
    assert _by_user(busless) == [(f"t{n}", 10) for n in range(5)]
    assert count_dead_letters(busless, Selection()) == []
    assert query(busless, "SELECT sum(events)::INT, count(*) FROM withdrawn") == [(50, 1)]
    assert _load(busless, first, RIGHT) == 50
    _verify(busless)


def _interrupted(function: Callable[..., Any], when: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            function(*arguments, **named)
        raise _Kill

    return call


def _warehouse(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with Warehouse(settings.warehouse_path) as warehouse:
        return warehouse.sql(sql).rows()


@pytest.mark.slow
def test_the_commands_say_what_to_do(tmp_path: Path) -> None:
    """A wrong load is seen, shown before it is taken back, taken back and loaded again, by what the commands print."""
    _ratings(tmp_path / "a.csv", range(10))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    environment |= {"KARMALAKE_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "400", "PYTHONPATH": str(REPOSITORY)}

    def command(*arguments: str) -> tuple[int, str]:
        done = run([*KARMALAKE, *arguments], cwd=tmp_path, env=environment)
        return done.returncode, done.stdout + done.stderr

    mapped = ["a.csv", "--time", "t", "--action-type", "UserRated", "--event-id", "id"]
    assert command("backfill", *mapped, "--user-id", "giver")[0] == 0
    code, said = command("backfill", *mapped, "--user-id", "taker")
    assert (code, "karmalake loads withdraw" in said) == (65, True)
    code, said = command("loads", "list")
    assert (code, said.count("file-")) == (0, 2), said
    code, said = command("loads", "withdraw", "--file", "a.csv", "--dry-run")
    assert (code, "nothing was changed" in said) == (0, True), said
    assert command("loads", "withdraw", "--file", "a.csv")[0] == 2
    code, said = command("loads", "withdraw", "--file", "a.csv", "--why", _WHY)
    assert (code, "10 events withdrawn" in said) == (0, True), said
    code, said = command("loads", "withdraw", "--file", "a.csv", "--why", _WHY)
    assert (code, "nothing to withdraw" in said) == (0, True), said
    assert "10 accepted" in command("backfill", *mapped, "--user-id", "taker")[1]
    _ratings(tmp_path / "b.csv", range(9, 11))
    code, said = command("backfill", "b.csv", *mapped[1:], "--user-id", "giver")
    assert (code, "1 row is a conflict" in said, "karmalake loads withdraw" in said) == (0, True, True), said
    assert [part in said for part in ("if they are other events", "--identity", "after karmalake refresh")] == [
        True
    ] * 3
