"""Fixtures for all tests: an embedded broker and cache for the session, and separate settings for each test."""

import gc
import logging
import os
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings
from tests.compiled_loops import compile_loops
from tests.share import DAY, count, is_of_today

pytest_plugins = ["tests.services.fixtures"]
# The tests start hundreds of interpreters: without byte code, each compiles all that it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# There is no deadline: the machine may be busy, and compiled loops compile on the first call.
hypothesis.settings.register_profile(
    "untimed",
    max_examples=count(10, 100),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")
gc.disable()  # until all tests are collected

LONG_FILES = (
    "object_store/test_spark.py",
    "reputation/test_spark.py",
    "test_stream.py",
    "crashes/test_crash_matrix.py",
    "sources/test_bounds.py",
    "notify/test_notify.py",
    "test_chaos.py",
    "reputation/test_incremental.py",
    "reputation/test_shown.py",
    "test_faults.py",
    "reputation/test_refresh_after_erasure.py",
    "notebooks/test_notebooks.py",
    "dashboard/test_dashboard.py",
    "test_ports.py",
    "emit/test_relay.py",
    "object_store/test_warehouse.py",
    "object_store/test_end_to_end.py",
    "operate/test_dead_letters.py",
    "operate/test_erase_reach.py",
    "reputation/test_base.py",
    "operate/test_verify_served.py",
    "cli/test_terminal.py",
    "test_dlq.py",
    "assets/test_page.py",
    "assets/test_assets.py",
    "test_topics.py",
    "test_wheel.py",
    "ingest/test_group.py",
    "operate/test_erase.py",
    "reputation/test_raters.py",
    "reputation/test_publication.py",
    "queues/test_queues.py",
    "serving/test_cluster.py",
    "notify/test_progress.py",
    "test_foreign_topics.py",
    "object_store/test_lake.py",
    "cli/test_pipeline.py",
    "test_durability.py",
    "assets/test_processes.py",
    "reputation/test_trends.py",
    "test_backfill.py",
    "ingest/test_truncation.py",
    "mapping/test_row_sources.py",
    "cli/test_policy_commands.py",
    "test_feed_relay.py",
    "reputation/test_refresh_after_withdrawal.py",
    "sources/test_naive_columns.py",
    "test_sources.py",
    "services/test_kafka_cluster.py",
    "fuzz/test_seeds.py",
    "test_signals.py",
    "test_feed.py",
    "test_bombs.py",
    "operate/test_withdraw.py",
    "operate/test_audit_replays.py",
    "fuzz/test_harness.py",
    "contract/test_schemas.py",
)
"""The slowest test files, slowest first, by the time that their tests took: they start first, so that none runs alone
at the end."""

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--share`."""
    parser.addoption("--share", type=int, default=1, metavar="DAYS", help="the test files of today: DAYS days run all")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the test files of other days; importing them is a tenth of a run's time."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    left_out = is_test and not is_of_today(collection_path.relative_to(REPOSITORY), config.getoption("share"))
    return True if left_out else None


def pytest_configure(config: pytest.Config) -> None:
    """Let kafka-python 3.0 be imported, and stop the services when the run is interrupted or terminated.

    A run in the background begins with SIGINT ignored. Dagster makes SIGTERM what SIGINT is, so after one of its tests
    each server would have been started with both ignored, and would not have stopped.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("LD_PRELOAD", None)  # the allocator of `make test`; what a test starts has that of a user
    else:
        compile_loops()
    # It reads its schemas with a function that Python 3.11 and 3.12 deprecate.
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")
    # A client that is closed while it connects leaves its socket to the garbage collector, during any later test.
    config.addinivalue_line(
        "filterwarnings", r"ignore:unclosed <(socket|ssl).*(127\.0\.0\.1|'0\.0\.0\.0', 0):ResourceWarning"
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_report_header() -> str:
    """Say which share of the tests this run takes."""
    return f"TEST_DAY={DAY} takes the same share of the large tests, and of the files, again"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the slow files first if several processes share the tests; the order within a file is unchanged."""
    if hasattr(config, "workerinput"):
        ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Leave what was imported out of each garbage collection: a million objects that stay."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def local_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Return settings with the broker and the cache of the session."""
    bare = Settings(data_dir=tmp_path_factory.mktemp("services"))
    start(bare)
    try:
        yield with_local_endpoints(bare)
    finally:
        stop(bare)


@pytest.fixture
def settings(local_settings: Settings, tmp_path: Path) -> Settings:
    """Return settings with an empty data folder, a new topic name and a unique key prefix."""
    unique = uuid.uuid4().hex[:12]
    return local_settings.model_copy(
        update={
            "data_dir": tmp_path / "data",
            "kafka": local_settings.kafka.model_copy(update={"topic": f"events-{unique}", "group_id": f"g-{unique}"}),
            "redis": local_settings.redis.model_copy(update={"prefix": f"reputation-{unique}"}),
        }
    )


@pytest.fixture
def bitcoin_otc() -> Path:
    """Return the folder of the Bitcoin OTC data; skips the test if it is missing."""
    folder = SHARED_DATA / "bitcoin-otc"
    if not (folder / "ratings.csv").exists():
        pytest.skip(f"the Bitcoin OTC data is not at {folder}")
    return folder


@pytest.fixture
def stack_exchange() -> Path:
    """Return the file of the Stack Exchange data; skips the test if it is missing."""
    file = SHARED_DATA / "stackexchange-quantumcomputing-2018" / "events.csv"
    if not file.exists():
        pytest.skip(f"the Stack Exchange data are not at {file}")
    return file


@pytest.fixture
def project_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture only what this project logs, for tests that expect certain messages and no others.

    A library's thread of an earlier test may log at any time.
    """

    def is_ours(record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] in {"pipelines", "assets"}

    caplog.handler.addFilter(is_ours)
    yield caplog
    caplog.handler.removeFilter(is_ours)


@pytest.fixture
def broken_connections(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """For tests that stop the broker: kafka-python leaves sockets of refused connections to the garbage collector."""
    warnings.filterwarnings("ignore", "unclosed <(socket|ssl)", ResourceWarning)  # until the end of this test
    # Captured log records would keep the errors, with them the frames, and with them the sockets.
    caplog.set_level(logging.CRITICAL, "kafka")
    yield
    gc.collect()
