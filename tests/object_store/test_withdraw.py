"""A load is taken back from a lake on an object store."""

from pathlib import Path

import pytest

from pipelines.backfill import backfill
from pipelines.operate.loads import list_loads, withdraw_loads
from pipelines.operate.verify import verify_index
from pipelines.settings import LakeSettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.draining import assert_verified, query


@pytest.mark.slow
def test_a_wrong_load_is_taken_back_and_loaded_again(uri: str, tmp_path: Path) -> None:
    """As on disk: its events leave by one commit, the others stay, and the same rows are loaded again (`atomic`)."""
    settings = Settings(data_dir=tmp_path / "data", lake=LakeSettings(uri=uri))
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, first in zip(paths, (0, 50), strict=True):
        rows = (f"g{n % 3},t{n % 5},2024-01-{1 + n % 9:02},{n}\n" for n in range(first, first + 20))
        path.write_text(f"giver,taker,t,n\n{''.join(rows)}")
    wrong, right = (ColumnMapping(user, "t", "iso", "UserRated") for user in ("giver", "taker"))
    backfill(settings, paths[0], wrong)
    backfill(settings, paths[1], right)
    (first, _) = [each["load"] for each in list_loads(settings)]
    done = withdraw_loads(settings, [first], "the users were the givers")
    assert done.record is not None
    assert query(settings, "SELECT count(*) FROM events WHERE starts_with(user_id, 'g')") == [(0,)]
    assert withdraw_loads(settings, [first], "twice").record is None
    backfill(settings, paths[0], right)
    assert query(settings, "SELECT user_id, count(*) FROM events GROUP BY ALL ORDER BY ALL") == [
        (f"t{n}", 8) for n in range(5)
    ]
    assert_verified(settings)
    assert verify_index(settings).passed
