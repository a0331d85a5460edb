"""A canary: a policy that is served beside the one in force until one of them is chosen."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.canary import canary_settings, follow_canary
from pipelines.cli.pipeline import publish
from pipelines.errors import PolicyError, UsageError
from pipelines.lake.tables import create_lake, open_lake
from pipelines.operate.erase import erase, erase_without_documents
from pipelines.operate.verify import verify
from pipelines.refresh import policy_in_force, publish_warehouse, refresh_warehouse
from pipelines.reputation.activation import activate, activated, activations, canary, end_canary, start_canary
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.client import connect
from pipelines.settings import Settings
from pipelines.stream import serve
from tests.clocks import replaced_clock
from tests.draining import score
from tests.lake.builders import commit, make_events
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_RULES = 'name = "points"\nversion = "{version}"\n[actions.p]\npoints = {points}\n'
THREE, FIVE, OTHER_THREE = (
    parse_policy(_RULES.format(version=version, points=points)) for version, points in ((3, 3), (5, 5), (3, 4))
)


@pytest.fixture
def served(settings: Settings) -> Settings:
    """Return settings of a lake with an event of each of three users, served by a policy of three points."""
    lake = create_lake(settings.lake_root)
    activate(lake, THREE)
    commit(lake, lake.table("events"), "b-1", make_events(["e-1", "e-2", "e-3"]))
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    redis = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    settings = settings.model_copy(update={"reputation": reputation, "redis": redis})
    refresh_warehouse(settings)
    publish_warehouse(settings)
    return settings


def scores(settings: Settings, user: str = "u-0") -> tuple[object, object]:
    """Return the served scores of a user by the policy in force and by the canary."""
    return score(settings, user), score(canary_settings(settings), user)


def _report(*_: object) -> None:
    """Ignore a refresh."""


def remains(settings: Settings) -> list[object]:
    """Return what there is of a canary beside its lock: files, and keys of Redis that have data of users."""
    prefix, folder = canary_settings(settings).redis.prefix, canary_settings(settings).data_dir
    with connect(settings.redis) as client:
        keys = [key for key in client.scan_iter(f"{prefix}*") if b":" in key or b"leaderboard" in key]
    found = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    return [*keys, *(path for path in found if path.suffix != ".lock")]


def test_a_canary_is_served_beside_the_policy_in_force(served: Settings) -> None:
    """It has documents and a warehouse of its own, and changes nothing else; an activation removes what it had."""
    lake = open_lake(served.lake_root)
    assert follow_canary(served) is None
    assert start_canary(lake, FIVE, "olga", "to see it") is True
    assert start_canary(lake, FIVE) is False
    present = follow_canary(served)
    assert present is not None
    assert (present.policy, present.operator, present.why) == (FIVE, "olga", "to see it")
    assert scores(served) == (3, 5)
    assert policy_in_force(served) == activated(lake) == THREE
    refresh_warehouse(served)
    publish_warehouse(served)
    assert scores(served) == (3, 5)
    with Warehouse(served.warehouse_path) as warehouse:
        assert warehouse.as_of().explain("u-0")["earned"].to_list() == [3]
        assert set(warehouse.shown_scores("u-0")["score"].to_list()) == {3}
        assert warehouse.sql("SELECT role FROM policies ORDER BY activated")["role"].to_list() == [None, "canary"]
    assert all(check.passed is not False for check in [*verify(served), *verify(canary_settings(served))])
    assert activate(lake, FIVE) is True
    assert canary(lake) is None
    assert follow_canary(served) is None
    assert remains(served) == []
    assert [each.policy for each in activations(lake)] == [THREE, FIVE]
    assert score(served, "u-0") == 3  # by the next publication it is 5


def test_a_canary_ends_without_an_activation(served: Settings) -> None:
    """It is on the record, and another canary may follow; a version in force may not get other rules by a canary."""
    lake = open_lake(served.lake_root)
    with pytest.raises(UsageError, match="there is no canary"):
        end_canary(lake, None, "none")
    with pytest.raises(PolicyError, match="version 3 of the policy points was in force before, with other rules"):
        start_canary(lake, OTHER_THREE)
    for _ in range(2):
        start_canary(lake, FIVE)
        follow_canary(served)
        assert scores(served) == (3, 5)
        assert end_canary(lake, "olga", "enough") == FIVE
        follow_canary(served)
        assert (scores(served), remains(served), activated(lake)) == ((3, None), [], THREE)


def test_a_running_process_follows(served: Settings) -> None:
    """It begins, updates, replaces and ends the canary beside the scores, which do not wait for it."""
    lake, stopping = open_lake(served.lake_root), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve, served, stopping, _report)
        try:
            start_canary(lake, FIVE)
            wait_for("the canary's documents", lambda: scores(served) == (3, 5))
            commit(lake, lake.table("events"), "b-2", make_events(["e-4"], partition=1), partition=1)
            wait_for("both with the commit", lambda: scores(served) == (6, 10))
            activate(lake, FIVE)
            wait_for("the end", lambda: (scores(served), remains(served)) == ((10, None), []))
        finally:
            stopping.set()
        running.result(PATIENCE_SECONDS)


def test_a_canary_that_cannot_be_served_delays_nothing(served: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The scores by the policy in force are served on, and a warning says why the canary is not."""
    lake, stopping = open_lake(served.lake_root), threading.Event()
    folder = canary_settings(served).data_dir
    folder.write_text("in the way")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve, served, stopping, _report)
        try:
            start_canary(lake, FIVE)
            wait_for("the warning", lambda: "serving the canary: " in caplog.text)
            commit(lake, lake.table("events"), "b-2", make_events(["e-4"], partition=1), partition=1)
            wait_for("the commit", lambda: score(served, "u-0") == 6)
        finally:
            stopping.set()
        running.result(PATIENCE_SECONDS)


def test_publish_full_repairs_a_canary_too(
    served: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another client deleted is missing until `publish --full`, under either prefix; the command names both."""
    start_canary(open_lake(served.lake_root), FIVE)
    follow_canary(served)
    with connect(served.redis) as client:
        for prefix in (served.redis.prefix, canary_settings(served).redis.prefix):
            client.delete(f"{prefix}:u-0")
    monkeypatch.setattr("pipelines.cli.pipeline.current_settings", lambda: served)
    publish(full=False)
    assert scores(served) == (None, None)
    publish(full=True)
    assert scores(served) == (3, 5)
    told = f"the canary is current, too: points, version 5, at {canary_settings(served).redis.prefix}:USER"
    assert capsys.readouterr().out.splitlines().count(told) == 2
    end_canary(open_lake(served.lake_root), None, "enough")
    publish(full=False)
    assert "canary" not in capsys.readouterr().out


def test_an_erasure_reaches_a_canary(served: Settings) -> None:
    """Its documents and files, and also what was left of one that ended."""
    lake = open_lake(served.lake_root)
    start_canary(lake, FIVE)
    follow_canary(served)
    erase(served, ["u-0"])
    assert (scores(served), scores(served, "u-1")) == ((None, None), (3, 5))
    assert not _named(canary_settings(served).data_dir, b"u-0")
    erase_without_documents(served, ["u-1"])
    assert not _named(canary_settings(served).data_dir, b"u-1")
    end_canary(lake, None, "a kill follows before anything is removed")
    erase(served, ["u-2"])
    assert remains(served) == []


def test_another_machine_removes_the_documents(
    served: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the files removes the documents of a canary that ended, also by a clock that was set back."""
    lake, clock = open_lake(served.lake_root), replaced_clock(monkeypatch)
    start_canary(lake, FIVE)
    follow_canary(served)
    end_canary(lake, None, "its machine is lost")
    clock.set_back(seconds=3_600)
    root = served.lake.model_copy(update={"uri": str(Path(served.lake_root).absolute())})
    elsewhere = served.model_copy(update={"data_dir": tmp_path / "elsewhere", "lake": root})
    follow_canary(elsewhere)
    assert scores(served) == (3, None)
    assert follow_canary(elsewhere) is None
    assert remains(elsewhere) == []


def _named(folder: Path, user: bytes) -> list[Path]:
    """Return the files with the bytes of a name."""
    return [path for path in folder.glob("**/*") if path.is_file() and user in path.read_bytes()]
