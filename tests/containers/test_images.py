"""The images: any user, a read-only root, few megabytes, and an end when the engine asks for it."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.settings import Settings
from tests.containers.engine import BUILD_SECONDS, Engine
from tests.containers.images import BASE, IMAGES
from tests.draining import send, valid_records
from tests.monitoring.scraping import becomes, status
from tests.services.ports import HOST, free_port
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.timeout(2 * BUILD_SECONDS)
_MAX_MEGABYTES = {"stream": 810, "dagster": 1_180}
"""Unpacked, without the base. Five libraries take 600 of them: LLVM, Polars, delta-rs, Arrow and DuckDB."""
_CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # noqa: S108 - of a container
_USERS = ("1000:1000", "12345:54321")


@pytest.fixture
def volume(engine: Engine) -> Iterator[str]:
    name = f"karmalake-test-{uuid.uuid4().hex[:8]}"
    engine.run("volume", "create", name)
    yield name
    engine.run("volume", "rm", name)


def _variables(settings: Settings) -> dict[str, str]:
    assert settings.redis.url is not None
    return {
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
    }


def _options(variables: Mapping[str, str], *mounts: str, user: str = _USERS[0]) -> list[str]:
    """Return the options of a container on this machine's network, with nothing to write to but `mounts` and /tmp."""
    settings = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    return [*_CONFINED, "--network", "host", "--user", user, *settings, *mounts]


@contextmanager
def _started(engine: Engine, options: list[str], *command: str) -> Iterator[str]:
    """Run a command in a container; yield the container's id, and remove it on exit."""
    container = engine.run("run", "--detach", *options, IMAGES["stream"], *command)
    try:
        yield container
    finally:
        engine.run("rm", "--force", container)


def _exit_code(engine: Engine, container: str) -> int:
    [state] = json.loads(engine.run("inspect", container))
    assert not state["State"]["Running"]
    assert not state["State"]["OOMKilled"]
    return state["State"]["ExitCode"]


@pytest.mark.parametrize("target", IMAGES)
def test_the_size_of_an_image(engine: Engine, target: str) -> None:
    """Within its limit, so that a dependency that grows is noticed."""
    built, base = json.loads(engine.run("image", "inspect", IMAGES[target], BASE))
    assert built["Size"] - base["Size"] < _MAX_MEGABYTES[target] * 1_000_000


@pytest.mark.parametrize("user", _USERS)
def test_any_user_on_a_read_only_root(engine: Engine, volume: str, settings: Settings, user: str) -> None:
    """`ingest`, `refresh` and `publish` need a volume and /tmp only; the next container finds the compiled loops."""
    send(settings, valid_records(range(50)))
    port = free_port()
    variables = _variables(settings)
    served = {"KARMALAKE_METRICS_PORT": str(port), "KARMALAKE_METRICS_HOST": HOST}
    mounts = ("--mount", f"type=volume,src={volume},dst=/data")
    with _started(engine, _options(variables | served, *mounts, user=user), "karmalake", "ingest") as container:
        wait_for("readiness", lambda: _answers(f"{HOST}:{port}"))
        becomes(f"{HOST}:{port}", 50, "karmalake_ingest_records_total", outcome="accepted")
        engine.run("stop", "--time", str(int(PATIENCE_SECONDS)), container)
        assert _exit_code(engine, container) == 0
    confined = _options(variables, *mounts, user=user)
    for command in ("refresh", "publish", "verify"):
        engine.run("run", "--rm", *confined, IMAGES["stream"], "karmalake", command)
    listed = engine.run("run", "--rm", *confined, IMAGES["stream"], "find", "/data", "-name", "*.nbc")
    assert "digest" in listed


def _answers(address: str) -> bool:
    try:
        return status(address, "/readyz")[0] == 200
    except httpx.TransportError:
        return False


def test_without_a_volume(engine: Engine) -> None:
    """Compiled loops, as `notify` needs for JSON, are then cached in /tmp."""
    program = "import os; from karmalake.pipelines.contract import json; print(os.listdir('/tmp/.cache/numba'))"
    command = ("run", "--rm", *_options({}, user=_USERS[1]), IMAGES["stream"], "python3", "-c", program)
    assert "contract_" in engine.run(*command)


def test_the_allocator(engine: Engine) -> None:
    """It is jemalloc's, so `stream` has nothing to advise."""
    program = "from karmalake.pipelines.ingest.malloc import explain_malloc; print(explain_malloc())"
    assert engine.run("run", "--rm", *_options({}), IMAGES["stream"], "python3", "-c", program).strip() == "None"


@pytest.mark.parametrize("command", ["stream", "ingest"])
def test_a_signal_at_once(engine: Engine, volume: str, settings: Settings, command: str) -> None:
    """The first process of a container ignores what it does not handle: `tini` ends a command that starts."""
    ensure_topic(settings.kafka)
    mounts = ("--mount", f"type=volume,src={volume},dst=/data")
    with _started(engine, _options(_variables(settings), *mounts), "karmalake", command) as container:
        engine.run("kill", "--signal", "TERM", container)
        assert int(engine.run("wait", container, timeout=PATIENCE_SECONDS)) in {0, 143}


def test_a_signal_without_an_init(engine: Engine, volume: str, settings: Settings) -> None:
    """A command that is itself the first process, as `command` of a pod makes it, ends cleanly."""
    ensure_topic(settings.kafka)
    mounts = ("--mount", f"type=volume,src={volume},dst=/data", "--entrypoint", "karmalake")
    with _started(engine, _options(_variables(settings), *mounts), "stream") as container:
        wait_for("its first refresh", lambda: "served version" in engine.run("logs", container))
        engine.run("stop", "--time", str(int(PATIENCE_SECONDS)), container)
        assert _exit_code(engine, container) == 0


_IMPORTS = """
import importlib, json, pathlib, karmalake
found, folder = {}, pathlib.Path(karmalake.__file__).parent
for path in sorted(folder.rglob("*.py")):
    name = ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
    if name.startswith("karmalake.assets") or name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        found[name] = getattr(error, "name", None) or str(error)
from karmalake.pipelines.mapping.proto_files import message_type
text = 'syntax = "proto3"; import "google/protobuf/timestamp.proto"; message M { google.protobuf.Timestamp at = 1; }'
print(json.dumps([found, message_type(text, "", []).full_name]))
"""
"""Imports every module but those of Dagster, and compiles a schema; prints what each module lacked."""
_SPARK = {"pyspark", "py4j", "sqlglot"}
_OF_OTHER_EXTRAS = {"stream": _SPARK | {"altair", "marimo", "starlette", "uvicorn"}, "dagster": _SPARK}
"""Modules that are imported by ours only after a check of their extra, which the image does not have."""
_STREAM_EXTRAS = {"avro", "outbox", "postgresql", "proto", "s3"}
_EXTRAS = {"stream": _STREAM_EXTRAS, "dagster": _STREAM_EXTRAS | {"dagster", "dashboard"}}


@pytest.mark.parametrize("target", IMAGES)
def test_nothing_that_was_removed_is_imported(engine: Engine, target: str) -> None:
    """Every module of ours is imported, unless an extra that is not in the image is missing; so is the lazy protoc."""
    options = ("--env", "NUMBA_CACHE_DIR=/tmp/numba")
    printed = engine.run("run", "--rm", *_options({}, *options), IMAGES[target], "python3", "-c", _IMPORTS)
    found, compiled = json.loads(printed.splitlines()[-1])
    assert compiled == "M"
    lacking = {name: why for name, why in found.items() if why.partition(".")[0] not in _OF_OTHER_EXTRAS[target]}
    named = {name: re.search(r"karmalake\[(\w+)\]", why) for name, why in lacking.items()}
    assert all(extra and extra[1] not in _EXTRAS[target] for extra in named.values()), lacking
    assert len(found) < 30, "most modules are imported"


def test_the_definitions_load(engine: Engine) -> None:
    """Dagster accepts them in its image, as any user on a read-only root."""
    options = _options({}, "--env", "DAGSTER_HOME=/tmp", user=_USERS[1])  # no PostgreSQL is needed to load them
    engine.run(
        "run", "--rm", *options, IMAGES["dagster"], "dagster", "definitions", "validate", "-m", "karmalake.dagster"
    )
