"""Changes of the feed as values: every format says the same, in the same bytes each time, and so does every reader."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.registry import Format
from pipelines.contract.score_change import decode_change, encode_changes, require_packages
from pipelines.errors import ConfigurationError
from pipelines.lake.tables import SCORE_CHANGES
from tests.conftest import REPOSITORY
from tests.score_changes import FORMATS, decoded, members

_CONTRACT = REPOSITORY / "pipelines" / "contract"
_NOON = datetime(2026, 11, 27, 12, 0, 0, 7, UTC)
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
_ROWS = st.none() | st.dictionaries(
    _TEXTS, st.none() | _TEXTS | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
).map(json.dumps)
_NUMBERS = st.integers(0, 2**63 - 1)
_CAUSES = st.fixed_dictionaries({"cause": _TEXTS, "event_id": st.none() | _TEXTS})
_CHANGES = st.fixed_dictionaries(
    {
        "number": st.integers(1, 2**63 - 1),
        "user_id": _TEXTS.filter(bool),
        "before": _ROWS,
        "after": _ROWS,
        "policy": _TEXTS,
        "lake_version": _NUMBERS,
        "as_of": st.datetimes(datetime(1900, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001 - above
        "recorded": st.just(_NOON),
        "causes": st.lists(_CAUSES, max_size=20),
        "more_causes": _NUMBERS,
    }
)
ANN: dict[str, Any] = {
    "number": 1201,
    "user_id": "ann",
    "before": None,
    "after": '{"user_id":"ann","all_time_score":4.70}',
    "policy": "p@1",
    "lake_version": 40,
    "as_of": _NOON,
    "recorded": _NOON,
    "causes": [{"cause": "policy", "event_id": None}, {"cause": "new event", "event_id": "e-7"}],
    "more_causes": 0,
}
BYTES: dict[Format, bytes] = {
    "json": b'{"number":1201,"user_id":"ann","before":null,"after":{"user_id":"ann","all_time_score":4.70},'
    b'"policy":"p@1","lake_version":40,"as_of":"2026-11-27T12:00:00.000007Z","causes":[{"cause":"policy",'
    b'"event_id":null},{"cause":"new event","event_id":"e-7"}],"more_causes":0}',
    "avro": b'\xe2\x12\x06ann\x00\x02N{"user_id":"ann","all_time_score":4.70}\x06p@1P\x8e\xc0\xed\xca\x99\xd0\xb0\x06'
    b"\x04\x0cpolicy\x00\x12new event\x02\x06e-7\x00\x00",
    "protobuf": b'\t\xb1\x04\x00\x00\x00\x00\x00\x00\x12\x03ann"\'{"user_id":"ann","all_time_score":4.70}*\x03p@10('
    b":\t\x08\xc0\xe1\xa5\xd8\x06\x10\xd86B\x08\n\x06policyB\x10\n\tnew event\x12\x03e-7",
}


def values(changes: list[dict[str, Any]], form: Format) -> list[bytes]:
    """Return the values of changes, rows of the lake's table."""
    (batch,) = pa.Table.from_pylist(changes, SCORE_CHANGES).to_batches()
    return encode_changes(batch, form)


@pytest.mark.parametrize("form", FORMATS)
@given(changes=st.lists(_CHANGES, min_size=1, max_size=5), start=st.integers(0, 4))
def test_a_consumer_with_the_schema_reads_the_row(form: Format, changes: list[dict[str, Any]], start: int) -> None:
    """Of a part of a batch, too; and so do we."""
    (batch,) = pa.Table.from_pylist(changes, SCORE_CHANGES).to_batches()
    found = encode_changes(batch.slice(start), form)
    assert [decoded(value) for value in found] == [members(change) for change in changes[start:]]
    assert [decode_change(value) for value in found] == [
        decode_change(value) for value in values(changes, "json")[start:]
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_the_bytes_are_always_the_same(form: Format) -> None:
    """Whatever the versions of the packages: what a relay repeats may have been sent by an earlier release."""
    assert values([ANN], form) == [BYTES[form]]


def test_numbers_of_rows_are_exact() -> None:
    """4.70 is not 4.7, in any format."""
    assert [decode_change(value)["after"]["all_time_score"] for value in BYTES.values()] == [Decimal("4.70")] * 3
    assert all(b"4.70" in value for value in BYTES.values())


def test_json_has_its_schema() -> None:
    """All members are required, and each has the type that the schema says."""
    schema = json.loads((_CONTRACT / "score_change.json").read_text())
    jsonschema.validate(json.loads(BYTES["json"]), schema)
    assert [*schema["properties"]] == schema["required"] == [*json.loads(BYTES["json"])]


@pytest.mark.parametrize("name", ["event", "score_change"])
def test_the_generated_modules_are_of_the_schemas(name: str, tmp_path: Path) -> None:
    """`make contract` was run after the last change of a schema."""
    options = [f"-I{_CONTRACT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"{name}.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], check=True)
    for made in tmp_path.iterdir():
        assert made.read_text() == (_CONTRACT / made.name).read_text()


def test_avro_ends_with_its_last_field() -> None:
    """Bytes that follow are of something else."""
    with pytest.raises(ValueError, match="bytes follow"):
        decode_change(BYTES["avro"] + b"\x00")


def test_avro_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are an extra: the format is refused without it."""
    monkeypatch.setattr("pipelines.boundary.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"feed\.format = \"avro\" needs .*'karmalake\[avro\]'"):
        require_packages("avro")
    require_packages("protobuf")
    require_packages("json")
