"""The sheets of an Excel workbook as tables: which of them are read, and what is lost where Excel has no value."""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from functools import reduce
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import compute

from pipelines.boundary.extras import extra
from pipelines.sources.dialect import has_names
from pipelines.sources.refused import RefusedError
from pipelines.sources.text_columns import MAX_EXACT_FLOAT, NOTE

pc: Any = compute  # its functions are generated at import, invisible to pyright
_BLOCK_BYTES = 1024 * 1024
_MAX_ROWS_ABOVE_HEADER = 20
"""Of Excel: a title, who exported it, and blank rows."""
_MAX_SHOWN_SHEETS = 20
_MANY_DIGITS = "^-?[0-9]{16,30}$"
_ZIP = b"PK\x03\x04"
_WORKBOOKS = (_ZIP, b"\xd0\xcf\x11\xe0")
"""How workbooks begin: ZIP archives, and those of Excel before 2007."""
_WORKSHEETS = "xl/worksheets/"
_FORMULA_WITHOUT_VALUE = re.compile(
    rb"""<(?:\w+:)?c\b(?![^>]*\bt=["']str)[^>]*>\s*<(?:\w+:)?f\b[^>]*(?:/>|>[^<]*</(?:\w+:)?f>)\s*"""
    rb"""(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"""
)
"""A cell of a sheet; an empty text is a value, and has the type `str`."""


def excel_batches(path: str, chunk_rows: int, names: Collection[str], ids: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all sheets that have the mapped names, or the columns of the first sheet if none are mapped."""
    with extra("excel", "an Excel file"):
        fastexcel: Any = import_module("fastexcel")
    content = Path(path).read_bytes()  # its reader finds the kind of a workbook in it, and from a path in its name
    if not content.startswith(_WORKBOOKS):
        raise RefusedError(
            "it is no workbook, though it is called one: save it as .xlsx, or give --format csv for text"
        )
    book = fastexcel.read_excel(content)
    sheets, note = _sheets(book, names)
    tables, failed = _sheet_tables(book, sheets, fastexcel.UnsupportedColumnTypeCombinationError)
    table = pa.concat_tables(tables, promote_options="default")
    table = table.filter(_has_values(table))
    for name in set(ids) & set(table.column_names):
        _check_digits(book, sheets, name, table[name], fastexcel.UnsupportedColumnTypeCombinationError)
    notes = filter(None, [note, _note_of_errors(failed), _note_of_formulas(content)])
    table = table.replace_schema_metadata({NOTE: ", ".join(notes).encode()})
    yield from table.to_batches(chunk_rows) or [pa.RecordBatch.from_pylist([], table.schema)]  # its columns are checked


def _has_values(table: pa.Table) -> pa.ChunkedArray:
    """Return whether each row has a value: one cell far below the others makes a million rows without."""
    return reduce(pc.or_, (pc.is_valid(column) for column in table.columns))


def _sheets(book: Any, names: Collection[str]) -> tuple[dict[str, int], str]:
    """Return the number of the header row by the name of each sheet that is read, and a note about several sheets.

    The header is the first of the rows on top that has the mapped names, as below a title. If no sheet has them, or
    none are mapped, the first one is read that has several columns, unlike a cover; an error says what it has.
    """
    tops = {sheet: top for sheet in book.sheet_names if (top := _top_rows(book, sheet))}
    if not tops:
        raise RefusedError("it is empty: the first row must name the columns")
    first = next((sheet for sheet, top in tops.items() if sum(map(bool, top[0])) > 1), next(iter(tops)))
    wanted = names or [name for name in tops[first][0] if name]
    found = {sheet: _header_row(top, wanted) for sheet, top in tops.items()}
    read = {sheet: row for sheet, row in found.items() if row is not None} or {first: 0}
    for sheet, row in read.items():
        twice = [name for name, count in Counter(tops[sheet][row]).items() if count > 1 and name in wanted]
        if twice:
            raise RefusedError(f"sheet {sheet!r}: several columns are named {twice[0]!r}: rename one")
    others = [sheet for sheet in tops if sheet not in read]
    note = f"{len(read)} of {len(tops)} sheets are read: {_shown(read)}"
    return read, f"{note}; without the columns: {_shown(others)}" if others else note * (len(read) > 1)


def _shown(sheets: Collection[str]) -> str:
    more = ", ..." if len(sheets) > _MAX_SHOWN_SHEETS else ""
    return f"{', '.join(map(repr, islice(sheets, _MAX_SHOWN_SHEETS)))}{more}"


def _top_rows(book: Any, sheet: str) -> list[list[str]]:
    """Return the rows on top of a sheet as text; none of an empty sheet, or one of charts."""
    top = book.load_sheet(sheet, header_row=None, skip_rows=0, n_rows=_MAX_ROWS_ABOVE_HEADER + 1, dtypes="string")
    columns = [column.to_pylist() for column in top.to_arrow().columns] if top.width else []
    return [[text or "" for text in row] for row in zip(*columns, strict=True)]


def _header_row(top: list[list[str]], names: Collection[str]) -> int | None:
    return next((number for number, row in enumerate(top) if has_names(row, names)), None)


def _sheet_tables(book: Any, sheets: dict[str, int], unsupported: type[Exception]) -> tuple[list[pa.Table], list[str]]:
    """Return the rows of sheets, as text unless each column has one type in all of them, and where cells have errors.

    A place is like "column 'n' of sheet 'a'", once for each cell.
    """
    try:
        tables, failed = _read_sheets(book, sheets)
        pa.unify_schemas([table.schema for table in tables])
    except (unsupported, pa.ArrowInvalid, pa.ArrowTypeError):
        return _read_sheets(book, sheets, dtypes="string")
    return tables, failed


def _read_sheets(book: Any, sheets: dict[str, int], **options: Any) -> tuple[list[pa.Table], list[str]]:
    tables: list[pa.Table] = []
    failed: list[str] = []
    for sheet, row in sheets.items():
        found, errors = _load_sheet(book, sheet, row, **options).to_arrow_with_errors()
        tables.append(pa.Table.from_batches([found]))
        cells = [error for error in (errors.errors if errors else ()) if "Error(" in error.detail]  # others are blank
        failed += [f"column {found.schema.names[cell.offset_position[1]]!r} of sheet {sheet!r}" for cell in cells]
    return tables, failed


def _load_sheet(book: Any, sheet: str, row: int, **options: Any) -> Any:
    return book.load_sheet(sheet, header_row=row, schema_sample_rows=None, **options)


def _note_of_errors(places: Sequence[str]) -> str:
    """Return what becomes of the cells with errors at these places; empty if there are none."""
    if not places:
        return ""
    return f"cells with an error such as #N/A, which count as empty: {len(places):,}, first in {places[0]}"


def _note_of_formulas(content: bytes) -> str:
    """Return that formulas of an .xlsx file have no value, as programs write them that compute none; else empty."""
    count = 0
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if name.startswith(_WORKSHEETS) and name.endswith(".xml"):
                    with archive.open(name) as sheet:
                        count += _formulas_without_value(sheet)
    said = "formulas without a value, which count as empty until the workbook is opened in a spreadsheet and saved"
    return f"{said}: {count:,}" if count else ""


def _formulas_without_value(sheet: IO[bytes]) -> int:
    count, rest = 0, b""
    while block := sheet.read(_BLOCK_BYTES):
        cells, end, rest = (rest + block).rpartition(b"c>")
        count += len(_FORMULA_WITHOUT_VALUE.findall(cells + end))
    return count


def _check_digits(
    book: Any, sheets: dict[str, int], name: str, values: pa.ChunkedArray, unsupported: type[Exception]
) -> None:
    """Raise RefusedError for an id of many digits that may be a number, as text beside others: its last are lost."""
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        return  # `check_id` knows floats
    long = pc.fill_null(pc.match_substring_regex(values, _MANY_DIGITS), fill_value=False)
    rounded = [row for row in pc.indices_nonzero(long).to_pylist() if _is_of_a_float(values[row].as_py())]
    if not rounded:
        return
    try:
        tables = [_load_sheet(book, *sheet, use_columns=[name], dtype_coercion="strict") for sheet in sheets.items()]
        if all(pa.types.is_string(table.to_arrow().schema.types[0]) for table in tables):
            return  # all of them are text
    except unsupported:
        pass
    raise RefusedError(
        f"row {rounded[0] + 1}, column {name!r}: {values[rounded[0]].as_py()} may be a number, of which Excel drops "
        "the last digits: write all ids of the column as text"
    )


def _is_of_a_float(digits: str) -> bool:
    """Return whether digits are as a float above 2^53 is written."""
    number = float(digits)
    return abs(number) > MAX_EXACT_FLOAT and digits in {f"{number:.0f}", f"{Decimal(repr(number)):f}"}
