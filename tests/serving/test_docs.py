"""docs/redis.md matches the code: its document, its fields and its Python examples."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from pipelines.reputation.derive import derive
from pipelines.reputation.documents import documents
from pipelines.reputation.policy_file import load_policy
from pipelines.serving import keys, read
from pipelines.serving import publication_state as bookkeeping
from pipelines.settings import RedisSettings, Settings
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of
from tests.serving.conftest import always, publish, stamp

PAGE = (REPOSITORY / "docs" / "redis.md").read_text(encoding="utf-8")
ANN = [
    Event("e1", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"}),
    Event("e2", "ann", "DriverRated", NOW - 3 * DAY + 1, {"rating": "2"}),
    Event("e3", "ann", "TransactionCompleted", NOW - 40 * DAY),
]


def blocks(language: str, count: int) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == count, f"docs/redis.md has {len(found)} blocks of {language}"
    return found


@pytest.fixture
def ann(tmp_path: Path) -> pl.DataFrame:
    path = tmp_path / "warehouse.duckdb"
    derive(snapshot_of(tmp_path / "lake", ANN, version=1), load_policy("default"), AS_OF, path)
    return documents(path, None, ("all_time",))


def test_the_documented_document_is_real(ann: pl.DataFrame) -> None:
    """The example is the document of three events of ann under the default policy, members in the same order."""
    served, shown = json.loads(ann["document"].item()), json.loads(*blocks("json", 1))
    assert list(served.items()) == list(shown.items())


def test_the_python_runs(
    ann: pl.DataFrame,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The examples read the score, the rank and the stamp of the publication."""
    assert settings.redis.url is not None
    redis = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    publish(always(ann), stamp(1, 1_709_251_200_000_000), redis, tmp_path / "state")
    monkeypatch.setenv("KARMALAKE_REDIS_URL", settings.redis.url.get_secret_value())
    monkeypatch.setenv("KARMALAKE_REDIS_PREFIX", settings.redis.prefix)
    read._default_settings.cache_clear()
    try:
        for source in blocks("python", 2):
            exec(compile(source, "docs/redis.md", "exec"), {})  # noqa: S102 # our own page
    finally:
        read._default_settings.cache_clear()
    leader, rank, score, publication = capsys.readouterr().out.splitlines()
    assert (leader, rank, score) == ("1 ann 6.0", "1", "5")
    assert publication.startswith("2024-03-01 00:00:00+00:00 default@1 1 ")


def test_every_field_and_setting_is_described() -> None:
    """Each field of the hash is on the page and in the docstring of keys.py; each Redis setting is on the page."""
    for field in (*bookkeeping.PUBLISHED, *bookkeeping.ANNOUNCEMENT, *bookkeeping.REGISTRATION):
        assert f"`{field}`" in PAGE
        assert field in (keys.__doc__ or "")
    for setting in RedisSettings.model_fields:
        assert f"`KARMALAKE_REDIS_{setting.upper()}`" in PAGE
