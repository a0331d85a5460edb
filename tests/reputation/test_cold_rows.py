"""Histories and rows by user that memory does not hold: no read-ahead, and many pages at once."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.reputation import chunks, segment
from pipelines.reputation import histories as histories_module
from pipelines.reputation.base import base_folder
from pipelines.reputation.derive import open_draft
from pipelines.reputation.histories import histories_folder
from pipelines.reputation.segment import BEFORE_ALL, NO_LINKS, ROWS, Segment, merge, new_segment
from tests.reputation.history import NOW, Event, at
from tests.reputation.policies import policy
from tests.reputation.test_incremental import lake

_MAPS = Path("/proc/self/smaps")
_linux = pytest.mark.skipif(not _MAPS.exists(), reason="only Linux tells the advice of a mapping")
_COMMITS = [[Event(f"{n}-{m}", f"user-{m}", "Done", NOW - m, {}) for m in range(40)] for n in range(3)]


def _advice(file: Path) -> set[str]:
    """Return the advice of the mappings of a file in this process: `rr` for random, `sr` for in order, or none."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", _MAPS.read_text(), flags=re.MULTILINE)
    of_file = [mapping for mapping in mappings if f" {file}\n" in mapping]
    return {"".join({"rr", "sr"} & set(mapping.partition("VmFlags:")[2].split())) for mapping in of_file}


def _mapped(folder: Path) -> dict[str, set[str]]:
    """Return the advice of the mapped files of a folder by their suffix."""
    found = defaultdict[str, set[str]](set)
    for file in folder.iterdir():
        found[file.suffix] |= _advice(file)
    return {suffix: advice for suffix, advice in found.items() if advice}


@pytest.mark.slow
@_linux
def test_nothing_beside_the_rows_of_a_user_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file by user that a refresh maps is without read-ahead, new, merged or opened again."""
    monkeypatch.setattr(histories_module, "_MEMORY_ROWS", 0)
    path = tmp_path / "data" / "warehouse.duckdb"
    for _ in range(2):
        with open_draft(path) as draft:
            for commits in (1, 2, 3):
                draft.refresh(lake(tmp_path / "lake", _COMMITS[:commits]), policy(), at(NOW))
            of_histories, of_base = _mapped(histories_folder(path)), _mapped(base_folder(path))
            draft.publish()
        assert of_histories == {".events": {"rr"}, ".users": {"rr"}, ".times": {"rr"}}
        assert (of_base[".rows"], of_base[".users"]) == ({"rr"}, {"rr"})


@_linux
def test_a_merge_reads_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads whole files, where read-ahead helps."""
    rows = pa.RecordBatch.from_pylist([{"user_hash": 1, "user_id": "ann", "t": 1, "version": 1, "metadata": {}}], ROWS)
    older, newer = (new_segment(tmp_path / name, [rows], lambda _: NO_LINKS, BEFORE_ALL) for name in ("1", "2"))
    advice: list[set[str]] = []
    merge_rows = segment._merged_rows

    def spied(*parts: Segment) -> Iterator[pa.RecordBatch]:
        advice.extend(_advice(file) for part in parts for file in part.files())
        return merge_rows(*parts)

    monkeypatch.setattr(segment, "_merged_rows", spied)
    assert len(merge(tmp_path / "3", older, newer)) == 2
    assert advice == [{"rr", "sr"}] * 6  # as look-ups have them, and once more


def test_rows_of_many_chunks() -> None:
    """Rows that many threads read are those that one reads, in their order."""
    numbers = pa.table({"n": pa.array(range(1_000)), "half": pa.array(n / 2 for n in range(1_000))})
    stored = chunks.store_chunks(None, numbers.schema, numbers.to_batches(5))
    wanted = np.arange(0, 1_000, 3)
    assert len(stored.batches) > chunks._FEW_CHUNKS
    assert stored.take(wanted) == numbers.take(pa.array(wanted))
    assert stored.take(wanted, ["half"]) == numbers.select(["half"]).take(pa.array(wanted))
