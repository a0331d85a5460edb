"""Publishing the documents of a million users to Redis, compared with Redis' own benchmark tool.

The tool sets values of the same size under as many keys, from one client with pipelining. The server is redis-server if
it is installed, otherwise the embedded Valkey.
"""

import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import redis

from benchmarks.lakes import AS_OF, make_lake
from benchmarks.report import require_count, save_results
from pipelines.lake.commit_log import take_snapshot
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse
from pipelines.reputation.derive import open_draft
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse_file import attach
from pipelines.settings import Settings

USERS, EVENTS = 1_000_000, 5_000_000
_PIPELINED = (1, 16, 128)


def run(folder: Path) -> None:
    """Derive once, publish twice: all documents, then without changes."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    bare = Settings(data_dir=folder / "data")
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        lake = make_lake(settings.lake_root, EVENTS, USERS)
        with open_draft(settings.warehouse_path) as draft:
            draft.rebuild(take_snapshot(lake), load_policy("default"), AS_OF + timedelta(days=1))
            draft.publish()
        rows = [_published(settings, "everything", _users(settings)), _published(settings, "nothing changed", 0)]
        assert settings.redis.url is not None  # noqa: S101 - tells the type checker
        url = settings.redis.url.get_secret_value()
        size = _document_bytes(url, settings.redis.prefix)
        if tool:
            rows += [_tool(tool, url, size, pipelined) for pipelined in _PIPELINED]
        else:
            print("neither redis-benchmark nor valkey-benchmark is installed: nothing to compare with")
        save_results(
            "publish", ("what", "documents", "seconds", "documents/s"), rows, "documents/s", document_bytes=size
        )
    finally:
        stop(bare)


def _users(settings: Settings) -> int:
    with attach(settings.warehouse_path) as connection:
        return connection.execute("SELECT count(*) FROM reputation").fetchall()[0][0]


def _published(settings: Settings, what: str, documents: int) -> tuple[str, int, float, int]:
    started = time.monotonic()
    published = publish_warehouse(settings)
    seconds = time.monotonic() - started
    require_count(f"documents written, {what}", published.written, documents)
    return f"karmalake publish, {what}", published.written, seconds, round(published.written / seconds)


def _document_bytes(url: str, prefix: str) -> int:
    with redis.Redis.from_url(url) as client:
        sizes = [client.strlen(f"{prefix}:user-{n}") for n in range(1_000)]
    return round(sum(sizes) / len(sizes))


def _tool(tool: str, url: str, size: int, pipelined: int) -> tuple[str, int, float, int]:
    where = redis.connection.parse_url(url)
    command = [tool, "-h", str(where["host"]), "-p", str(where["port"]), "-n", str(USERS), "-r", str(USERS), "-c", "1"]
    command += ["-P", str(pipelined), "-d", str(size), "-t", "set", "--csv"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rate = float(told[-1].split(",")[1].strip('"'))
    return f"{Path(tool).name}, 1 client, pipeline of {pipelined}", USERS, USERS / rate, round(rate)
