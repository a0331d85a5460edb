"""The embedded services: found again, never started twice, never confused with another process."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, CorruptionError, TransientError
from pipelines.local import services
from pipelines.local.process import is_locked, wait_until
from pipelines.local.services import LocalService, start, status, stop, with_local_endpoints
from pipelines.settings import KafkaSettings, RedisSettings, Settings
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS

CACHE_ONLY = KafkaSettings(bootstrap_servers="kafka.example:9092")


@pytest.fixture
def both(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")
    yield settings
    stop(settings)


@pytest.fixture
def cache_only(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data", kafka=CACHE_ONLY)
    yield settings
    stop(settings)


def _cache(settings: Settings) -> LocalService:
    cache = start(settings).cache
    assert cache is not None
    return cache


def _kill(settings: Settings, service: LocalService) -> None:
    os.kill(service.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not is_locked(settings.local_dir / f"{service.name}.lock"), PATIENCE_SECONDS)


def test_both_services_start_are_found_and_stop(both: Settings) -> None:
    """Started services respond, are in the settings, and are gone after stop, which may be repeated."""
    started = start(both)
    assert started == status(both)
    assert started.broker is not None
    endpoints = with_local_endpoints(both)
    assert endpoints.kafka.bootstrap_servers == started.broker.address
    assert endpoints.redis.url is not None
    with redis.Redis.from_url(endpoints.redis.url.get_secret_value()) as client:
        assert client.ping()
    assert stop(both) == ("broker", "cache")
    assert status(both) == services.LocalServices(None, None)
    assert stop(both) == ()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((services.HOST, started.broker.process.port))


def test_a_pinned_policy_uses_the_services_beside_its_lake(cache_only: Settings, tmp_path: Path) -> None:
    """Its data_dir is another one, its lake and document store are those of the configuration that it is beside."""
    _cache(cache_only)
    values = {
        "data_dir": tmp_path / "strict",
        "lake": {"uri": cache_only.lake_root},
        "redis": {"prefix": "strict"},
        "reputation": {"pinned": True},
    }
    found = with_local_endpoints(Settings.model_validate(values)).redis
    assert (found.url, found.prefix) == (with_local_endpoints(cache_only).redis.url, "strict")
    assert found.url is not None


@pytest.mark.slow
def test_the_cache_asks_for_a_password(cache_only: Settings) -> None:
    """The password is in a file that only this user can read, not in an argument, and survives a restart."""
    cache = _cache(cache_only)
    file = services.password_file(cache_only)
    password = file.read_text().split()[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert password not in Path(f"/proc/{cache.process.pid}/cmdline").read_text()
    with redis.Redis(port=cache.process.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.keys()
    stop(cache_only)
    again = _cache(cache_only)
    with redis.Redis(port=again.process.port, password=password) as client:
        assert client.ping()


def test_start_is_idempotent(both: Settings) -> None:
    """A second start reuses running services, without a notice."""
    assert start(both) == start(both)


def test_services_survive_the_process_that_started_them(cache_only: Settings) -> None:
    """`local start` ends; its services keep running and the next command finds them."""
    code = (
        "import sys; from pathlib import Path; from pipelines.settings import *\n"
        "from pipelines.local.services import *\n"
        "start(Settings(data_dir=Path(sys.argv[1]), kafka=KafkaSettings(bootstrap_servers='kafka.example:9092')))"
    )
    subprocess.run([sys.executable, "-c", code, str(cache_only.data_dir)], check=True, timeout=PATIENCE_SECONDS)
    cache = status(cache_only).cache
    assert cache is not None
    socket.create_connection((services.HOST, cache.process.port)).close()


def test_a_dead_service_is_replaced_at_its_old_port_with_a_notice(cache_only: Settings) -> None:
    """After a kill, status finds nothing; start runs a new service on the same port, and reports it."""
    before = _cache(cache_only)
    _kill(cache_only, before)
    assert status(cache_only).cache is None
    again = start(cache_only)
    assert again.cache is not None
    assert again.cache.process.port == before.process.port
    assert again.cache.process.pid != before.process.pid
    assert any("had ended" in notice for notice in again.notices)


def test_a_stopped_service_comes_back_at_its_old_port(cache_only: Settings) -> None:
    """A running `stream` knows no other; nothing was unexpected, so there is no notice."""
    before = _cache(cache_only)
    stop(cache_only)
    again = start(cache_only)
    assert again.cache is not None
    assert again.cache.process.port == before.process.port
    assert not any("had ended" in notice for notice in again.notices)


def test_a_taken_port_is_left_alone(cache_only: Settings) -> None:
    """If another process has taken the old port, the new service uses another one."""
    before = _cache(cache_only)
    _kill(cache_only, before)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((services.HOST, before.process.port))
        other.listen()
        assert _cache(cache_only).process.port != before.process.port


def test_a_recycled_pid_is_neither_found_nor_killed(cache_only: Settings) -> None:
    """A state file whose pid now belongs to another process counts as nothing running."""
    before = _cache(cache_only)
    _kill(cache_only, before)
    with ended(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)) as stranger:
        state = cache_only.local_dir / "cache.json"
        state.write_text(state.read_text().replace(str(before.process.pid), str(stranger.pid)))
        assert status(cache_only).cache is None
        assert stop(cache_only) == ()
        assert stranger.poll() is None
        stranger.communicate(b"\n")
        assert stranger.returncode == 0


def test_concurrent_starts_start_one(cache_only: Settings) -> None:
    """Starts at the same moment end with the same process."""
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(_cache(cache_only).process.pid)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 5
    assert len(set(pids)) == 1


def test_a_lost_state_file_is_an_error_that_helps(cache_only: Settings) -> None:
    """A running service without its state file is not started twice: the error says how to find it."""
    cache = _cache(cache_only)
    state = cache_only.local_dir / "cache.json"
    content = state.read_text()
    state.unlink()
    with pytest.raises(CorruptionError, match="fuser"):
        start(cache_only)
    state.write_text(content)
    assert status(cache_only).cache == cache


def test_a_service_that_does_not_come_up_shows_its_log(cache_only: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the end of the log, and no process remains."""
    monkeypatch.setattr(services, "_cache_command", lambda _, port: ["/bin/sh", "-c", "echo no room for $0", str(port)])
    with pytest.raises(TransientError, match=r"cache did not start.*\n(.*\n)*no room for \d+"):
        start(cache_only)
    assert status(cache_only).cache is None


def test_configured_servers_are_neither_replaced_nor_doubled(tmp_path: Path) -> None:
    """Configured servers stay in the settings, and no local ones are started."""
    configured = Settings(
        data_dir=tmp_path, kafka=CACHE_ONLY, redis=RedisSettings(url=SecretStr("redis://cache.example"))
    )
    assert with_local_endpoints(configured) == configured
    started = start(configured)
    assert (started.broker, started.cache) == (None, None)
    assert len(started.notices) == 2


def test_without_services_the_client_says_what_to_do(tmp_path: Path) -> None:
    """If nothing runs and nothing is configured, the client raises an error that says what to do."""
    settings = with_local_endpoints(Settings(data_dir=tmp_path / "none"))
    assert settings.redis.url is None
    with pytest.raises(ConfigurationError, match="karmalake local start"):
        settings.kafka.client_config()
