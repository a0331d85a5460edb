"""A question about an erased user is answered by the erasure: no other account is named, and no spelling doubted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.backfill import backfill
from pipelines.cli import explain as explain_command
from pipelines.cli import queries
from pipelines.cli.explain import explain
from pipelines.errors import KarmalakeError, UsageError
from pipelines.operate.erase import erase_without_documents
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping

_MAPPING = ColumnMapping("user", "t", "iso", "UserRated", None, (("rating", "n"), ("rater_id", "rater")))
_ROWS = [(user, f"2026-03-0{day}T12:00:00Z", 5, "eve") for user in ("ada-1", "ada-2") for day in (1, 2)]
_DAY = "2026-03-01"
_ERASED = r"^user 'ada-2' was erased: nothing is left to show$"
_QUESTIONS: list[Callable[[Warehouse], object]] = [
    lambda w: w.explain("ada-2"),
    lambda w: w.reputation("ada-2"),
    lambda w: w.events("ada-2"),
    lambda w: w.changes("ada-2"),
    lambda w: w.timeline("ada-2"),
    lambda w: w.shown_scores("ada-2"),
    lambda w: w.explain_change("ada-2", _DAY),
    lambda w: w.as_of(_DAY).explain("ada-2"),
]


def _nothing(*_: object) -> None:
    """Stand for a document store without this user."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a lake from which one of two users with like names was erased, with a warehouse."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("erased") / "data")
    backfill(settings, pl.DataFrame(_ROWS, ["user", "t", "n", "rater"], orient="row"), _MAPPING)
    erase_without_documents(settings, ["ada-2"])
    refresh_warehouse(settings)
    return settings


@pytest.mark.parametrize("ask", _QUESTIONS)
def test_python_says_that_a_user_was_erased(lake: Settings, ask: Callable[[Warehouse], object]) -> None:
    """Every question of the warehouse about one user."""
    with Warehouse(lake.warehouse_path) as warehouse, pytest.raises(UsageError, match=_ERASED):
        ask(warehouse)


@pytest.mark.parametrize("options", [{}, {"since": _DAY}, {"known_at": "2026-03-02"}])
def test_explain_says_that_a_user_was_erased(
    lake: Settings, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked; a user who never was is still a mistake, with the closest one."""
    monkeypatch.setattr(explain_command, "current_settings", lambda: lake)
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(lake.data_dir))
    with pytest.raises(UsageError, match=_ERASED):
        explain("ada-2", **options)
    with pytest.raises(KarmalakeError, match=r"check the spelling.*; did you mean 'ada-1'"):
        explain("ada-3")


def test_show_says_that_a_user_was_erased(lake: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As does the rank; the tombstones next to a lake that does not exist any more say it, too."""
    monkeypatch.setattr(queries, "current_settings", lambda: lake)
    for name in ("read_reputation", "published", "read_rank"):
        monkeypatch.setattr(f"pipelines.serving.read.{name}", _nothing)
    with pytest.raises(UsageError, match=_ERASED):
        queries.show("ada-2")
    with pytest.raises(UsageError, match=_ERASED):
        queries.leaderboard(user="ada-2")
    with pytest.raises(KarmalakeError, match="no document for 'ada-3'"):
        queries.show("ada-3")
    bare = lake.model_copy(update={"lake": lake.lake.model_copy(update={"uri": str(tmp_path / "none")})})
    monkeypatch.setattr(queries, "current_settings", lambda: bare)
    with pytest.raises(UsageError, match=_ERASED):
        queries.show("ada-2")
