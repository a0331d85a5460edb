"""`karmalake doctor` on broken installations: each problem is reported with advice, none as a traceback."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from pydantic import SecretStr

from pipelines.errors import ConfigurationError
from pipelines.operate import doctor
from pipelines.operate.doctor import diagnose
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import Settings, load_settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.services.ports import HOST
from tests.services.redis_server import RedisServer
from tests.services.requirements import require


@pytest.fixture(scope="module")
def installation(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    kafka = local_settings.kafka.model_copy(update={"topic": "doctor", "group_id": "doctor"})
    redis = local_settings.redis.model_copy(update={"prefix": "doctor"})
    update = {"data_dir": tmp_path_factory.mktemp("doctor"), "kafka": kafka, "redis": redis}
    settings = with_ingest(local_settings.model_copy(update=update))
    send(settings, valid_records(range(5)))
    drain_all(settings)
    refresh_warehouse(settings)
    publish_warehouse(settings)
    return settings


@pytest.fixture
def healthy(installation: Settings, tmp_path: Path) -> Settings:
    """Return a healthy installation, with a copy of the data folder that a test may break."""
    shutil.copytree(installation.data_dir, tmp_path / "data")
    return installation.model_copy(update={"data_dir": tmp_path / "data"})


def _with(settings: Settings, section: str, **changes: object) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changes)})


def _failed(settings: Settings) -> dict[str, str]:
    return {finding.subject: finding.message for finding in diagnose(settings) if not finding.ok}


def test_a_healthy_installation_has_no_failed_check(healthy: Settings) -> None:
    """Every part is checked, in data flow order, and none fails."""
    findings = list(diagnose(healthy))
    assert [finding.subject for finding in findings] == [
        "disk",
        "packages",
        "broker",
        "lake",
        "lag",
        "halted",
        "policy",
        "warehouse",
        "cache",
    ]
    assert [finding for finding in findings if not finding.ok] == []


class Broken(NamedTuple):
    """A way to break an installation, the parts that fail then, and a phrase of the message."""

    break_it: Callable[[Settings], Settings]
    parts: set[str]
    message: str


def _overwrite(path: str) -> Callable[[Settings], Settings]:
    def break_it(settings: Settings) -> Settings:
        (settings.data_dir / path).write_text("{nonsense", encoding="utf-8")
        return settings

    return break_it


def _truncate_warehouse(settings: Settings) -> Settings:
    os.truncate(settings.warehouse_path, settings.warehouse_path.stat().st_size // 2)
    return settings


def _without_lake(settings: Settings) -> Settings:
    shutil.rmtree(settings.data_dir / "lake")
    return settings


def _changed(section: str, **changes: Any) -> Callable[[Settings], Settings]:
    return lambda settings: _with(settings, section, **changes)


_LOG = "lake/events/_delta_log/00000000000000000000.json"
_UNREACHABLE = f"{HOST}:1"
_BROKEN = {
    "no broker": Broken(_changed("kafka", bootstrap_servers=_UNREACHABLE), {"broker"}, "check that the broker runs"),
    "no topic": Broken(_changed("kafka", topic="absent"), {"broker"}, "`karmalake topics ensure`"),
    "no lake": Broken(_without_lake, {"lake"}, "run `karmalake drain`"),
    "a damaged lake": Broken(_overwrite(_LOG), {"lake"}, "restore it from a copy"),
    "a damaged warehouse": Broken(_overwrite("warehouse.duckdb"), {"warehouse"}, "`karmalake rebuild`"),
    "a warehouse cut off": Broken(_truncate_warehouse, {"warehouse"}, "`karmalake rebuild`"),
    "no Redis": Broken(_changed("redis", url=SecretStr(f"redis://{_UNREACHABLE}/0")), {"cache"}, "KARMALAKE_REDIS_URL"),
    "nothing published": Broken(_changed("redis", prefix="nobody"), {"cache"}, "`karmalake publish`"),
    "stale": Broken(_changed("reputation", max_staleness_seconds=1e-6), {"cache"}, "`karmalake stream`"),
    "no such policy": Broken(_changed("reputation", policy="absent"), {"policy"}, "shipped policies"),
    "no rules": Broken(_changed("notify", rules=Path("absent.toml")), {"notify"}, "absent.toml"),
    "no database": Broken(_changed("relay", database_url=SecretStr("sqlite:///absent.db")), {"outbox"}, "absent.db"),
    "no queue": Broken(
        _changed("queue", kind="rabbitmq", url=SecretStr(f"amqp://u:secret@{_UNREACHABLE}")),
        {"queue"},
        "check that it runs",
    ),
}


@pytest.mark.parametrize("name", _BROKEN)
@pytest.mark.usefixtures("broken_connections")
def test_each_problem_is_reported_once(healthy: Settings, name: str) -> None:
    """Only the broken part fails, with advice, and no secret is shown."""
    break_it, parts, message = _BROKEN[name]
    bad = _failed(break_it(_with(healthy, "kafka", request_timeout_seconds=2.0)))
    assert set(bad) == parts
    assert message in "".join(bad.values())
    assert "\n" not in "".join(bad.values())
    assert "secret" not in "".join(bad.values())


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis that requires a password."""
    require("redis")
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis", password="right") as server:  # noqa: S106
        yield server


@pytest.mark.services
def test_a_wrong_password(healthy: Settings, guarded: RedisServer) -> None:
    """It is distinguished from a server that is down, and the password is not shown."""
    url = SecretStr(guarded.url(password="mistaken"))  # noqa: S106
    bad = _failed(_with(healthy, "redis", url=url))
    assert set(bad) == {"cache"}
    assert "Check the user and password" in bad["cache"]
    assert "mistaken" not in bad["cache"]


@pytest.mark.services
def test_a_cache_that_evicts(healthy: Settings, guarded: RedisServer) -> None:
    """What it drops is not missed by a publication; for a user who may not ask for its policy the rest is checked."""
    url = SecretStr(guarded.url())
    with redis.Redis.from_url(url.get_secret_value()) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.acl_setuser("reader", enabled=True, passwords=["+right"], categories=["+@read"], keys=["*"])
    bad = _failed(_with(healthy, "redis", url=url))
    assert "maxmemory-policy allkeys-lru" in bad["cache"]
    bad = _failed(_with(healthy, "redis", url=SecretStr(guarded.url("reader"))))
    assert "holds no publication" in bad["cache"]


@pytest.mark.services
def test_a_cache_without_info(healthy: Settings, tmp_path: Path) -> None:
    """A hosted Redis or a proxy may not know the command by which its policy is asked: the rest is checked."""
    require("redis")
    (tmp_path / "bare").mkdir()
    with RedisServer(tmp_path / "bare", config={"rename-command": 'INFO ""'}) as server:
        assert "holds no publication" in _failed(_with(healthy, "redis", url=SecretStr(server.url())))["cache"]


def test_a_full_disk(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Low disk space fails with the free space before writes fail."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "free disk space, or set KARMALAKE_DATA_DIR" in _failed(healthy)["disk"]


def test_a_folder_without_permission(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data folder and lake are checked; tests may run as root, so access is simulated."""
    monkeypatch.setattr(doctor.os, "access", lambda *_, **__: False)
    bad = _failed(healthy)
    assert f"{healthy.data_dir} is not writable: " in bad["disk"]
    assert f"{healthy.lake_root} is not accessible: " in bad["lake"]
    assert all("may not enter" in bad[subject] for subject in ("disk", "lake"))


def test_a_reader_of_the_folder_of_another_user(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who may read and not write it has a working installation, and learns what does not work."""
    monkeypatch.setattr(doctor.os, "access", lambda _, mode, **__: not mode & os.W_OK)
    assert set(_failed(healthy)) == {"disk", "lake"}
    monkeypatch.setattr(doctor.os, "geteuid", lambda: os.getuid() + 1)
    assert _failed(healthy) == {}
    assert "queries work, commands that write do not: " in next(diagnose(healthy)).message


def test_a_package_that_the_settings_need(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing required extra fails; a missing optional one is a remark."""
    monkeypatch.setattr(doctor, "is_installed", lambda name: name not in {"avro", "dashboard"})
    assert _failed(healthy) == {}
    assert "not installed: avro, dashboard" in next(f.message for f in diagnose(healthy) if f.subject == "packages")
    needed = {"packages": "the settings need more packages: pip install 'karmalake[avro]'"}
    assert _failed(_with(healthy, "contract", format="avro")) == needed
    assert _failed(_with(healthy, "feed", enabled=True, format="avro")) == needed
    assert _failed(_with(healthy, "feed", format="avro")) == {}


def test_a_package_that_a_source_needs(healthy: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sources of Protobuf need a compiler, others need Avro or Excel; one that is left out needs nothing."""
    fields = 'user_id = "u"\ntime = "t"\naction_type = "A"\n'
    (tmp_path / "bus.toml").write_text(f'topic = "t"\nformat = "protobuf"\nregistry = true\n{fields}')
    (tmp_path / "files.toml").write_text(f'files = ["a.xlsx", "b.avro"]\n{fields}')
    monkeypatch.setattr(doctor, "is_installed", lambda _: False)
    found = _failed(_with(healthy, "sources", folder=tmp_path))["packages"]
    assert found == "the settings need more packages: pip install 'karmalake[avro,excel,proto]'"
    assert "packages" not in _failed(_with(healthy, "sources", folder=tmp_path, only=("contract",)))


def test_no_java_for_spark(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remark, since Spark is optional."""
    monkeypatch.setenv("PATH", str(healthy.data_dir))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    packages = next(finding for finding in diagnose(healthy) if finding.subject == "packages")
    assert packages.ok
    assert "would need Java 17" in packages.message


@pytest.mark.parametrize("name", ["KARMALAKE_KAFKA_TOPIK", "KARMALAKE_DATA_DIRECTORY"])
def test_a_misspelled_setting(name: str, tmp_path: Path) -> None:
    """The message suggests the correct name."""
    with pytest.raises(
        ConfigurationError, match=r"is not a setting: did you mean 'KARMALAKE_(KAFKA_TOPIC|DATA_DIR)'\?"
    ):
        load_settings({name: "x"}, tmp_path)


def test_events_that_earn_nothing_are_counted(healthy: Settings, tmp_path: Path) -> None:
    """By the policy of the warehouse: those without a rule, and those that lack what their rule reads."""
    send(healthy, valid_records(range(20, 23), "Rated"))
    drain_all(healthy)
    policy = tmp_path / "ratings.toml"
    rating = 'rating = { from = "stars", minimum = 1, maximum = 5 }'
    policy.write_text(f'name = "r"\nversion = "1"\n[actions.Rated]\n{rating}\n')
    settings = _with(healthy, "reputation", policy=str(policy))
    refresh_warehouse(settings)
    found = next(finding for finding in diagnose(settings) if finding.subject == "warehouse")
    assert found.ok
    for sentence in ("3 of Rated: unreadable, since the policy needs ", "5 of A: no rule in the policy r"):
        assert f"; events that earn nothing: {sentence}" in found.message


def test_seeds_whom_no_event_names(healthy: Settings, tmp_path: Path) -> None:
    """A misspelt seed leaves all raters without trust: the closest user or rater is named."""
    policy = tmp_path / "trust.toml"
    policy.write_text(
        'name = "t"\nversion = "1"\nactions.A.rating = 1\n'
        'raters = { weight = "trust", seeds = ["u-00", "u-1", "2", "nowhere"], key = "n" }\n'
    )
    found = next(f for f in diagnose(_with(healthy, "reputation", policy=str(policy))) if f.subject == "policy")
    assert found.message == (
        "t, version 1; no event names 'u-00' of raters.seeds: check the spelling; did you mean 'u-0'?; "
        "no event names 'nowhere' of raters.seeds: check the spelling"
    )


def test_a_warehouse_behind_the_lake(healthy: Settings) -> None:
    """It fails once it is older than reputation.max_staleness_seconds."""
    send(healthy, valid_records(range(5, 9)))
    drain_all(healthy)
    behind = next(finding for finding in diagnose(healthy) if finding.subject == "warehouse")
    assert behind.ok
    assert behind.message.endswith("1 commit behind the lake")
    assert "`karmalake refresh`" in _failed(_with(healthy, "reputation", max_staleness_seconds=1e-6))["warehouse"]
