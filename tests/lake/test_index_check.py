"""`verify` checks the index: a missing id would count an event twice, an extra one would lose an event (`once`)."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.lake import runs
from pipelines.lake.index import DedupIndex
from pipelines.operate.verify import verify_index
from pipelines.settings import Settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.lake.builders import make_events


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake with two batches and an index."""
    bus = with_ingest(settings)
    for start in (0, 20):
        send(bus, valid_records(range(start, start + 20)))
        drain_all(bus)
    return bus


def test_a_correct_index_passes(bus: Settings) -> None:
    """All ids are compared, and no file of the index changes."""
    before = {path: path.stat().st_mtime_ns for path in _files(bus)}
    check = verify_index(bus)
    assert (check.passed, check.evidence) == (True, "40 ids compared")
    assert {path: path.stat().st_mtime_ns for path in _files(bus)} == before


@pytest.mark.parametrize(
    ("extra", "evidence"), [(range(1000, 1003), "0 missing, 3 surplus"), (None, "20 missing, 0 surplus")]
)
def test_a_wrong_index_is_reported(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, extra: range | None, evidence: str
) -> None:
    """Extra and missing ids are counted, the evidence says what to do, and doing it fixes the index."""
    real = DedupIndex.extend

    def extend_wrongly(self: DedupIndex, new: object, version: int) -> None:
        digests = self.classify(_events(extra)).new if extra else self.classify(_events(range(0))).new
        if extra:
            real(self, digests, self.version)
            real(self, new, version)  # type: ignore[arg-type]
        else:
            real(self, digests, version)

    send(bus, valid_records(range(60, 80)))
    with monkeypatch.context() as patch:
        patch.setattr(DedupIndex, "extend", extend_wrongly)
        drain_all(bus)
    check = verify_index(bus)
    assert check.passed is False
    assert f"slot-0: {evidence}: stop ingest, delete {bus.index_dir}" in check.evidence
    for path in _files(bus):
        path.unlink()
    drain_all(bus)
    assert verify_index(bus).evidence == "60 ids compared"


def test_filters_are_checked_with_their_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison reads the runs through their filters, as ingest does; it rebuilds an index with a damaged one."""
    monkeypatch.setattr(runs, "_FILTER_ROWS", 1)
    bus = with_ingest(settings)
    send(bus, valid_records(range(20)))
    drain_all(bus)
    [filtered] = (bus.index_dir / "slot-0").glob("*.filter")
    assert verify_index(bus).evidence == "20 ids compared"
    filtered.write_bytes(bytes(8))
    assert verify_index(bus).passed is None


def test_an_index_of_another_history_is_skipped(bus: Settings) -> None:
    """An index that the next start rebuilds neither passes nor fails."""
    manifest = bus.index_dir / "slot-0" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"entry": "', '"entry": "0'))
    assert verify_index(bus).passed is None


def _files(bus: Settings) -> list[Path]:
    return [path for path in (bus.index_dir / "slot-0").iterdir() if path.name != "lock"]


def _events(numbers: range) -> pa.Table:
    return make_events([f"none-{n}" for n in numbers])
