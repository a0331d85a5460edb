"""Merging and renaming accounts by an operator: on the record, previewed, refused where it would be wrong."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from pipelines.backfill import backfill
from pipelines.cli import main
from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.tables import open_lake
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.merge_users import merge_user, preview_merge, preview_rename, rename_user
from pipelines.operate.operator_events import adjust, retract
from pipelines.operate.user_data import user_data
from pipelines.operate.verify import verify_erased
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.read import read_reputation
from pipelines.settings import ContractSettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.draining import query

_WHY = "one person, ticket 95"
_MAPPING = ColumnMapping("user", "t", "iso", None, "action", (("rating", "rating"), ("rater_id", "rater")), "id")
_ROWS = [
    ("a1", "ada", "UserRated", 1, "5", "max"),
    ("b1", "bo", "UserRated", 2, "3", "ada"),
    ("c1", "cem", "UserRated", 3, "2", "bo"),
    ("g1", "gone", "UserRated", 4, "1", None),
]


def load(settings: Settings) -> Settings:
    """Load the events of `_ROWS`, of which the user `gone` is erased."""
    rows = [(*row[:3], f"2026-03-0{row[3]}T12:00:00Z", *row[4:]) for row in _ROWS]
    backfill(settings, pl.DataFrame(rows, ["id", "user", "action", "t", "rating", "rater"], orient="row"), _MAPPING)
    return settings


@pytest.fixture
def lake(tmp_path: Path) -> Settings:
    """Return settings without a bus, with a lake of these events."""
    return load(Settings(data_dir=tmp_path / "data", contract=ContractSettings(personal_keys=("rater_id",))))


def scores(settings: Settings) -> dict[str, int]:
    refresh_warehouse(settings)
    with Warehouse(settings.warehouse_path) as warehouse:
        return dict(warehouse.reputation().select("user_id", "all_time_score").rows())


@pytest.mark.slow
def test_a_merge_is_previewed_and_recorded_once(lake: Settings) -> None:
    """Events keep their user_ids, and count for the remaining account; a repeated command does nothing."""
    found = preview_merge(lake, "ada", "bo", _WHY, "sue")
    assert [(each.user_id, each.events, each.score) for each in (*found.before, found.after)] == [
        ("ada", 1, 5),
        ("bo", 1, 3),
        ("bo", 2, 8),
    ]
    assert (found.mentions, found.is_recorded, scores(lake)["ada"]) == (1, False, 5)
    assert not merge_user(lake, "ada", "bo", _WHY, "sue").is_recorded
    assert merge_user(lake, "ada", "bo", "another reason").is_recorded
    recorded = "SELECT user_id, merged_into, kind, operator, why, personal_keys FROM merged_users"
    assert query(lake, recorded) == [("ada", "bo", "merge", "sue", _WHY, ["rater_id"])]
    assert query(lake, "SELECT user_id FROM events WHERE event_id = 'a1'") == [("ada",)]
    assert scores(lake) == {"bo": 8, "cem": 2, "gone": 1}


@pytest.mark.slow
def test_chains_and_renames(lake: Settings) -> None:
    """A merged account is merged or renamed further; a rename is taken back by another one."""
    merge_user(lake, "ada", "bo", _WHY)
    merge_user(lake, "bo", "cem", _WHY)
    assert scores(lake) == {"cem": 10, "gone": 1}
    renamed = rename_user(lake, "cem", "zoe", "new name")
    accounts = [(each.user_id, each.events) for each in (*renamed.before, renamed.after)]
    assert accounts == [("cem", 3), ("zoe", 0), ("zoe", 3)]
    assert rename_user(lake, "cem", "zoe", "new name").is_recorded
    assert scores(lake) == {"zoe": 10, "gone": 1}
    rename_user(lake, "zoe", "cem", "old name again")
    assert not rename_user(lake, "cem", "zoe", "new name again").is_recorded
    assert scores(lake) == {"zoe": 10, "gone": 1}


@pytest.mark.slow
def test_mistakes_are_refused(lake: Settings) -> None:
    """Each mistake has a sentence, and nothing is recorded."""
    erase_without_documents(lake, ["gone"])
    merge_user(lake, "ada", "bo", _WHY)
    refused = [
        (preview_merge, "ada", "cem", UsageError, "'ada' is merged into 'bo' already: name that user_id"),
        (preview_merge, "cem", "ada", UsageError, "'ada' is merged into 'bo': name that user_id"),
        (preview_merge, "bo", "ada", UsageError, "would be a cycle: `karmalake user rename`"),
        (preview_merge, "bo", "bo", UsageError, "'bo' is named twice"),
        (preview_merge, "bo", "zed", KarmalakeError, "no event of user 'zed'.*`karmalake user rename`"),
        (preview_merge, "zed", "bo", KarmalakeError, "no event of user 'zed'"),
        (preview_merge, "gone", "bo", UsageError, "'gone' was erased"),
        (preview_merge, "bo", "gone", UsageError, "'gone' was erased"),
        (preview_rename, "bo", "cem", UsageError, "'cem' is another user: `karmalake user merge`"),
        (preview_rename, "bo", "gone", UsageError, "'gone' was erased"),
        (preview_rename, "bo", "x" * 257, UsageError, "longer than contract.max_user_id_bytes"),
    ]
    for call, old, new, error, sentence in refused:
        with pytest.raises(error, match=sentence):
            call(lake, old, new, _WHY)
    for why in ("", " ", "\udcff"):
        with pytest.raises(UsageError, match="reason"):
            merge_user(lake, "bo", "cem", why)
    assert query(lake, "SELECT count(*) FROM merged_users") == [(1,)]


@pytest.mark.slow
def test_other_commands_know_all_names_of_a_person(lake: Settings) -> None:
    """An adjustment counts once under any of them, a retraction finds its event, an export has everything."""
    adjust(lake, "ada", 5, "waited")
    merge_user(lake, "ada", "bo", _WHY)
    for name in ("ada", "bo"):
        assert adjust(lake, name, 5, "waited")[0].is_recorded
    done, _ = adjust(lake, "ada", 7, "waited again")
    assert (done.user_id, done.score_before, done.score_after) == ("bo", 13, 20)
    retracted, _ = retract(lake, "a1", "fake")
    assert (retracted.reason, retracted.score_before, retracted.score_after) == ("retraction", 20, 15)
    assert scores(lake) == {"bo": 15, "cem": 2, "gone": 1}
    of_ada, of_bo = user_data(lake, "ada"), user_data(lake, "bo")
    assert {name: rows.num_rows for name, rows in of_ada.items()} == {name: len(rows) for name, rows in of_bo.items()}
    assert (len(of_ada["events"]), len(of_ada["events_of_others"]), len(of_ada["merged_users"])) == (5, 1, 1)


@pytest.mark.slow
def test_an_erasure_reaches_all_names_of_a_person(lake: Settings) -> None:
    """And the merges themselves; later merges of these user_ids are refused (`erasable`)."""
    merge_user(lake, "ada", "bo", _WHY)
    scores(lake)
    done = erase_without_documents(lake, ["ada"])
    assert (done.rows.events, done.rows.merged_users) == (2, 1)
    assert query(lake, "SELECT count(*) FROM merged_users") == [(0,)]
    assert scores(lake) == {"cem": 2, "gone": 1}
    assert verify_erased(lake).passed
    with pytest.raises(UsageError, match="'bo' was erased"):
        merge_user(lake, "cem", "bo", _WHY)
    assert b"ada" not in b"".join(path.read_bytes() for path in live_files(lake))


def live_files(settings: Settings) -> list[Path]:
    return [Path(uri) for uri in open_lake(settings.lake_root).table("merged_users").file_uris()]


def test_the_commands(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The document of the former user_id is deleted, and `show` and `explain` name the current one (`fresh`)."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    load(settings)
    assert settings.redis.url is not None
    for name, value in {
        "DATA_DIR": str(settings.data_dir),
        "REDIS_URL": settings.redis.url.get_secret_value(),
        "REDIS_PREFIX": settings.redis.prefix,
        "CONTRACT_PERSONAL_KEYS": "rater_id, reporter",
    }.items():
        monkeypatch.setenv(f"KARMALAKE_{name}", value)
    scores(settings)
    publish_warehouse(settings)
    assert "nothing was changed" in run("user", "merge", "ada", "bo", "--why", _WHY, "--dry-run")
    printed = run("user", "merge", "ada", "bo", "--why", _WHY, "--operator", "sue")
    assert "bo: 2 events, score 8" in printed
    assert "1 event in rater_id, reporter" in printed
    assert "recorded, by sue" in printed
    scores(settings)
    assert publish_warehouse(settings).deleted == 1
    served = read_reputation("bo", settings)
    assert served is not None
    assert (read_reputation("ada", settings), served["reputation_all_time"]["score"]) == (None, 8)
    assert "this account is merged into 'bo'" in run("show", "ada")
    explained = run("explain", "ada")
    assert "bo is the current user_id of ada" in explained
    assert f"ada merged into bo by sue: {_WHY}" in explained
    assert "bo: 2 contributions add up to a score of 8" in explained
    assert "earlier command recorded this" in run("user", "merge", "ada", "bo", "--why", _WHY)
    run("user", "export", "ada", "--to", str(tmp_path / "copy"))
    assert json.loads((tmp_path / "copy" / "summary.json").read_text())["rows"]["events"] == 2
    assert "accounts of the same persons: bo" in run("erase", "ada", "--yes")
    assert read_reputation("bo", settings) is None
