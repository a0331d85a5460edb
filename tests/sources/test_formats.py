"""One small table in every form that people have gives the same events, ids included (`once`), or says what to do."""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import duckdb
import fastavro
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard
from deltalake import write_deltalake

from pipelines.errors import UsageError
from pipelines.inputs import find_files
from pipelines.sources.files import ColumnMapping, read_events
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import count_rows, describe, read_rows
from pipelines.sources.times import read_file_times
from tests.sources.workbook import workbook, write_workbook, zipped

_MAPPING = ColumnMapping("seller", "at", "iso", "Rated", None, (("stars", "stars"), ("buyer", "buyer")))
_ROWS = [
    {
        "seller": f"s{n % 3}",
        "buyer": f"b{n % 5}",
        "stars": n % 5 + 1,
        "at": datetime(2024, 1, 1, 10, 0, n, tzinfo=UTC) + timedelta(days=n),
    }
    for n in range(12)
]
_TEXTS = [{**row, "at": f"{row['at']:%Y-%m-%d %H:%M:%S}"} for row in _ROWS]
_HEADER = "seller,buyer,stars,at\n"
_LINES = "".join(f"{','.join(map(str, row.values()))}\n" for row in _TEXTS)
_CSV = _HEADER + _LINES
_NDJSON = "".join(f"{json.dumps(row)}\n" for row in _TEXTS)
_TABLE = pa.Table.from_pylist(_ROWS)


def _events(path: Path, mapping: ColumnMapping = _MAPPING) -> list[tuple[object, ...]]:
    tables = [table for file in find_files([path]) for table in read_events(Path(file), mapping)]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(tuple(map(str, row.values())) for row in rows)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """Return the twelve events of the table."""
    path = tmp_path_factory.mktemp("plain") / "a.csv"
    path.write_text(_CSV)
    found = _events(path)
    assert len(set(found)) == 12
    return found


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("semi.csv", _CSV.replace(",", ";"), "delimiter ';'"),
        ("tab.csv", _CSV.replace(",", "\t"), "delimiter '\\t'"),
        ("tab.txt", _CSV.replace(",", "\t"), "delimiter '\\t'"),
        ("tab.tsv", _CSV.replace(",", "\t"), "delimiter '\\t'"),
        ("pipe.csv", _CSV.replace(",", "|"), "delimiter '|'"),
        ("ratings.dat", _CSV.replace(",", "::"), "delimiter '::'"),
        ("comment.csv", f"# exported 2024\n# by me\n{_CSV}", "lines above the header: 2"),
        ("sep.csv", f"sep=,\n{_CSV}", "lines above the header: 1"),
        ("title.csv", f"Ratings export,,,\n,,,\n{_CSV}", "lines above the header: 2"),
        ("spaces.csv", _CSV.replace(",", ", "), "spaces after delimiters are dropped"),
        ("single.csv", _CSV.replace("seller", "'seller'").replace("b1", "'b1'"), 'quote "\'"'),
        ("blank.csv", f"{_CSV}\n\n", ""),
        ("cr.csv", _CSV.replace("\n", "\r"), ""),
        ("upper.CSV", _CSV, ""),
        ("quoted.csv", "".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in _CSV.splitlines()), ""),
        ("lines.json", _NDJSON, ""),
        ("lines.ndjson", _NDJSON, ""),
        ("blank.jsonl", _NDJSON.replace("\n", "\n\n") + "\n\n", ""),
        ("array.json", json.dumps(_TEXTS), ""),
        ("array.jsonl", json.dumps(_TEXTS), ""),
        ("indented.json", json.dumps(_TEXTS, indent=2), ""),
        ("spread.json", "\n".join(json.dumps(row, indent=1) for row in _TEXTS), ""),
        ("unnamed", _NDJSON, "format json"),
    ],
)
def test_text_is_read_in_any_dialect(
    tmp_path: Path, expected: list[tuple[object, ...]], name: str, text: str, form: str
) -> None:
    """The header, known by the mapped names, tells the dialect; what is unusual is said."""
    path = tmp_path / name
    path.write_text(text, newline="")
    assert _events(path) == expected
    assert describe(path, _MAPPING.reading, _MAPPING.required_columns()) == form


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
        (".zip", lambda data: zipped({"a.csv": data, "__MACOSX/a.csv": b""})),
    ],
)
def test_compressed_files_are_read(
    tmp_path: Path, expected: list[tuple[object, ...]], suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    """With or without the suffix of the format, as CSV and as an array."""
    for name, text in (("a.csv", _CSV), ("plain", _CSV), ("a.json", json.dumps(_TEXTS))):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(compress(text.encode()))
        assert _events(path) == expected


def test_a_long_window_of_zstd_is_read(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """As `zstd --long=31` writes it: Reddit's archives have such windows."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    path = tmp_path / "a.csv.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as out:
        out.write(_CSV.encode())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size > 2**27
    assert _events(path) == expected


def test_zstd_that_ends_between_lines_is_an_error(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """A frame without its end is no smaller table; frames that follow each other, and those to skip, are one file."""
    compressor = zstandard.ZstdCompressor().compressobj()
    begun = compressor.compress(_CSV.encode()) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    path = tmp_path / "a.csv.zst"
    path.write_bytes(begun)
    with pytest.raises(UsageError, match=r"cannot be decompressed: it ends within a frame: it is damaged or cut off"):
        _events(path)
    to_skip = struct.pack("<LL", 0x184D2A50, 2) + b"no"
    parts = [zstandard.compress(part.encode()) for part in _CSV.splitlines(keepends=True)]
    path.write_bytes(parts[0] + to_skip + b"".join(parts[1:]))
    assert _events(path) == expected


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data[:10] + b"\x00" * 20 + data[30:]])
def test_a_damaged_archive_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Nothing of it is taken for the whole."""
    kinds = ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", zstandard.compress))
    for suffix, compress in kinds:
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(damage(compress(_CSV.encode())))
        with pytest.raises(UsageError, match=r"cannot be decompressed: .*damaged or cut off"):
            _events(path)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress])
def test_what_follows_the_first_stream_is_not_dropped(
    tmp_path: Path, expected: list[tuple[object, ...]], compress: Callable[[bytes], bytes]
) -> None:
    """Streams that follow each other are one file, and zeros after them are none; a damaged one is an error."""
    first, second = (compress(part.encode()) for part in (_CSV[: len(_HEADER)], _LINES))
    path = tmp_path / "a.csv"
    path.write_bytes(first + second + bytes(512))
    assert _events(path) == expected
    for rest in (b"garbage" + second, second[:-5]):
        path.write_bytes(first + rest)
        with pytest.raises(UsageError, match=r"cannot be decompressed: .*damaged or cut off"):
            _events(path)


def _with_an_invalid_name(archive: bytes) -> bytes:
    return archive.replace("ü".encode(), b"\xff\xff")


def _with_a_negative_offset(archive: bytes) -> bytes:
    """Say in its last bytes that the list of files begins later than it does: the file would begin before 0."""
    return archive[:-6] + struct.pack("<L", struct.unpack("<L", archive[-6:-2])[0] + 50) + archive[-2:]


@pytest.mark.parametrize("damage", [_with_an_invalid_name, _with_a_negative_offset])
def test_a_damaged_zip_archive_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A name that is not valid UTF-8, a place before the file: one message for every question about the file."""
    path = tmp_path / "a.csv.zip"
    path.write_bytes(damage(zipped({"ü.csv": _CSV.encode()})))
    for ask in (describe, count_rows, _events):
        with pytest.raises(UsageError, match=r"a\.csv\.zip: cannot be unpacked: .*unpack it first"):
            ask(path)


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    """Which one is meant is not guessed."""
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"a.csv": b"", "b.csv": b""}))
    with pytest.raises(UsageError, match="has 2 files, and one is read: unpack it"):
        _events(path)


@pytest.mark.parametrize(
    ("encoding", "form"),
    [
        ("utf-8-sig", ""),
        *((name, f"encoding {name}") for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")),
        *((name, f"encoding {name}") for name in ("utf-32-be", "cp1252")),
    ],
)
def test_an_encoding_is_found_and_said(tmp_path: Path, encoding: str, form: str) -> None:
    """Those of Unicode, also without a mark, else Western European; an option overrides the guess."""
    path = tmp_path / "a.csv"
    path.write_text(_CSV.replace("s1", "Jürgen"), encoding=encoding)
    assert {row[1] for row in _events(path)} == {"s0", "Jürgen", "s2"}
    assert describe(path, names=_MAPPING.required_columns()) == form


def test_text_with_nuls_and_utf_16_in_other_scripts(tmp_path: Path) -> None:
    """NULs within values make no UTF-16; a text in which most characters are not ASCII is found, also with U+0100."""
    path, mapping = tmp_path / "a.csv", ColumnMapping("юзер", "время", "iso", "A")
    text = "юзер,время\n" + "ĀĀĀĀĀĀĀ,2024-01-01\nЮлийĀ,2024-01-02\n" * 3
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        path.write_text(text, encoding=encoding)
        assert {row[1] for row in _events(path, mapping)} == {"ĀĀĀĀĀĀĀ", "ЮлийĀ"}
    path.write_text("\n".join(["buyer,at", *["ab\0\0\0\0\0\0,2024-01-01"] * 20]))
    assert {row[1] for row in _events(path, ColumnMapping("buyer", "at", "iso", "A"))} == {"ab" + "\0" * 6}


def _avro_time(kind: str) -> dict[str, str]:
    return {"type": "long", "logicalType": kind}


def _write_avro(path: Path) -> None:
    fields = [
        {"name": "seller", "type": "string"},
        {"name": "buyer", "type": "string"},
        {"name": "stars", "type": "int"},
    ]
    time = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}
    with path.open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "R", "fields": [*fields, time]}, _ROWS)


def _avro(path: Path, schema: object, records: list[object]) -> Path:
    with path.open("wb") as file:
        fastavro.writer(file, schema, records)
    return path


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        (
            ["null", _avro_time("timestamp-micros")],
            [None] * 4096 + [_ROWS[0]["at"]],
            [""] * 4096 + ["2024-01-01T10:00:00Z"],
        ),
        (["string", _avro_time("timestamp-millis")], [_ROWS[0]["at"], "later"], ["2024-01-01T10:00:00+00:00", "later"]),
        (_avro_time("timestamp-millis"), [2**60, _ROWS[0]["at"]], ["", "2024-01-01T10:00:00Z"]),
        (_avro_time("timestamp-nanos"), [1_704_103_200_123_456_789], ["2024-01-01T10:00:00.123456Z"]),
        (_avro_time("local-timestamp-nanos"), [1_704_103_200_123_456_789], ["2024-01-01T10:00:00.123456"]),
        ("float", [0.1], ["0.1"]),
    ],
)
def test_a_column_of_avro_has_one_form(tmp_path: Path, kind: object, values: list[object], texts: list[str]) -> None:
    """By its schema, whatever the values of a batch: empty ones first, times beside text, or beyond the calendar."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": kind}]}
    chunks = list(read_rows(_avro(tmp_path / "a.avro", schema, [{"x": value} for value in values])))
    assert len({str(chunk.columns.schema) for chunk in chunks}) == 1
    assert [text for chunk in chunks for text in chunk.text("x").to_pylist()] == texts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", True], "column 'x' has type bool, which is not an id"),
        (["a", 1.5], "row 2, column 'x': 1.5 is a float, not an id: it has a fraction"),
        (["a", 2.0**60], "row 2, .*above 2"),
        (["a", b"b"], "column 'x' has type binary, which is not an id"),
        (["a", 2.0, 3], None),
    ],
)
def test_ids_of_a_union_of_avro_are_those_of_plain_columns(
    tmp_path: Path, values: list[object], message: str | None
) -> None:
    """Beside texts the same types are refused, and a whole number has the same text as without them."""
    kinds = ["string", "boolean", "double", "bytes", "long"]
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": kinds}, {"name": "at", "type": "string"}]}
    path = _avro(tmp_path / "a.avro", schema, [{"x": value, "at": "2024-01-01"} for value in values])
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        assert {row[1] for row in _events(path, ColumnMapping("x", "at", "iso", "A"))} == {"2", "3", "a"}


@pytest.mark.parametrize("codec", ["bzip2", "deflate", "lz4", "null", "snappy", "xz", "zstandard"])
def test_avro_of_each_codec_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """Of those that the format names, with the declared packages."""

    def write_zstandard(file: IO[bytes], block: bytes, _: int | None) -> None:
        frames = zstandard.compress(block[:99]) + zstandard.compress(block[99:])
        fastavro.schemaless_writer(file, "bytes", frames)

    monkeypatch.setitem(fastavro._write.BLOCK_WRITERS, "zstandard", write_zstandard)
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": "string"}]}
    with (tmp_path / "a.avro").open("wb") as file:
        fastavro.writer(file, schema, [{"x": str(n)} for n in range(9_000)], codec=codec, sync_interval=16_000)
    found = [text for rows in read_rows(tmp_path / "a.avro") for text in rows.text("x").to_pylist()]
    assert found == [str(n) for n in range(9_000)]


def test_avro_of_other_values_than_records_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(UsageError, match=r"a\.avro: its values are not records of one type"):
        count_rows(_avro(tmp_path / "a.avro", "string", ["a"]))


def test_times_of_int96_beyond_2262_are_read(tmp_path: Path) -> None:
    """As Spark writes 9999-12-31 for no end: in nanoseconds it would be a time of another century."""
    path, years = tmp_path / "a.parquet", [datetime(1600, 1, 1), datetime(9999, 12, 31)]  # noqa: DTZ001
    pq.write_table(pa.table({"at": pa.array(years, pa.timestamp("us"))}), path, use_deprecated_int96_timestamps=True)
    (rows,) = read_rows(path)
    assert rows.text("at").to_pylist() == ["1600-01-01T00:00:00Z", "9999-12-31T00:00:00Z"]


def _write_categories(path: Path) -> None:
    buyers = pl.Enum([f"b{n}" for n in range(5)])
    frame = pl.DataFrame(_ROWS).with_columns(pl.col("seller").cast(pl.Categorical), pl.col("buyer").cast(buyers))
    frame.with_columns(pl.col("stars").cast(pl.UInt8)).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda path: pq.write_table(_TABLE, path)),
        ("a.pq", lambda path: pq.write_table(_TABLE, path, use_deprecated_int96_timestamps=True)),
        ("categories.parquet", _write_categories),
        ("unnamed", lambda path: pq.write_table(_TABLE, path)),
        ("a.feather", lambda path: pyarrow.feather.write_feather(_TABLE, path)),
        ("a.arrow", lambda path: pl.DataFrame(_ROWS).write_ipc_stream(path)),
        ("a.ipc", lambda path: pl.DataFrame(_ROWS).write_ipc(path)),
        ("a.orc", lambda path: pyarrow.orc.write_table(_TABLE, path)),
        ("a.avro", _write_avro),
        ("hive", lambda path: pq.write_to_dataset(_TABLE, path, partition_cols=["seller"])),
        ("delta", lambda path: write_deltalake(path, _TABLE, partition_by=["seller"])),
        ("[x]=1.parquet", lambda path: pq.write_table(_TABLE, path)),
    ],
)
def test_tables_are_read_in_any_format(
    tmp_path: Path, expected: list[tuple[object, ...]], name: str, write: Callable[[Path], None]
) -> None:
    """Also where folders hold the values of a column."""
    write(tmp_path / name)
    assert _events(tmp_path / name) == expected


def test_a_workbook_is_read(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """As Excel stores it: text, numbers, and times as text; an id keeps its digits."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    write_workbook(tmp_path / "a.xlsx", [_HEADER.strip().split(","), *(list(row.values()) for row in _TEXTS)])
    assert _events(tmp_path / "a.xlsx") == expected
    above: list[list[object]] = [["Ratings of 2024", "", "", ""], ["", "", "", ""]]
    header, *rows = [_HEADER.strip().split(","), *(list(row.values()) for row in _TEXTS)]
    write_workbook(tmp_path / "b.xlsx", [*above, header, *rows])
    assert _events(tmp_path / "b.xlsx") == expected, "the header is below a title"


def test_all_sheets_with_the_mapped_names_are_read(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """In any order of columns, with other types, below a title, under the name of another format; others are named."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    header, *rows = [_HEADER.strip().split(","), *(list(row.values()) for row in _TEXTS)]
    january, february = [header, *rows[:5]], [["2024"], *(row[::-1] for row in [header, *rows[5:9]])]
    march = [header, *([seller, buyer, f"{stars}", at] for seller, buyer, stars, at in rows[9:])]
    write_workbook(tmp_path / "a.csv", [["Read me"]], january, february, [], march)
    assert _events(tmp_path / "a.csv") == expected
    said = "format xlsx, 3 of 4 sheets are read: 'sheet2', 'sheet3', 'sheet5'; without the columns: 'sheet1'"
    assert describe(tmp_path / "a.csv", names=_MAPPING.required_columns()) == said
    assert "sheet2" in describe(tmp_path / "a.csv").partition(";")[0], "a SELECT names no columns: a cover is not read"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["s1", 1, "x", "2024-01-01"], [123456789012345678, 1, 1, "2024-01-01"]], "row 2, column 'seller': .*as text"),
        ([["s1", 1, "x", "2024-01-01"], ["123456789012345680", 1, 1, "2024-01-01"]], None),
    ],
)
def test_rounded_ids_beside_text_are_refused(tmp_path: Path, rows: list[list[object]], message: str | None) -> None:
    """A number of a workbook has 15 digits: whole ones in a column of text and numbers belong to another user."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    write_workbook(tmp_path / "a.xlsx", [_HEADER.strip().split(","), *rows])
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        assert len(_events(tmp_path / "a.xlsx")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_CSV.encode(), "it is no workbook, though it is called one"),
        (workbook([]), "it is empty: the first row must name the columns"),
        (workbook([["seller", "at", "stars", "buyer", "at"], ["s", "2024-01-01", 1, "b", "x"]]), "are named 'at'"),
        (workbook([["Seller", "at", "stars", "buyer"]]), "do you mean 'Seller'"),
    ],
)
def test_a_workbook_that_is_not_understood_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    """Also without rows; and a column that is there twice is not taken for either."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        _events(tmp_path / "a.xlsx")


def test_cells_with_errors_and_formulas_without_a_value_are_said(tmp_path: Path) -> None:
    """They count as empty. An empty text that a formula gives is a value, and so is what it gave when it was saved."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    formulas = ['<c s="1"><f>A1</f></c>', '<c><f t="shared" si="0"/><v></v></c>', "<c><x:f>A1</x:f><x:v/></c>"]
    values = ['<c t="str"><f>""</f><v></v></c>', "<c><f>1+1</f><v>2</v></c>"]
    rows = [["s1", 1, '<c t="e"><v>#N/A</v></c>', "2024-01-01"], ["s2", *formulas], ["s3", *values, "2024-01-01"]]
    write_workbook(tmp_path / "a.xlsx", [_HEADER.strip().split(","), *rows])
    assert describe(tmp_path / "a.xlsx", names=_MAPPING.required_columns()) == (
        "cells with an error such as #N/A, which count as empty: 1, first in column 'stars' of sheet 'sheet1', "
        "formulas without a value, which count as empty until the workbook is opened in a spreadsheet and saved: 3"
    )


def test_rows_without_a_value_do_not_count(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """As blank lines of CSV: a stray cell in the last row of a sheet is one row more, not a million."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    path = tmp_path / "a.xlsx"
    write_workbook(path, [_HEADER.strip().split(","), *(list(row.values()) for row in _TEXTS)])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    far = b'<row r="1048576"><c r="A1048576" t="inlineStr"><is><t>s1</t></is></c></row></sheetData>'
    path.write_bytes(zipped(members | {name: members[name].replace(b"</sheetData>", far)}))
    assert count_rows(path) == len(expected) + 1


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(300), zipped({"xl/workbook.xml": b"<!DOCTYPE x [<!ENTITY a '1'>]><x>&a;</x>"})]
)
def test_a_damaged_workbook_says_what_its_reader_says(tmp_path: Path, content: bytes) -> None:
    """The error of the library is the reason; only a process that ends without one has crashed."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.xlsx: (?!its reader crashed)"):
        count_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_LINES, r"there is no column 'seller'; .*that is a row: name the columns with --columns"),
        (f"{_CSV}s1,b1,5\n", r"row 13 \(line 14\): has 3 values, and the header names 4 columns"),
        (_CSV.replace("buyer", "seller"), "several columns are named 'seller'"),
        (_CSV.replace("seller", "Seller"), "do you mean 'Seller'"),
        ("", "it is empty: the first line must name the columns"),
        ("u\n", "there is no column 'seller'; the columns are 'u'"),
        (f'"title\n{_CSV}', r"the header \(line 1\): it has an unclosed quote"),
    ],
)
def test_a_file_that_is_not_understood_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    """Never a guess at rows."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        _events(tmp_path / "a.csv")


def test_xml_is_refused_with_the_way_around(tmp_path: Path) -> None:
    """It is no CSV with one column."""
    (tmp_path / "Votes.xml").write_text('\ufeff<?xml version="1.0"?>\n<votes><row Id="1"/></votes>\n')
    with pytest.raises(UsageError, match=r"Votes\.xml: is XML: write its rows as JSON"):
        _events(tmp_path / "Votes.xml")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_tar_archive_is_refused_as_one(tmp_path: Path, name: str) -> None:
    """It is no CSV whose first column has the name of a file in it, compressed or not."""
    (tmp_path / "a.csv").write_text(_CSV)
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(tmp_path / "a.csv", "a.csv")
    with pytest.raises(UsageError, match=rf"{name}: is an archive, .*unpack it"):
        _events(tmp_path / name)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"7z\xbc\xaf'\x1c\x00\x04", "is an archive"),
        (b"Rar!\x1a\x07\x01\x00", "is an archive"),
        (b'\x04"M\x18\x64\x40\xa7', "is compressed in a way that is not read"),
        (lzma.compress(_CSV.encode(), lzma.FORMAT_ALONE), "is compressed in a way that is not read"),
        (b"\x1f\x9d\x90\x75", "is compressed in a way that is not read"),
        (b"\xff\x06\x00\x00sNaPpY", "is compressed in a way that is not read"),
        (b"%PDF-1.7\n", "is a PDF document"),
        (gzip.compress(gzip.compress(b"u,t", mtime=0), mtime=0), "is compressed twice"),
        (zipped({"a.csv.gz": gzip.compress(b"u,t", mtime=0)}), "is compressed twice"),
    ],
)
def test_what_is_not_text_is_refused_by_its_name(tmp_path: Path, start: bytes, message: str) -> None:
    """As it begins, by its published format: its bytes are not the name of a column."""
    (tmp_path / "a.bin").write_bytes(start)
    with pytest.raises(UsageError, match=rf"a\.bin: {message}"):
        _events(tmp_path / "a.bin")


def test_options_override_what_is_found(tmp_path: Path, expected: list[tuple[object, ...]]) -> None:
    """Column names for a file without a header, comments between rows, a format that the name does not say."""
    path = tmp_path / "a.json"
    path.write_text(_LINES.replace("\n", "\n# and\n"))
    options = ReadOptions("csv", comment="#", columns=("seller", "buyer", "stars", "at"))
    mapping = ColumnMapping("seller", "at", "iso", "Rated", None, _MAPPING.metadata, reading=options)
    assert _events(path, mapping) == expected


@pytest.mark.parametrize(
    "options",
    [{"format": "xml"}, {"delimiter": "ab"}, {"quote": "xx"}, {"escape": "e"}, {"encoding": "none"}, {"comment": "é"}],
)
def test_an_invalid_option_is_refused(options: dict[str, str]) -> None:
    """Before a file is opened."""
    with pytest.raises(UsageError, match="is not"):
        ReadOptions(**options)


def test_a_backslash_before_a_quote_is_an_escape_where_it_can_be_nothing_else(tmp_path: Path) -> None:
    """MySQL writes so; a path that ends with a backslash stays one."""
    (tmp_path / "a.csv").write_text('seller,stars,at\n"b\\"1",1,2024-01-01\n"x\\\\y",2,2024-01-01\n')
    (tmp_path / "b.csv").write_text('seller,stars,at\n"C:\\",1,2024-01-01\n')
    mapping = ColumnMapping("seller", "at", "iso", "Rated", None, (("stars", "stars"),))
    assert {row[1] for row in _events(tmp_path / "a.csv", mapping)} == {'b"1', "x\\y"}
    assert {row[1] for row in _events(tmp_path / "b.csv", mapping)} == {"C:\\"}


def test_the_export_of_a_german_spreadsheet(tmp_path: Path) -> None:
    """Semicolons, decimal commas and day.month.year with a zone: everything but the time is found."""
    path = tmp_path / "a.csv"
    path.write_text("Verkäufer;Käufer;Bewertung;Datum\nMüller;Anna;4,5;03.04.2015 10:15\n", encoding="utf-8-sig")
    mapping = ColumnMapping(
        "Verkäufer", "Datum", "iso", "Rated", None, (("rating", "Bewertung"),), time_format="%d.%m.%Y %H:%M",
        time_zone="Europe/Berlin",
    )  # fmt: skip
    ((_, user, _, time, metadata),) = _events(path, mapping)
    assert (user, time, metadata) == ("Müller", "2015-04-03 08:15:00+00:00", "[('rating', '4.5')]")


@pytest.mark.parametrize("is_given", [None, True, False])
def test_grouped_numbers_beside_decimal_commas(tmp_path: Path, is_given: bool | None) -> None:
    """A point groups digits in a column with decimal commas; elsewhere it may be one of a version, and is kept."""
    values = ["494,51", "2.071,01", "-1.234.567,5", "1.234", "1.23", "12.34,5", "1.2345"]
    rows = "".join(f"u{number};{value};1.234;2024-01-01\n" for number, value in enumerate(values))
    (tmp_path / "a.csv").write_text(f"id;amount;version;at\n{rows}")
    (found,) = read_rows(tmp_path / "a.csv", ReadOptions(decimal_comma=is_given), ["id"], ["id", "at"])
    plain = ["494.51", "2071.01", "-1234567.5", "1234", "1.23", "12.34,5", "1.2345"]
    assert found.text("amount").to_pylist() == (values if is_given is False else plain)
    assert set(found.text("version").to_pylist()) == {"1.234"}


def test_a_file_whose_decimals_are_all_grouped(tmp_path: Path) -> None:
    """They show that the file has decimal commas, as others do."""
    (tmp_path / "a.csv").write_text("id;amount\n1;2.071,01\n2;1.234\n")
    (found,) = read_rows(tmp_path / "a.csv", names=["id"])
    assert found.text("amount").to_pylist() == ["2071.01", "1234"]


def test_null_markers_and_one_user_for_all_rows(tmp_path: Path) -> None:
    """A marker is no value, as a missing one."""
    (tmp_path / "a.csv").write_text("stars,at\nNULL,2024-01-01\n4,2024-01-02\n")
    mapping = ColumnMapping(
        None, "at", "iso", "Rated", None, (("stars", "stars"),), None, ReadOptions(null=("NULL",)), "shop-7"
    )
    found = [(row[1], row[4]) for row in _events(tmp_path / "a.csv", mapping)]
    assert sorted(found) == [("shop-7", "[('stars', '4')]"), ("shop-7", "[]")]


@pytest.mark.parametrize(
    ("text", "options", "time"),
    [
        ("1704103200123456789", {"time_unit": "ns"}, "2024-01-01 10:00:00.123456+00:00"),
        ("Mon, 09 Oct 2006 18:21:51 +0200", {"time_unit": "rfc2822"}, "2006-10-09 16:21:51+00:00"),
        ("2006-10-09 18:21:51 UTC", {}, "2006-10-09 18:21:51+00:00"),
        ("2006-10-09 18:21:51", {"time_zone": "Europe/Berlin"}, "2006-10-09 16:21:51+00:00"),
        ("2006-10-09T18:21:51Z", {"time_zone": "Europe/Berlin"}, "2006-10-09 18:21:51+00:00"),
        ("2006-10-09", {"time_zone": "America/New_York"}, "2006-10-09 04:00:00+00:00"),
        ("10/09/2006 6:21 PM", {"time_format": "%m/%d/%Y %I:%M %p"}, "2006-10-09 18:21:00+00:00"),
        ("9 Oct 2006 18:21:51.5", {"time_format": "%-d %b %Y %H:%M:%S.%f"}, "2006-10-09 18:21:51.500000+00:00"),
    ],
)
def test_times_of_many_forms(tmp_path: Path, text: str, options: dict[str, str], time: str) -> None:
    """Units, mail, named formats, and zones for times that name none."""
    (tmp_path / "a.tsv").write_text(f"seller\tat\na\t{text}\n")
    ((_, _, _, found, _),) = _events(tmp_path / "a.tsv", ColumnMapping("seller", "at", action_type="A", **options))
    assert found == time


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["31.12.2024 13:05", "soon", "", "01.02.2024 00:00"], ["--time-format '%d.%m.%Y %H:%M'"]),
        (["01/02/2024"], ["--time-format '%d/%m/%Y'", "--time-format '%m/%d/%Y'"]),
        (["01/02/2024", "12/31/2024"], ["--time-format '%m/%d/%Y'"]),
        (["Nov 21, 2024 1:02:03 PM"], ["--time-format '%b %d, %Y %I:%M:%S %p'"]),
        (["1732147200000"], ["--time-unit ms"]),
        (["soon", "9" * 5_000, "\0"], []),
    ],
)
def test_a_time_in_another_format_is_refused_with_the_option_that_reads_it(
    texts: list[str], options: list[str]
) -> None:
    """What reads most of the times, and all such options; it reads them indeed."""
    times, errors = read_file_times(pa.array(texts), "iso", None, None)
    assert times.null_count == len(texts) == len(errors)
    named = [set(re.findall(r"--time-\w+ (?:'[^']+'|\w+)", error)) for error in errors.values()]
    assert named[0] == {*options}
    assert all(
        (text[:1].isalnum() and text != "soon" and bool(options)) == bool(each)
        for text, each in zip(texts, named, strict=True)
    )
    for option in options:
        name, _, value = option.partition(" ")
        given = ("iso", value.strip("'"), None) if name == "--time-format" else (value, None, None)
        assert len(read_file_times(pa.array(texts), *given)[1]) == named.count(set())


def test_a_number_of_days_says_what_to_do_in_the_spreadsheet() -> None:
    """No option reads it: the export has to change."""
    _, errors = read_file_times(pa.array(["45292", "45292.75", "4529"]), "iso", None, None)
    assert ["format the column as dates" in errors[row] for row in range(3)] == [True, True, False]


def test_a_time_of_another_form_is_named(tmp_path: Path) -> None:
    """With the form that was expected; an unknown format or zone is refused first."""
    (tmp_path / "a.csv").write_text("seller,at\na,soon\n")
    for options, message in (
        ({"time_format": "%d.%m.%Y"}, "row 1, column 'at': 'soon' is not a time in the format '%d.%m.%Y'"),
        ({"time_unit": "rfc2822"}, "row 1, column 'at': 'soon' is not a time as in mail"),
    ):
        with pytest.raises(UsageError, match=message):
            _events(tmp_path / "a.csv", ColumnMapping("seller", "at", action_type="A", **options))
    with pytest.raises(UsageError, match="'Berlin' is not a time zone"):
        ColumnMapping("seller", "at", action_type="A", time_zone="Berlin")
    with pytest.raises(UsageError, match="'%q' is not a time format"):
        ColumnMapping("seller", "at", action_type="A", time_format="%q")


def test_numbers_of_an_array_keep_their_digits(tmp_path: Path) -> None:
    """As written: 1.10 is not 1.1, and an id of thirty digits has thirty."""
    (tmp_path / "a.json").write_text('[{"u": 123456789012345678901234567890, "at": "2024-01-01",\n "n": 1.10}]')
    ((_, user, _, _, metadata),) = _events(
        tmp_path / "a.json", ColumnMapping("u", "at", "iso", "A", None, (("n", "n"),))
    )
    assert (user, metadata) == ("123456789012345678901234567890", "[('n', '1.10')]")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[{}, {]", "after row"), ("[1, 2]", "row 1 is not one JSON object"), ('[{"a": 1}', "after row")],
)
def test_a_broken_array_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """With the row before it, or of it."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        _events(tmp_path / "a.json")


def test_an_event_of_github_is_mapped_by_dotted_names(tmp_path: Path) -> None:
    """Through objects of any depth."""
    (tmp_path / "gh.ndjson").write_text(
        '{"id":"1","type":"PullRequestReviewEvent","actor":{"id":7,"login":"ana"},"payload":{"review":{"state":"approved"},'
        '"pull_request":{"user":{"login":"bob"}}},"created_at":"2024-01-15T14:00:00Z"}\n'
    )
    mapping = ColumnMapping(
        "payload.pull_request.user.login", "created_at", "iso", None, "type",
        (("state", "payload.review.state"), ("reviewer", "actor.id")), "id",
    )  # fmt: skip
    assert [row[:3] + row[4:] for row in _events(tmp_path / "gh.ndjson", mapping)] == [
        ("1", "bob", "PullRequestReviewEvent", "[('state', 'approved'), ('reviewer', '7')]")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("'948dd41f-5244-4083-a72b-32c26233020b'::UUID", "948dd41f-5244-4083-a72b-32c26233020b"),
        ("""'{"a":1}'::JSON""", '{"a":1}'),
    ],
    ids=["uuid", "json"],
)
def test_uuid_and_json_of_parquet_are_text(tmp_path: Path, sql: str, text: str) -> None:
    """As DuckDB writes them: as metadata, where they are not mapped, and a UUID as an id."""
    path = tmp_path / "a.parquet"
    duckdb.sql(f"COPY (SELECT 's0' AS seller, TIMESTAMP '2024-01-01' AS at, {sql} AS x) TO '{path}'")
    for metadata in ((("x", "x"),), ()):
        (events,) = read_events(path, ColumnMapping("seller", "at", "iso", "A", metadata=metadata))
        assert events["user_id"].to_pylist() == ["s0"]
        assert events["metadata"].to_pylist() == [[(name, text) for name, _ in metadata]]
    as_id = read_events(path, ColumnMapping("x", "at", "iso", "A"))
    if text.startswith("{"):
        with pytest.raises(UsageError, match="is a list or an object, not an id"):
            next(as_id)
    else:
        assert next(as_id)["user_id"].to_pylist() == [text]


def test_all_data_files_of_a_delta_table_are_read(tmp_path: Path) -> None:
    """Whatever their names, as its log says; a name that no file can have is an error of the table."""
    table = tmp_path / "table"
    write_deltalake(table, _TABLE)
    [log] = (table / "_delta_log").glob("*.json")
    [file] = table.glob("*.parquet")
    file.rename(table / "_a.parquet")
    log.write_text(log.read_text().replace(file.name, "_a.parquet"))
    assert find_files([table]) == [str(table / "_a.parquet")]
    log.write_text(log.read_text().replace("_a.parquet", "a%00"))
    with pytest.raises(UsageError, match="has a NUL, which no file name has"):
        find_files([table])
    with pytest.raises(UsageError, match="has a NUL, which no file name has"):
        find_files(["a\0.csv"])


def test_a_folder_has_no_unfinished_files_and_no_missing_ones(tmp_path: Path) -> None:
    """What Jupyter and Spark leave in hidden folders is no data; a link to nothing, or a lost data file, is said."""
    folder = tmp_path / "folder"
    names = ["a.csv", ".ipynb_checkpoints/a.csv", "_temporary/0/b.csv", "_year=2024/c.csv", "d/_e.csv", "d/f.csv"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_CSV)
    shown = [str(folder / name) for name in ("_year=2024/c.csv", "a.csv", "d/f.csv")]
    assert find_files([folder]) == find_files([f"{folder}/**/*.csv"]) == shown
    assert find_files([f"{folder}/_temporary/*/*.csv"]) == find_files([folder / "_temporary/0"]), "if asked for"
    (folder / "gone.csv").symlink_to(folder / "nothing")
    for address in (folder, f"{folder}/*"):
        with pytest.raises(UsageError, match=r"gone\.csv: the file .*nothing is missing: restore it"):
            find_files([address])
    write_deltalake(tmp_path / "table", _TABLE)
    next((tmp_path / "table").glob("*.parquet")).unlink()
    with pytest.raises(UsageError, match=r"\.parquet is missing: restore it"):
        find_files([tmp_path / "table"])


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are not left out; and one whose name is not UTF-8 is named, which ended the load with a traceback."""
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    (tmp_path / "a.csv").write_text(_CSV)
    for address in ("", "*/*.csv", "**/*.csv", "**"):
        with pytest.raises(UsageError, match=r"locked/?: Permission denied"):
            find_files([tmp_path / address])
    assert find_files([tmp_path / "*.csv"]) == [str(tmp_path / "a.csv")]
    (tmp_path / "locked").rmdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).write_text(_CSV)
    with pytest.raises(UsageError, match=r"udcff\.csv' is not a name in UTF-8: rename the file"):
        find_files([tmp_path])


@pytest.mark.parametrize("name", ["a.orc", "a.arrow", "a.avro", "a.parquet"])
def test_a_damaged_table_says_in_a_line_that_it_cannot_be_read(tmp_path: Path, name: str) -> None:
    """A library's own words, such as a position or all of a schema, are not a message."""
    schema = json.dumps({"type": "recorD", "name": "R" * 5_000}).encode()
    size = bytes([len(schema) * 2 & 127 | 128, len(schema) * 2 >> 7])
    (tmp_path / name).write_bytes(b"Obj\x01\x02\x16avro.schema" + size + schema + bytes(17))
    with pytest.raises(UsageError, match=f"cannot be read as {name[2:]}: ") as refused:
        _events(tmp_path / name)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("city", ["New York", "a/b", "J\u00fclich", "100%", "a%20b", ".."])
def test_a_delta_table_is_read_whatever_its_partitions_are_called(tmp_path: Path, city: str) -> None:
    """Its writer encodes the values in the names of folders, and its log encodes these names once more."""
    write_deltalake(tmp_path / "table", _TABLE.append_column("city", [[city] * 12]), partition_by=["city"])
    mapping = ColumnMapping("seller", "at", "iso", "Rated", None, (("city", "city"),))
    [file] = find_files([tmp_path / "table"])
    assert [event["metadata"] for table in read_events(Path(file), mapping) for event in table.to_pylist()] == [
        [("city", city)]
    ] * 12


@pytest.mark.parametrize(
    "path",
    [
        "../private.csv",
        "..%2Fprivate.csv",
        "%2e%2e/private.csv",
        "a/../../private.csv",
        "/private.csv",
        "file:///private.csv",
        "s3://bucket/private.csv",
        "s3%3A//bucket/private.csv",
    ],
)
def test_a_delta_table_has_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    """Who wrote the table would choose which files of its reader are loaded."""
    (tmp_path / "private.csv").write_text(_CSV)
    write_deltalake(tmp_path / "table", _TABLE)
    [log] = (tmp_path / "table" / "_delta_log").glob("*.json")
    [file] = (tmp_path / "table").glob("*.parquet")
    log.write_text(log.read_text().replace(file.name, path))
    with pytest.raises(UsageError, match=r"its log names the file '.*private\.csv', which is outside"):
        find_files([tmp_path / "table"])


def test_a_data_file_of_a_delta_table_is_no_link(tmp_path: Path) -> None:
    """As one outside: the log may be right while the file leads elsewhere."""
    (tmp_path / "private.csv").write_text(_CSV)
    write_deltalake(tmp_path / "table", _TABLE)
    [file] = (tmp_path / "table").glob("*.parquet")
    file.unlink()
    file.symlink_to(tmp_path / "private.csv")
    with pytest.raises(UsageError, match=r"a link out of the folder .*table, to .*private\.csv"):
        find_files([tmp_path / "table"])
