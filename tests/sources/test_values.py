"""A value has one text and a row one id in every format, and no id loses digits."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.sources import table_worker
from pipelines.sources.canonical import canonicalize, float_text
from pipelines.sources.files import ColumnMapping, read_events
from pipelines.sources.rows import Rows, read_rows
from pipelines.sources.text_columns import as_text

_MAPPING = ColumnMapping("user", "at", "iso", "A")


def _ids(path: Path, mapping: ColumnMapping = _MAPPING) -> list[str]:
    return [event_id for table in read_events(path, mapping) for event_id in table["event_id"].to_pylist()]


def _users(path: Path, values: pa.Array) -> list[str]:
    pq.write_table(pa.table({"user": values, "at": pa.repeat(datetime(2024, 1, 1, tzinfo=UTC), len(values))}), path)
    return [user for table in read_events(path, _MAPPING) for user in table["user_id"].to_pylist()]


def test_one_row_has_one_id_in_every_format(tmp_path: Path) -> None:
    """Floats, integers, decimals, booleans, dates and times, as each format and each writer represents them."""
    stars, at = [4.0, 4.5, 0.1, 1e-7, 2.0**53], [datetime(2024, 1, 1, 10, 0, n, 500_000, tzinfo=UTC) for n in range(5)]
    columns: dict[str, Any] = {
        "user": ["a"] * 5,
        "stars": stars,
        "ok": [True] * 5,
        "day": [date(2024, 1, 1)] * 5,
        "at": at,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    written = [
        ["4.0", "4.50", "0.10", "1e-07", "9007199254740992"],
        ["4", "4.5", "1E-1", "0.0000001", "9007199254740992.00"],
    ]
    for number, texts in enumerate(written):
        rows = [
            f"a,{text},{('True', 'true')[number]},2024-01-01,{moment:%Y-%m-%dT%H:%M:%S.5Z}"
            for text, moment in zip(texts, at, strict=True)
        ]
        (tmp_path / f"{number}.csv").write_text("\n".join(["user,stars,ok,day,at", *rows]))
    (tmp_path / "a.ndjson").write_text(
        "\n".join(
            json.dumps({"user": "a", "stars": number, "ok": True, "day": "2024-01-01", "at": str(moment)})
            for number, moment in zip(stars, at, strict=True)
        )
    )
    expected = _ids(tmp_path / "a.parquet")
    assert len(set(expected)) == 5
    assert [_ids(tmp_path / name) for name in ("0.csv", "1.csv", "a.ndjson")] == [expected] * 3


def test_the_unit_of_a_time_does_not_change_the_id(tmp_path: Path) -> None:
    """An epoch in milliseconds and ISO 8601 are the same time, so the same event."""
    (tmp_path / "a.csv").write_text("user,at\na,2024-01-01 10:00:00\n")
    (tmp_path / "b.csv").write_text("user,at\na,1704103200000\n")
    assert _ids(tmp_path / "a.csv") == _ids(tmp_path / "b.csv", ColumnMapping("user", "at", "ms", "A"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_has_one_text(number: float) -> None:
    """As Python and as Arrow write it, with trailing zeros, and in a column; and it parses back to itself."""
    texts = [repr(number), format(Decimal(repr(number)), "f"), float_text(pa.array([number]))[0].as_py()]
    (text, *others) = canonicalize(pa.array(texts)).to_pylist()
    assert others == [text, text]
    assert float(text) == number
    assert canonicalize(pa.array([text])).to_pylist() == [text]


@pytest.mark.parametrize(
    "text",
    ["", "007", "1.", ".5", "+1", "4.0.0", "12e5678", "e5", "2024-13-01", "2024-02-30 10:00", "Truest", "1 000.0"],
)
def test_text_of_no_other_type_is_unchanged(text: str) -> None:
    """Codes with leading zeros, versions and sentences distinguish rows literally."""
    assert canonicalize(pa.array([text])).to_pylist() == [text]


def test_an_id_does_not_depend_on_other_rows(tmp_path: Path) -> None:
    """A row has the same id alone and beside a row with an invalid time."""
    (tmp_path / "a.csv").write_text("user,at,x\na,2024-01-01,2024-01-01\n")
    (tmp_path / "b.csv").write_text("user,at,x\na,2024-01-01,2024-01-01\nb,2024-01-01,2024-99-99\nb,2024-01-02,\n")
    assert _ids(tmp_path / "a.csv") == _ids(tmp_path / "b.csv")[:1]


@pytest.mark.parametrize(
    ("values", "users"),
    [
        (pa.array([98_765_432_101.0, 2.0**53, 1_000_000.0]), ["98765432101", "9007199254740992", "1000000"]),
        (pa.array([7.0], pa.float32()), ["7"]),
        (pa.array([Decimal("10.50")]), ["10.50"]),
        (pa.array([Decimal(5), Decimal(0)], pa.decimal128(30, 7)), ["5.0000000", "0.0000000"]),
        (pa.array([Decimal("-1e-18")], pa.decimal256(60, 18)), ["-0.000000000000000001"]),
        (pa.array([Decimal(0)], pa.decimal128(9, 9)).dictionary_encode(), ["0.000000000"]),
        (pa.array([date(2024, 1, 2)]), ["2024-01-02"]),
        (pa.array([datetime(2024, 1, 2, 3, tzinfo=UTC)]), ["2024-01-02T03:00:00Z"]),
        (pa.array([2**63 + 1], pa.uint64()), ["9223372036854775809"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(range(16))], pa.binary(16))),
            [str(uuid.UUID(bytes=bytes(range(16))))],
        ),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"a"'])), ['"a"']),
    ],
)
def test_ids_of_many_types_are_exact_text(tmp_path: Path, values: pa.Array, users: list[str]) -> None:
    """Every digit, without a decimal point or an exponent."""
    assert _users(tmp_path / "a.parquet", values) == users


def test_decimals_within_structs_have_no_exponent(tmp_path: Path) -> None:
    """A zero of many digits is 0.0000000, not 0E-7, as in a column of its own."""
    tips = pa.array([{"tip": Decimal("0E-7")}], pa.struct({"tip": pa.decimal128(30, 7)}))
    pq.write_table(pa.table({"tips": tips}), tmp_path / "a.parquet")
    (rows,) = read_rows(tmp_path / "a.parquet", names=["tips"])
    assert rows.text("tips").to_pylist() == ['{"tip": "0.0000000"}']


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1.0, 7.6561198e16]), r"row 2, column 'user': 7.6561198e\+16 is a float, not an id: above 2\^53"),
        (pa.array([1.5]), "row 1, column 'user': 1.5 is a float, not an id: it has a fraction"),
        (pa.array([b"a"]), "column 'user' has type binary, which is not an id"),
        (pa.array([True]), "column 'user' has type bool, which is not an id"),
        (pa.array([{"id": "a"}]), "column 'user' has type struct<id: string>, which is not an id"),
        (pa.array([["a"]]), "column 'user' has type list.*, which is not an id"),
    ],
)
def test_values_that_are_not_ids_are_refused(tmp_path: Path, values: pa.Array, message: str) -> None:
    """The error names column and type, and the row if only its value is invalid."""
    with pytest.raises(UsageError, match=message):
        _users(tmp_path / "a.parquet", values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "user,at\n9.8765432101e+10,2024-01-01\n",
            "row 1, column 'user': 9.8765432101e.10 is a rounded number",
        ),
        ("a.csv", "user,at\n7.65612E+16,2024-01-01\n", "is a rounded number, not an id: write all digits"),
        ("a.csv", "user;at\n1,23E+17;2024-01-01\n", "1,23E.17 is a rounded number, not an id: write all digits"),
        ("a.ndjson", '{"user": 1e+16, "at": "2024-01-01"}', "row 1, column 'user': 1e.16 is a rounded number"),
        (
            "a.ndjson",
            '{"user": true, "at": "2024-01-01"}',
            "row 1, column 'user': an object, an array or a boolean",
        ),
        (
            "a.ndjson",
            '{"user": "a", "at": "2024-01-01"}\n{"user": {"a": 1}, "at": "2024-01-01"}',
            "row 2, column 'user'",
        ),
        (
            "a.csv",
            'user,at\n"{""a"": 1}",2024-01-01\n',
            "row 1, column 'user': {\"a\": 1} is a list or an object, not an",
        ),
        ("a.ndjson", '{"user": "[1]", "at": "2024-01-01"}', r"row 1, column 'user': \[1\] is a list or an object"),
    ],
)
def test_an_id_that_was_a_number_or_an_object_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    """In text formats, each row is validated on its own."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        _ids(tmp_path / name)


@pytest.mark.parametrize("user", ["12e5", "true", "1.5", "007", "{a}"])
def test_text_that_looks_like_a_value_is_an_id(tmp_path: Path, user: str) -> None:
    """Text is never interpreted as a number."""
    (tmp_path / "a.csv").write_text(f"user,at\n{user},2024-01-01\n")
    (tmp_path / "a.ndjson").write_text(json.dumps({"user": user, "at": "2024-01-01"}))
    for name in ("a.csv", "a.ndjson"):
        (events,) = read_events(tmp_path / name, _MAPPING)
        assert events["user_id"].to_pylist() == [user]


def test_a_time_beyond_microseconds_does_not_wrap(tmp_path: Path) -> None:
    """Milliseconds of the year 318,857 are not a valid time; once they wrapped to a plausible one."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": ["a"], "at": pa.array([10**16], pa.timestamp("ms"))}), path)
    with pytest.raises(UsageError, match="row 1, column 'at': it is empty"):
        _ids(path)


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_a_date_beyond_the_calendar_is_empty(tmp_path: Path, kind: pa.DataType) -> None:
    """As a time beyond it; others keep their day. Once it ended the command with the error of a library."""
    per_day, width = (1, pa.int32()) if kind == pa.date32() else (86_400_000, pa.int64())
    days = [0, -719_162, 2_932_896, -719_163, 2_932_897, 2**31 - 1, -(2**31)]
    path = tmp_path / "a.arrow"
    dates = pa.array([day * per_day for day in days], width).cast(kind)
    pyarrow.feather.write_feather(pa.table({"user": ["a"] * 7, "at": dates}), path)
    assert next(iter(read_rows(path))).text("at").to_pylist() == [
        "1970-01-01",
        "0001-01-01",
        "9999-12-31",
        "",
        "",
        "",
        "",
    ]
    with pytest.raises(UsageError, match="row 4, column 'at': it is empty"):
        _ids(path)


def test_a_column_without_a_text_form_matters_only_if_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of an unknown type is ignored, or named in the error if it is mapped."""
    values = pa.array([pa.MonthDayNano([1, 2, 3])])
    batch = pa.record_batch({"user": pa.array(["a"]), "at": pa.array(["2024-01-01"]), "x": values})
    table = as_text(batch, frozenset(), 1)
    monkeypatch.setattr("pipelines.sources.files.read_rows", lambda *_: iter([Rows(table, pa.array([1]))]))
    assert len(_ids(tmp_path)) == 1
    with pytest.raises(UsageError, match="column 'x' has type month_day_nano_interval, which cannot be read as text"):
        _ids(tmp_path, replace(_MAPPING, metadata=(("x", "x"),)))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Before it is in the lake, where no reader could open it."""
    text = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"user": ["a"], "at": ["2024-01-01"], "x": text}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"column 'x' cannot be read: .*UTF8"):
        _ids(tmp_path / "a.parquet")


def test_members_of_objects_are_named_with_dots(tmp_path: Path) -> None:
    """In NDJSON and in Parquet, at any depth; a missing member is empty."""
    rows = [{"rating": {"seller": f"s{n}", "by": {"id": n}}, "at": "2024-01-01"} for n in range(3)]
    (tmp_path / "a.ndjson").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    mapping = ColumnMapping(
        "rating.seller", "at", "iso", "A", metadata=(("by", "rating.by.id"), ("no", "rating.by.no"))
    )
    for name in ("a.ndjson", "a.parquet"):
        events = pa.concat_tables(read_events(tmp_path / name, mapping))
        assert events["user_id"].to_pylist() == ["s0", "s1", "s2"]
        assert events["metadata"].to_pylist() == [[("by", str(n))] for n in range(3)]


@pytest.mark.parametrize("depth", [101, 600, 100_000])
def test_an_object_that_is_too_deep_is_an_error_of_its_row(tmp_path: Path, depth: int) -> None:
    """At one depth, whatever the stack of the process has left: its member is not empty silently."""
    (tmp_path / "a.csv").write_text(_with_nested_cell(depth))
    with pytest.raises(UsageError, match="row 2, column 'by' is nested over 100 levels deep: flatten it"):
        list(read_events(tmp_path / "a.csv", _NESTED))
    events = pa.concat_tables(read_events(tmp_path / "a.csv", replace(_NESTED, metadata=())))
    assert events["user_id"].to_pylist() == ["a", "b"]


def test_an_object_at_the_bound_is_read(tmp_path: Path) -> None:
    """Brackets within strings do not count, and the member is written as JSON again."""
    (tmp_path / "a.csv").write_text(_with_nested_cell(100))
    assert pa.concat_tables(read_events(tmp_path / "a.csv", _NESTED))["metadata"].to_pylist() == [
        [("by", "7")],
        [("by", '{"id": ' * 99 + '"[{[{"' + "}" * 99)],
    ]


_NESTED = ColumnMapping("user", "at", "iso", "A", metadata=(("by", "by.id"),))


def _with_nested_cell(depth: int) -> str:
    deep = '{"id":' * depth + '"[{[{"' + "}" * depth
    return f"""user,by,at\na,"{{""id"": 7}}",2024-01-01\nb,"{deep.replace('"', '""')}",2024-01-01\n"""


def test_an_object_in_a_cell_with_a_member_twice_is_an_error(tmp_path: Path) -> None:
    """Neither value is taken, and no member is empty silently, if one is mapped."""
    (tmp_path / "a.csv").write_text(
        """user,by,at\na,"{""id"": 7}",2024-01-01\nb,"{""id"": 7, ""in"": {""x"": 1, ""x"": 2}}",2024-01-01\n"""
    )
    mapping = ColumnMapping("user", "at", "iso", "A", metadata=(("by", "by.id"),))
    with pytest.raises(UsageError, match="row 2, column 'by' has the member 'x' twice"):
        list(read_events(tmp_path / "a.csv", mapping))
    events = pa.concat_tables(read_events(tmp_path / "a.csv", replace(mapping, metadata=())))
    assert events["user_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'user': 'a'}", "row 1 .* is a Python dict: write it with json.dumps"),
        ('{"user": "a",\n"at": 1}', "row 1 .* several lines: .*jq -c"),
    ],
)
def test_common_ndjson_mistakes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    """The message says what to type."""
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        _ids(tmp_path / "a.jsonl")


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    """Between lines and at the end; blank lines do not count in the number of a row."""
    good = json.dumps({"user": "a", "at": "2024-01-01"})
    (tmp_path / "a.jsonl").write_text(f"{good}\n\n{good}\n\r\n  \n{good}\n\n\n")
    assert len(_ids(tmp_path / "a.jsonl")) == 3
    (tmp_path / "b.jsonl").write_text(f"{good}\n\n\n{{")
    with pytest.raises(UsageError, match="row 2"):
        _ids(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,2024-01-01", "that is a row: name the columns with --columns"),
        ("User,at", "do you mean 'User'"),
        (",".join(f"c{n}" for n in range(100)), r"'c19', \.\.\.$"),
    ],
)
def test_a_missing_column_suggests_a_fix(tmp_path: Path, header: str, message: str) -> None:
    """One option, or one change."""
    (tmp_path / "a.csv").write_text(f"{header}\n")
    (tmp_path / "a.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(UsageError, match=message):
        _ids(tmp_path / "a.csv")


def test_nan_is_empty_and_infinity_is_text(tmp_path: Path) -> None:
    """Floats without a numeric value."""
    assert float_text(pa.array([np.nan, np.inf, -0.0])).to_pylist() == [None, "inf", "-0"]


_NESTED_ROWS = [
    {"user": "a", "at": "2024-01-01", "helpful": [2, 3], "of": {"b": [1.5, None, 2.0], "a": {"n": 4.5, "é": "1"}}},
    {"user": "b", "at": "2024-01-02", "helpful": [0, -1], "of": {"b": [], "a": {"n": 1e-07, "é": ""}}},
]


def test_numbers_in_lists_and_objects_stay_numbers_with_their_digits(tmp_path: Path) -> None:
    """In JSON as it is written, with sorted members; alone or as a member that is named with dots."""
    nested = '{"b": [2, 3.0, 1e5, -0], "a": {"n": 4.50, "é": "7"}}'
    text = f'{{"user": "a", "at": 1, "x": {nested}, "y": [12345678901234567890]}}'
    (tmp_path / "a.ndjson").write_text(text, encoding="utf-8")
    names = ("x", "y", "x.b", "x.a", "x.a.n")
    mapping = ColumnMapping("user", "at", "s", "A", metadata=tuple((name, name) for name in names))
    (events,) = read_events(tmp_path / "a.ndjson", mapping)
    assert dict(events["metadata"].to_pylist()[0]) == {
        "x": '{"a": {"n": 4.50, "é": "7"}, "b": [2, 3.0, 1e5, -0]}',
        "y": "[12345678901234567890]",
        "x.b": "[2, 3.0, 1e5, -0]",
        "x.a": '{"n": 4.50, "é": "7"}',
        "x.a.n": "4.50",
    }


@pytest.mark.slow
def test_nested_rows_are_the_same_events_in_every_format(tmp_path: Path) -> None:
    """JSON lines, and structs and JSON texts in Parquet: the same ids, however the numbers are written."""
    (tmp_path / "a.ndjson").write_text("\n".join(map(json.dumps, _NESTED_ROWS)))
    again = "\n".join(map(json.dumps, _NESTED_ROWS)).replace("4.5", "4.50").replace("1e-07", "0.0000001")
    (tmp_path / "b.ndjson").write_text(again.replace("[2, 3]", "[2.0,3]"))
    pq.write_table(pa.Table.from_pylist(_NESTED_ROWS), tmp_path / "a.parquet")
    texts = [row | {name: json.dumps(row[name]) for name in ("helpful", "of")} for row in _NESTED_ROWS]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "b.parquet")
    files = [tmp_path / name for name in ("a.ndjson", "b.ndjson", "a.parquet", "b.parquet")]
    assert [_ids(path) for path in files] == [_ids(files[0])] * 4
    mapping = replace(_MAPPING, metadata=(("helpful", "helpful"), ("of", "of")))
    first, same = (pa.concat_tables(read_events(path, mapping)) for path in (files[0], files[2]))
    assert first.equals(same)
    assert dict(first["metadata"].to_pylist()[0])["helpful"] == "[2, 3]"


@pytest.mark.parametrize("text", ["[sic] 4.50", "{4.50}", '{"a": 4.50', "[" * 100_000])
def test_text_that_only_begins_as_json_is_unchanged(text: str) -> None:
    """In a generated id, as other text."""
    assert canonicalize(pa.array([text])).to_pylist() == [text]


@pytest.mark.parametrize("encoded", [[], ["did"], ["user", "did"]])
def test_dictionaries_change_no_value(tmp_path: Path, encoded: list[str]) -> None:
    """A dictionary is read where the file has one; ids that are stored plainly are the same texts."""
    path, users = tmp_path / "a.parquet", [f"u-{number}" for number in range(1_000)]
    columns = {"user": users, "did": ["Rated"] * 1_000, "at": pa.repeat(datetime(2024, 1, 1, tzinfo=UTC), 1_000)}
    pq.write_table(pa.table(columns), path, use_dictionary=encoded)
    (batch,) = table_worker._parquet_batches(str(path), 1_000)
    assert [name for name in columns if pa.types.is_dictionary(batch.schema.field(name).type)] == encoded
    tables = list(read_events(path, ColumnMapping("user", "at", "iso", action_type_column="did")))
    assert [user for table in tables for user in table["user_id"].to_pylist()] == users
    assert {did for table in tables for did in table["action_type"].to_pylist()} == {"Rated"}
