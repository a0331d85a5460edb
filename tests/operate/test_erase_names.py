"""Pseudonyms: an erased person's user_ids at personal keys of other people's events (`erasable`)."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipelines.backfill import backfill
from pipelines.contract.names import replace_in_value
from pipelines.contract.schema import REJECTED
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import Record
from pipelines.lake import removal
from pipelines.lake.commit import CommitRecord
from pipelines.lake.erasure import ErasureCounts
from pipelines.lake.mentions import Mentions
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase_without_documents, preview
from pipelines.operate.erase_limits import list_unreached
from pipelines.operate.merge_users import merge_user
from pipelines.operate.replay import compare, fresh, open_replay, replay
from pipelines.operate.verify import verify_erased, verify_index
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import ContractSettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.contract.encoding import avro_schema, framed, to_avro
from tests.draining import NOON, assert_verified, drain_all, query, send, with_ingest
from tests.operate.test_erase import KilledError, killing
from tests.operate.test_erase_reach import value
from tests.reputation.test_incremental import rows
from tests.reputation.test_refresh_after_erasure import holding

_MAPPING = ColumnMapping("user", "t", "iso", None, "action", (("rating", "rating"), ("rater_id", "rater")), "id")
_RATERS = ("rider-one", "rider-two", "rider-one-old", "rider-one", "rider-three", "rider-two")
_FEEDBACK = [
    *((f"e{n}", f"driver-{n % 2}", "ReviewPosted", n % 3, str(n % 5 + 1), rater) for n, rater in enumerate(_RATERS)),
    ("own", "rider-one", "ReviewPosted", 1, "5", "driver-0"),
    ("old", "rider-one-old", "ReviewPosted", 1, "4", "driver-1"),
    ("none", "driver-1", "ReviewPosted", 1, "4", None),
]
_BY_RATER = "SELECT metadata['rater_id'] FROM events WHERE user_id LIKE 'driver%' ORDER BY event_id"


def _load(settings: Settings, rows: list[tuple[Any, ...]]) -> Counter[str]:
    """Load rows as a file of its own; return the fates of its events."""
    data = [(*row[:3], f"2026-03-0{row[3] + 2}T12:00:00Z", *row[4:]) for row in rows]
    fates = Counter[str]()

    def count(record: CommitRecord) -> None:
        fates.update({name: record.total(name) for name in ("accepted", "duplicates", "conflicts", "erased")})

    frame = pl.DataFrame(data, ["id", "user", "action", "t", "rating", "rater"], orient="row")
    backfill(settings, frame, _MAPPING, count)
    return +fates


def _settings(folder: Path, *personal_keys: str) -> Settings:
    settings = Settings(data_dir=folder, contract=ContractSettings(personal_keys=personal_keys))
    reputation = settings.reputation.model_copy(update={"policy": "marketplace-feedback"})
    return settings.model_copy(update={"reputation": reputation})


def _scores(settings: Settings) -> dict[str, Any]:
    refresh_warehouse(settings)
    with Warehouse(settings.warehouse_path) as warehouse:
        return {user: rest for user, *rest in warehouse.reputation().rows() if user.startswith("driver")}


@pytest.fixture
def lake(tmp_path: Path) -> Settings:
    """Return settings of a lake without a bus, where two user_ids of one rater are merged."""
    settings = _settings(tmp_path / "data", "rater_id")
    _load(settings, _FEEDBACK)
    merge_user(settings, "rider-one-old", "rider-one", "a new phone")
    return settings


def _assert_same_as_rebuilt(settings: Settings) -> None:
    refreshed = rows(settings.warehouse_path)
    settings.warehouse_path.unlink()
    refresh_warehouse(settings)
    assert refreshed == rows(settings.warehouse_path)


@pytest.mark.slow
def test_one_pseudonym_stands_for_the_person(lake: Settings) -> None:
    """Ratings count for the same raters as before, no file holds a user_id, and scores of others do not change."""
    before = _scores(lake)
    planned = preview(lake, ["rider-one"])
    assert verify_erased(lake).evidence == ""
    assert erase_without_documents(lake, ["rider-one"]).rows == planned == ErasureCounts(2, 0, 0, 1, 3)
    raters = [rater for (rater,) in query(lake, _BY_RATER)]
    (name,) = {raters[0], raters[2], raters[3]}
    assert name.startswith("erased-")
    assert raters == [name, "rider-two", name, name, "rider-three", "rider-two", None]
    assert _scores(lake) == before
    _assert_same_as_rebuilt(lake)
    vacuum(open_lake(lake.lake_root), 0)
    assert holding(lake.data_dir, ["rider-one"]) == {}
    assert all(check.passed is not False for check in (verify_erased(lake), verify_index(lake)))
    assert erase_without_documents(lake, ["rider-one"]).rows.named_by_others == 0


@pytest.mark.slow
def test_a_policy_that_names_the_person(lake: Settings, tmp_path: Path) -> None:
    """What an erasure does not reach names the pseudonym to write instead; with it, scores of others do not change."""
    file = tmp_path / "trusting.toml"
    settings = lake.model_copy(update={"reputation": lake.reputation.model_copy(update={"policy": str(file)})})
    rules = (
        'name = "trusting"\nversion = "1"\n[raters]\nweight = "trust"\nseeds = ["rider-one"]\nminimum = 0.1\n'
        '[actions.ReviewPosted]\nrating = { from = "rating", minimum = 1, maximum = 5 }\n'
    )
    file.write_text(rules)
    before = _scores(settings)
    activate(open_lake(lake.lake_root), load_policy(str(file)))
    erase_without_documents(settings, ["rider-one"])
    (named,) = [line for line in list_unreached(settings, Mentions()) if "raters.seeds" in line]
    (pseudonym,) = re.findall(r"erased-[0-9a-f]{32}", named)
    assert "1 note of operators" in verify_erased(settings).evidence
    file.write_text(rules.replace("rider-one", pseudonym).replace('version = "1"', 'version = "2"'))
    activate(open_lake(lake.lake_root), load_policy(str(file)))
    assert _scores(settings) == before
    assert not [line for line in list_unreached(settings, Mentions()) if "raters.seeds" in line]


@pytest.mark.slow
def test_later_events_get_the_same_pseudonym(lake: Settings) -> None:
    """The same events read again are duplicates, another payload is a conflict, and a new event names the pseudonym.

    What an operator wrote stays, and is counted.
    """
    merge_user(lake, "driver-1", "driver-0", "says rider-one")
    erase_without_documents(lake, ["rider-one"])
    late = [
        ("late", "driver-0", "ReviewPosted", 3, "1", "rider-one-old"),
        ("e1", "driver-1", "ReviewPosted", 1, "2", "rider-one"),
    ]
    assert _load(lake, [*_FEEDBACK, *late]) == {"accepted": 1, "duplicates": 7, "conflicts": 1, "erased": 2}
    names = {name for (name,) in query(lake, _BY_RATER) if name and name.startswith("erased-")}
    assert len(names) == 1
    assert query(lake, "SELECT metadata['rater_id'] FROM conflicts") == [(*names,)]
    assert verify_index(lake).passed
    check = verify_erased(lake)
    assert (check.passed, "of other users and 1 note of operators, which" in check.evidence) == (True, True)


def test_an_index_that_is_behind_or_lost_has_the_replaced_events(lake: Settings) -> None:
    """Whether it follows the erasure, a compaction after it, or is rebuilt, the same events are duplicates."""
    erase_without_documents(lake, ["rider-three"])
    for folder in lake.index_dir.glob("slot-*"):
        (folder / "manifest.json").unlink()
    assert _load(lake, [*_FEEDBACK, ("x1", "driver-0", "Other", 1, "1", None)])["duplicates"] == len(_FEEDBACK)
    compact(open_lake(lake.lake_root), 2)
    erase_without_documents(lake, ["rider-two"])
    assert _load(lake, [*_FEEDBACK, ("x2", "driver-0", "Other", 1, "1", None)])["duplicates"] == len(_FEEDBACK)


@pytest.mark.slow
def test_a_key_that_becomes_personal_later(tmp_path: Path) -> None:
    """Verification reports names of users who were erased before; the next erasure replaces them, also in caches."""
    before, now = _settings(tmp_path), _settings(tmp_path, "rater_id")
    _load(before, _FEEDBACK)
    erase_without_documents(before, ["rider-one", "rider-one-old"])
    refresh_warehouse(before)
    assert "rider-one" in {rater for (rater,) in query(before, _BY_RATER)}
    assert "'named_by_others': 3" in verify_erased(now).evidence
    assert erase_without_documents(now, ["rider-one"]).rows.named_by_others == 3
    assert verify_erased(now).passed
    _assert_same_as_rebuilt(now)
    vacuum(open_lake(now.lake_root), 0)
    assert holding(now.data_dir, ["rider-one"]) == {}


@pytest.mark.slow
def test_a_kill_before_the_names_are_replaced(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill at each commit the lake reconciles, and the next erasure replaces the names (`atomic`)."""
    for when in ("before", "after"):
        with monkeypatch.context() as patch:
            patch.setattr(removal, "replace_files", killing(removal.replace_files, 1, when))
            with pytest.raises(KilledError):
                erase_without_documents(lake, ["rider-one"])
        assert verify_erased(lake).passed is False
        assert_verified(lake)
    erase_without_documents(lake, ["zed"])
    assert verify_erased(lake).passed
    assert len({rater for (rater,) in query(lake, _BY_RATER)}) == 4


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"rater_id":"jane-doe"}',
        b'{"a":"\\"rater_id","rater_id" : "jane\\u002ddoe"}',
        b'{"rater\\u005fid":"jane-doe"}',
    ],
)
def test_a_name_in_json_is_replaced_however_it_is_written(metadata: bytes) -> None:
    """Escapes and numbers of any length: a dead letter cannot stop ingest or an erasure, and every other byte stays."""
    before = b'{"skipped":%s,"metadata":%s}' % (b"9" * 5_000, metadata)
    written = re.compile(rb'"jane.*?doe"')
    found = replace_in_value(before, "json", ["rater_id"], {"jane-doe": "erased-1"}.get)
    assert found == written.sub(b'"erased-1"', before) != before
    assert replace_in_value(before, "json", ["other"], {"jane-doe": "erased-1"}.get) == before


def test_a_dead_letter_in_avro_that_names_the_person_is_removed(tmp_path: Path) -> None:
    """It cannot be written again: it goes as an undecodable one does; others, and names elsewhere, stay."""
    (tmp_path / "7.avsc").write_text(avro_schema(1))
    contract = ContractSettings(format="avro", schemas_dir=tmp_path, personal_keys=("rater_id",))
    settings = Settings(data_dir=tmp_path / "data", contract=contract)
    tombstones = open_tombstones(create_lake(settings.lake_root), settings)
    tombstones.assume({tombstone(b"jane-doe", tombstones.lake_id)})
    event = {"event_id": "e", "user_id": "d", "action_type": "A", "timestamp": NOON}
    named = ({"rater_id": "jane-doe"}, {"rater_id": "bob"}, {"comment": "jane-doe"})
    rows = [{"value": framed(7, to_avro(avro_schema(1), event | {"metadata": each})), "headers": []} for each in named]
    letters = pa.Table.from_pylist(rows, REJECTED)
    assert tombstones.match_dead_letters(letters).to_pylist() == [True, False, False]
    assert tombstones.replace_in_dead_letters(letters).count == 0


def test_names_on_a_topic(settings: Settings, tmp_path: Path) -> None:
    """Conflicts and dead letters name the pseudonym, also of a batch read before; audit and replay agree."""
    bus = with_ingest(settings, max_dead_letter_run=1_000, max_dead_letter_share=1).model_copy(
        update={"contract": settings.contract.model_copy(update={"personal_keys": ("rater_id",)})}
    )
    named: list[tuple[str, str]] = [("rating", "1"), ("rater_id", "jane-doe")]
    records = [
        Record(b"d", value("r-1", "d", metadata=named)),
        Record(b"d", value("r-1", "d", metadata=[("rating", "2"), ("rater_id", "jane-doe")])),
        Record(b"d", value("r-2", "d", metadata=named, event_time=NOON.replace(year=1999))),
        Record(b"d", b"\xff jane-doe"),
        Record(b"d", value("r-3", "d", metadata=[("comment", "jane-doe was cold")])),
    ]
    send(bus, records)
    drain_all(bus)
    send(bus, [*records[:2], Record(b"d", value("r-4", "d", metadata=named)), records[2]])
    with open_ingest(bus) as ingest:
        done = erase_without_documents(bus, ["jane-doe"]).rows
        assert (done.named_by_others, done.dead_letters) == (3, 1)
        read = list[CommitRecord]()
        drain(ingest, read.append)
    assert [sum(record.total(name) for record in read) for name in ("accepted", "duplicates", "conflicts")] == [1, 1, 1]
    named_now = "SELECT metadata['rater_id'] FROM events UNION ALL SELECT metadata['rater_id'] FROM conflicts"
    assert "jane" not in str(query(bus, named_now))
    letters = "SELECT count(*) FILTER (contains(hex(\"value\"), hex('erased-'))), count(*) FROM dead_letters"
    assert query(bus, letters) == [(2, 2)]
    check = verify_erased(bus)
    assert check.passed, check.evidence
    assert "metadata comment 1" in check.evidence
    assert_verified(bus)
    found = audit(bus)
    assert (found.lost, found.duplicated) == (0, 0)
    beside = fresh(bus, tmp_path / "beside")
    with open_replay(bus, None, None) as replayed:
        replay(replayed, beside, lambda _: None)
        compared = compare(bus, beside, replayed)
    assert (compared.different, compared.missing, compared.extra) == (0, 0, 0)
