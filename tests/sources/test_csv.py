"""CSV is read exactly: what Python's csv says of a file, in whatever blocks it is read, or an error with the row."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.sources import csv_rows
from pipelines.sources.bounds import MAX_COLUMNS
from pipelines.sources.dialect import Dialect
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import count_rows, read_rows

_PARTS = st.sampled_from([*'ab",;\r\n\x00 é🚗', "\r\n", '""', "\u2028"])
_VALUES = st.lists(_PARTS, max_size=6).map("".join)
_BLOCKS = st.integers(1, 40)


@st.composite
def _written(draw: st.DrawFn) -> str:
    """Return a table as csv writes it, with any quoting and any end of a line."""
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(_VALUES, min_size=width, max_size=width), max_size=8))
    text = io.StringIO(newline="")
    options = {
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n", "\r"])),
    }
    csv.writer(text, **options).writerows([[f"c{n}" for n in range(width)], *rows])
    return text.getvalue()


_RAW = st.text('a,"\r\n', max_size=30).map(lambda text: f"c0,c1\n{text}")


def _by_python(text: str) -> list[list[str]] | None:
    """Return the rows behind the header that are not empty, or None if csv refuses the text, or a row is ragged."""
    try:
        header, *rows = filter(None, csv.reader(_lines(text), strict=True))
    except csv.Error:
        return None
    return rows if all(len(row) == len(header) for row in rows) else None


def _lines(text: str) -> list[str]:
    return [line.decode() for line in text.encode().splitlines(keepends=True)]


def _by_us(path: Path, comment: str | None = None) -> list[list[str]] | None:
    try:
        return [
            list(row)
            for _, table in csv_rows.read_csv(path, Dialect(comment=comment))
            for row in zip(*table.to_pydict().values(), strict=True)
        ]
    except UsageError:
        return None


@given(st.one_of(_written(), _RAW), _BLOCKS)
def test_any_csv_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, text: str, block_bytes: int
) -> None:
    """Quotes, CR, LF, CR LF, NUL and empty lines, cut into blocks anywhere: the same rows, or an error in both."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_BLOCK_BYTES", block_bytes)
        assert _by_us(path) == _by_python(text)


_COMMENTED = st.lists(
    st.sampled_from(["#\n", '# "\n', "1,2\n", '1,"\n', '#"\n', '#",2\n', "#\r\n", "\n"]), max_size=9
).map("".join)


@given(_COMMENTED, st.sampled_from(["a,b\n", '# c "\r\na,b\n']), _BLOCKS)
@example('1,"\n#\n"\n', "a,b\n", 40)
def test_a_line_of_a_quoted_value_is_no_comment(
    tmp_path_factory: pytest.TempPathFactory, text: str, header: str, block_bytes: int
) -> None:
    """A comment stands where a row could begin: rows are those of Python, of lines without comments there."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(header + text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_BLOCK_BYTES", block_bytes)
        assert _by_us(path, comment="#") == _by_python("a,b\n" + _without_comments(text))


def _without_comments(text: str) -> str:
    """Return lines without those that begin with # outside quotes, of which each text has whole ones."""
    kept, is_open = "", False
    for line in text.splitlines(keepends=True):
        if is_open or not line.startswith("#"):
            kept, is_open = kept + line, is_open ^ bool(line.count('"') % 2)
    return kept


def test_comments_count_as_lines(tmp_path: Path) -> None:
    """The line of an error is that of the file."""
    path = tmp_path / "a.csv"
    for text, message in (("# b\na,b\n#\n1,2\n#\n3\n", "row 2 .line 6."), ('a,b\n#\n1,"2\n', "row 1 .line 3.")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            list(csv_rows.read_csv(path, Dialect(comment="#")))


def test_a_quoted_line_break_keeps_every_byte(tmp_path: Path) -> None:
    """Wherever a block ends within CR LF: pyarrow's own reader loses the LF there."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\r\n"x\r\ny",1\r\n"x\r\n\r\ny",2\r\n')
    for block_bytes in range(1, 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_rows, "_BLOCK_BYTES", block_bytes)
            assert _by_us(path) == [["x\r\ny", "1"], ["x\r\n\r\ny", "2"]]


def test_a_byte_order_mark_within_a_file_is_kept(tmp_path: Path) -> None:
    """Wherever a block begins: only the one at the start of the file is not part of a cell."""
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa,b\n\ufeff,1\n\ufeffx,2\ny,\ufeff\n".encode())
    for block_bytes in range(1, 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_rows, "_BLOCK_BYTES", block_bytes)
            assert _by_us(path) == [["\ufeff", "1"], ["\ufeffx", "2"], ["y", "\ufeff"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n3,"four\n5,6\n7,8\n', r"row 2 \(line 3\): it has an unclosed quote"),
        ('a,b\n1,2\n3,"fo"ur\n', r"row 2 \(line 3\): a value continues after its closing quote: double quotes"),
        ('a,b\n1,"b"1"\n', r'row 1 \(line 2\): a value continues .* "" \(not \\"'),
        ('a,b\n"1\n\n1",2\n1\n', r"row 2 \(line 5\): has 1 value, and the header names 2 columns"),
        ("# by me\n1,2\n", r"row 1 \(line 2\): .* give --delimiter, or remove the lines above the header"),
        (f"{','.join(map(str, range(100_000)))}\n", f"has 100,000 columns; at most {MAX_COLUMNS:,} are read"),
        (f"a,{'b' * 2_000}\n1,2\n", "a column's name is longer than 1,024 bytes"),
        ('a,"b\n', r"the header \(line 1\): it has an unclosed quote"),
        (",,\n1,2,3\n", "several columns are named ''.*remove a title above it"),
    ],
)
def test_errors_name_row_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    """Also for `count_rows`, which no longer takes a reader's word for it."""
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    for read in (lambda: list(read_rows(path)), lambda: count_rows(path)):
        with pytest.raises(UsageError, match=message):
            read()


def test_another_encoding_beyond_the_first_lines_is_an_error(tmp_path: Path) -> None:
    """With the row of the first byte that is not UTF-8, and the option to give."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 100_000 + "3,é\n".encode("cp1252"))
    with pytest.raises(UsageError, match=r"row 100001 \(line 100002\): is not UTF-8: give --encoding, such as cp1252"):
        list(read_rows(path))
    *_, last = read_rows(path, ReadOptions(encoding="cp1252"))
    assert last.columns["b"].to_pylist()[-1] == "é"


def test_tabs_and_other_delimiters(tmp_path: Path) -> None:
    """A .tsv has tabs; any other file the one that is named."""
    for name, text, delimiter in (
        ("a.tsv", "a\tb\n1\t2\n", None),
        ("a.csv", "a;b\n1;2\n", ";"),
        ("hive", "a\x01b\n1\x012\n", "\x01"),
    ):
        path = tmp_path / name
        path.write_text(text)
        (rows,) = read_rows(path, ReadOptions(delimiter=delimiter))
        assert rows.columns.to_pydict() == {"a": ["1"], "b": ["2"]}


@pytest.mark.slow
def test_real_files_are_read_as_python_reads_them(
    bitcoin_otc: Path, stack_exchange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in blocks of a few lines."""
    monkeypatch.setattr(csv_rows, "_BLOCK_BYTES", 10_000)
    for path in (bitcoin_otc / "ratings.csv", stack_exchange):
        assert _by_us(path) == _by_python(path.read_text(encoding="utf-8"))
