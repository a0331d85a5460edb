"""Which users a notifier knows to be erased: those of the lake in its settings, also while it runs."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kafka.consumer.fetcher import ConsumerRecord

from pipelines.contract import event_pb2
from pipelines.erased_users import following_erasures
from pipelines.lake.tables import create_lake
from pipelines.lake.tombstone_file import append_tombstones
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.notify.dead_letters import without_names
from pipelines.notify.events import decode_events
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


def test_without_a_lake_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lake is on another machine, or is to be restored, the file says who was erased (`erasable`)."""
    monkeypatch.setattr("pipelines.erased_users._READ_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path)
    append_tombstones(settings.tombstones_file, {tombstone(b"ann", "another")})
    with following_erasures(settings) as redact:
        assert redact(EVENT) is None
        bob = EVENT._replace(user_id="bob")
        assert redact(bob) == bob
        append_tombstones(settings.tombstones_file, {tombstone(b"bob", "another")})
        wait_for("the erasure", lambda: redact(bob) is None)


@pytest.mark.parametrize("users", [["ann"], ["eve", "ann"]])
def test_another_lake_in_the_place_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: list[str]
) -> None:
    """Handles of the lake before look for files that are gone; who was erased there stays so.

    Also if it has as many versions, so that a handle sees nothing new.
    """
    monkeypatch.setattr("pipelines.erased_users._READ_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path)

    def erase(settings: Settings, user_id: str) -> None:
        tombstones = open_tombstones(create_lake(settings.lake_root), settings)
        tombstones.add({tombstone(user_id.encode(), tombstones.lake_id)})

    erase(settings, "bob")
    with following_erasures(settings) as redact:
        other = settings.model_copy(update={"data_dir": tmp_path / "other"})
        for user_id in users:
            erase(other, user_id)
        Path(settings.lake_root).rename(tmp_path / "before")
        Path(other.lake_root).rename(settings.lake_root)
        wait_for("the erasure", lambda: redact(EVENT) is None)
        assert redact(EVENT._replace(user_id="bob")) is None


_IN_JSON = b"""{"event_id": "e-1", "user_id": "ann", "action_type": "Rated", "timestamp": "2026-01-01T00:00:00Z",
"metadata": {"rater": "%b", "by": "bob"}}"""
_MESSAGE = event_pb2.Event(event_id="e-1", user_id="ann", action_type="Rated", timestamp=Timestamp(seconds=1767225600))  # type: ignore[attr-defined]
_MESSAGE.metadata["rater"] = "bob"


@pytest.mark.parametrize(("form", "value"), [("json", _IN_JSON % b"bob"), ("protobuf", _MESSAGE.SerializeToString())])
def test_a_dead_letter_names_no_erased_rater(form: Any, value: bytes) -> None:
    """What is not delivered has the pseudonym, as what is; a value that cannot be written again is left out."""
    contract = ContractSettings(format=form)
    record = ConsumerRecord("t", 0, 0, 7, 1767225600000, 0, b"ann", value, [], None, 0, 0, 0)
    [(_, event)] = decode_events([record], contract).events
    assert without_names(record, event, event, contract) is record
    redacted = event._replace(metadata={**event.metadata, "rater": "erased-1"})
    found = without_names(record, event, redacted, contract)
    assert form != "json" or found.value == _IN_JSON % b"erased-1"
    assert decode_events([found], contract).events == ((found, redacted),)
    assert without_names(record._replace(value=value[:-1]), event, redacted, contract).value == b""
