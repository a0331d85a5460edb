"""`karmalake serve`: it follows the commits of others, and a pinned policy is served beside the one in force."""

import shutil
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, PolicyError
from pipelines.lake.tables import create_lake, open_lake
from pipelines.operate.erase import erase
from pipelines.operate.verify import verify
from pipelines.refresh import policy_in_force, publish_warehouse, refresh_warehouse, require_publishable
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import LakeSettings, Settings, load_settings
from pipelines.stream import serve
from tests.draining import score
from tests.lake.builders import commit, make_events
from tests.services.waiting import PATIENCE_SECONDS, wait_for

POINTS = 'name = "{name}"\nversion = "1"\n[actions.p]\npoints = {points}\n'


@pytest.fixture
def served(settings: Settings) -> Settings:
    """Return settings of a lake with an event of each of three users, worth three points by the policy in force."""
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    settings = settings.model_copy(update={"reputation": reputation})
    lake = create_lake(settings.lake_root)
    activate(lake, parse_policy(POINTS.format(name="three", points=3)))
    commit(lake, lake.table("events"), "b-1", make_events(["e-1", "e-2", "e-3"]))
    return settings


@pytest.fixture
def pinned(served: Settings, tmp_path: Path) -> Settings:
    """Return settings of the same lake that pin another policy, of five points."""
    policy = tmp_path / "five.toml"
    policy.write_text(POINTS.format(name="five", points=5))
    update = {
        "data_dir": tmp_path / "five",
        "lake": LakeSettings(uri=served.lake_root),
        "redis": served.redis.model_copy(update={"prefix": f"{served.redis.prefix}-five"}),
        "reputation": served.reputation.model_copy(update={"policy": str(policy), "pinned": True}),
    }
    return served.model_copy(update=update)


@contextmanager
def serving(settings: Settings) -> Generator["Future[bool]"]:
    """Serve in a thread; on leaving, stop it and pass on its error."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(serve, settings, stopping, lambda *_: None)
        try:
            yield done
        finally:
            stopping.set()
        done.result(PATIENCE_SECONDS)


def add(settings: Settings, *ids: str) -> None:
    """Commit an event of each of u-0, u-1, ..., as another process does."""
    lake = open_lake(settings.lake_root)
    commit(lake, lake.table("events"), f"b-{ids[0]}", make_events(ids, partition=1), partition=1)


def test_commits_of_others_are_served(served: Settings) -> None:
    """Without ingest in this process; what is committed last is published before it ends."""
    with serving(served):
        wait_for("the documents of what was there", lambda: score(served, "u-2") == 3)
        add(served, "e-4")
        wait_for("the document of a commit by another process", lambda: score(served, "u-0") == 6)
        add(served, "e-5")
    assert score(served, "u-0") == 9
    assert [check for check in verify(served) if check.passed is False] == []


def test_a_lake_is_waited_for(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Without one, also at a mistyped place, it creates nothing, and says so until another process creates one."""
    with serving(settings):
        wait_for("the warning", lambda: f"follow: there is no lake in {settings.lake_root} yet" in caplog.text)
        assert not Path(settings.lake_root).exists()
        lake = create_lake(settings.lake_root)
        activate(lake, parse_policy(POINTS.format(name="three", points=3)))
        commit(lake, lake.table("events"), "b-1", make_events(["e-1"]))
        wait_for("its document", lambda: score(settings, "u-0") == 3)


def test_it_ends_cleanly_without_a_lake(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is published, and nothing is created."""
    with serving(settings) as done:
        wait_for("the warning", lambda: "there is no lake" in caplog.text)
    assert not done.result()
    assert not Path(settings.lake_root).exists()


def test_a_lake_that_disappears_is_reported(
    served: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the loop that follows it, without a commit; nothing is created in its place."""
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", 0.0)
    with serving(served):
        wait_for("the documents of what was there", lambda: score(served, "u-2") == 3)
        shutil.move(served.lake_root, tmp_path / "unmounted")
        wait_for("the warning", lambda: f"follow: the lake in {served.lake_root} is gone" in caplog.text)
        assert not Path(served.lake_root).exists()


def test_a_pinned_policy_is_served_beside_the_one_in_force(served: Settings, pinned: Settings) -> None:
    """Each has its documents and its warehouse; an activation changes one, and each explains its own history."""
    for each in (served, pinned):
        refresh_warehouse(each)
        publish_warehouse(each)
    assert (score(served, "u-0"), score(pinned, "u-0")) == (3, 5)
    activate(open_lake(served.lake_root), parse_policy(POINTS.format(name="seven", points=7)))
    for each in (served, pinned):
        refresh_warehouse(each)
        publish_warehouse(each)
    assert (score(served, "u-0"), score(pinned, "u-0")) == (7, 5)
    assert [policy_in_force(each).name for each in (served, pinned)] == ["seven", "five"]
    now = datetime.now(UTC)
    for each, points in ((served, 7), (pinned, 5)):
        with Warehouse(each.warehouse_path) as warehouse:
            assert warehouse.as_of(now, known_at=now).explain("u-0")["earned"].to_list() == [points]
            assert set(warehouse.shown_scores("u-0")["score"]) == ({3, 7} if points == 7 else {5})
        assert [check for check in verify(each) if check.passed is False] == []


def test_a_policy_that_becomes_invalid_ends_nothing(pinned: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Scores stay as they are, with a warning, until the file is right again; at the start it is an error."""
    policy = Path(pinned.reputation.policy)
    valid = policy.read_text()
    with serving(pinned):
        wait_for("the documents of what was there", lambda: score(pinned, "u-2") == 5)
        policy.write_text(valid[:-2])
        wait_for("the warning", lambda: "stay as they are until it is corrected" in caplog.text)
        assert score(pinned, "u-2") == 5
        policy.write_text(valid.replace("5", "8"))
        wait_for("the scores of the corrected file", lambda: score(pinned, "u-2") == 8)
    policy.write_text(valid[:-2])
    with pytest.raises(PolicyError, match=r"five\.toml"), serving(pinned) as done:
        wait([done], PATIENCE_SECONDS)


def _without_view(text: str) -> str:
    return "windows_days = [30]\n" + text


def _without_view_from_soon(text: str) -> str:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    first = text.replace("version =", "[[versions]]\nversion =").replace("[actions", "[versions.actions")
    later = f'[[versions]]\nversion = "2"\neffective_from = "{soon.isoformat()}"\nwindows_days = [30]\n'
    return f"{first}{later}[versions.actions.p]\npoints = 9\n"


@pytest.mark.parametrize("edit", [_without_view, _without_view_from_soon])
def test_a_policy_that_lacks_a_view_ends_nothing(
    pinned: Settings, caplog: pytest.LogCaptureFixture, edit: Callable[[str], str]
) -> None:
    """One whose leaderboard the settings name: nothing is derived by it, and at the start it is an error of these."""
    ranked = pinned.redis.model_copy(update={"leaderboards": ("all_time", "last_7_days")})
    pinned = pinned.model_copy(update={"redis": ranked})
    policy = Path(pinned.reputation.policy)
    valid = policy.read_text()
    lacks = r"names 'last_7_days', but the policy has no such view: it has all_time, last_30_days"
    with serving(pinned):
        wait_for("the documents of what was there", lambda: score(pinned, "u-2") == 5)
        wait_for("the warehouse", pinned.warehouse_path.exists)
        policy.write_text(edit(valid))
        wait_for("the warning", lambda: f"{lacks}; scores stay as they are until it is corrected" in caplog.text)
        with Warehouse(pinned.warehouse_path) as warehouse:
            assert "last_7_days_score" in warehouse["reputation"].columns
        assert score(pinned, "u-2") == 5
        policy.write_text(valid.replace("5", "8"))
        wait_for("the scores of the corrected file", lambda: score(pinned, "u-2") == 8)
    policy.write_text(_without_view(valid))
    with pytest.raises(ConfigurationError, match=lacks), serving(pinned) as done:
        wait([done], PATIENCE_SECONDS)


def test_an_activated_policy_that_lacks_a_scope_ends_nothing(
    served: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Activated with other settings than the publisher's; the next activation ends the wait."""
    lake, scopes = open_lake(served.lake_root), '[scopes.city]\nfrom = "city"\n'
    ranked = served.redis.model_copy(update={"leaderboards": ("all_time.city=rome",)})
    activate(lake, parse_policy(POINTS.format(name="by-city", points=4) + scopes))
    with serving(served.model_copy(update={"redis": ranked})):
        wait_for("the documents of what was there", lambda: score(served, "u-2") == 4)
        activate(lake, parse_policy(POINTS.format(name="plain", points=6)))
        wait_for("the warning", lambda: "has no such scope: it has none; scores stay as they are" in caplog.text)
        assert score(served, "u-2") == 4
        activate(lake, parse_policy(POINTS.format(name="by-city-again", points=7) + scopes))
        wait_for("the scores of the policy that has it", lambda: score(served, "u-2") == 7)


def test_a_policy_that_the_publisher_cannot_serve_is_not_publishable(served: Settings) -> None:
    """Settings without leaderboards do not know of them: the store records those published last."""
    ranked = served.redis.model_copy(update={"leaderboards": ("all_time", "last_7_days")})
    publisher = served.model_copy(update={"redis": ranked})
    refresh_warehouse(publisher)
    publish_warehouse(publisher)
    lacking = parse_policy(_without_view(POINTS.format(name="three", points=3)))
    dated = parse_policy(_without_view_from_soon(POINTS.format(name="three", points=3)))
    for policy in (lacking, dated):
        with pytest.raises(ConfigurationError, match=r"of the last publication .* names 'last_7_days'"):
            require_publishable(policy, served)
        with pytest.raises(ConfigurationError, match=r"LEADERBOARDS\) names 'last_7_days'"):
            require_publishable(policy, publisher)
    unreachable = served.redis.model_copy(update={"url": SecretStr("redis://127.0.0.1:1")})
    require_publishable(lacking, served.model_copy(update={"redis": unreachable}))


def test_an_erasure_reaches_a_pinned_policy(served: Settings, pinned: Settings) -> None:
    """By its next refresh, and at once where its configuration erases: the lake is the same."""
    for each in (served, pinned):
        refresh_warehouse(each)
        publish_warehouse(each)
    erase(served, ["u-0"])
    assert (score(served, "u-0"), score(pinned, "u-0")) == (None, 5)
    refresh_warehouse(pinned)
    publish_warehouse(pinned)
    erase(pinned, ["u-1"])
    assert (score(pinned, "u-0"), score(pinned, "u-1"), score(pinned, "u-2")) == (None, None, 5)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "KARMALAKE_REPUTATION_PINNED: reputation.pinned: needs lake.uri, the place of the lake"),
        ({"KARMALAKE_LAKE_URI": "/srv/lake"}, "needs a prefix of its own .*: reputation is that of the policy"),
        ({"KARMALAKE_LAKE_URI": "lake"}, "KARMALAKE_LAKE_URI: lake.uri: has to be an absolute path or s3://"),
        (
            {"KARMALAKE_LAKE_URI": "/srv/lake", "KARMALAKE_REDIS_PREFIX": "own", "KARMALAKE_FEED_ENABLED": "true"},
            "KARMALAKE_FEED_ENABLED: feed.enabled: feed.enabled and reputation.pinned are both set: a lake has one",
        ),
        ({"KARMALAKE_LAKE_URI": "/srv/a?b"}, r"lake.uri: /srv/a\?b has \? in its name"),
    ],
)
def test_a_pinned_policy_needs_places_of_its_own(variables: dict[str, str], message: str) -> None:
    """Else it would replace what serves the policy in force, also in the local cache, which has no address here."""
    pinned = {"KARMALAKE_REPUTATION_PINNED": "true"}
    with pytest.raises(ConfigurationError, match=message):
        load_settings(pinned | variables)
