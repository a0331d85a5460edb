"""Which users a notifier knows to be erased: those of the lake in its settings, also while it runs."""

import shutil
from pathlib import Path

import pytest

from pipelines.erased_users import following_erasures
from pipelines.lake.tables import create_lake
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.notify.template import Event
from pipelines.settings import ContractSettings, Settings
from tests.services.waiting import wait_for

EVENT = Event("e-1", "ann", "Rated", "2026-01-01T00:00:00+00:00", {"rater": "bob", "rating": "1"})


def test_an_erasure_is_known_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One before the start, and one after it, though the lake is younger; the rest of an event stays (`erasable`)."""
    monkeypatch.setattr("pipelines.erased_users._READ_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path, contract=ContractSettings(personal_keys=("rater", "other")))
    with following_erasures(settings) as redact:
        assert redact(EVENT) is EVENT
        tombstones = open_tombstones(create_lake(settings.lake_root), settings)
        tombstones.add({tombstone(b"bob", tombstones.lake_id)})
        wait_for("the erasure", lambda: redact(EVENT) != EVENT)
        name = tombstones.pseudonym_of("bob")
        assert redact(EVENT) == EVENT._replace(metadata={"rater": name, "rating": "1"})
    with following_erasures(settings) as redact:
        assert redact(EVENT._replace(user_id="bob")) is None
        assert redact(EVENT._replace(user_id="\ud800"))


def test_another_lake_in_the_place_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles of the lake before look for files that are gone; who was erased there stays so."""
    monkeypatch.setattr("pipelines.erased_users._READ_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path)

    def erase(user_id: str) -> None:
        tombstones = open_tombstones(create_lake(settings.lake_root), settings)
        tombstones.add({tombstone(user_id.encode(), tombstones.lake_id)})

    erase("bob")
    with following_erasures(settings) as redact:
        shutil.rmtree(settings.lake_root)
        erase("eve")
        erase("ann")
        wait_for("the erasure", lambda: redact(EVENT) is None)
        assert redact(EVENT._replace(user_id="bob")) is None
