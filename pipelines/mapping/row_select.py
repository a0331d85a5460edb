"""The SELECT of a source over the rows of files: the same worker process and fates as for the records of topics."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.decode import Decoded, validate_mapped
from pipelines.contract.parsing import Problem
from pipelines.errors import ConfigurationError, UsageError
from pipelines.mapping.decoder import describe_problem, join_problems
from pipelines.mapping.json_values import exact_json
from pipelines.mapping.sandbox import Sandbox
from pipelines.mapping.source_files import SourceFile
from pipelines.mapping.values import ValueSchema
from pipelines.settings import ContractSettings
from pipelines.sources.files import RowNumbering, row_digests
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import Rows

_NESTED = r"^[{\[]"


@dataclass(slots=True)
class RowSelect:
    """Rows as events by a SELECT. Its worker process starts on first use, and again after `close`."""

    source: SourceFile
    sandbox: Sandbox

    @property
    def reading(self) -> ReadOptions:
        """How the files are written."""
        return self.source.reading

    @property
    def number_rows(self) -> bool:
        """Whether equal rows are separate events."""
        return self.source.number_rows

    @property
    def makes_ids(self) -> bool:
        """Whether the event_id of a row is a digest of it."""
        return not (self.source.config.event_id_from or self.uses("event_id"))

    @property
    def id_columns(self) -> list[str]:
        """No column is known to hold ids."""
        return []

    def required_columns(self) -> list[str]:
        """Return nothing: the SELECT is checked against the columns that there are."""
        return []

    def uses(self, column: str) -> bool:
        """Return whether a name is a word of the SELECT."""
        return bool(re.search(rf"(?<!\w){re.escape(column)}(?!\w)", self.source.config.select, re.IGNORECASE))

    def digests(self, rows: Rows, numbering: RowNumbering) -> pa.Array:
        """Return what the event_ids of rows are made of, where the SELECT has none."""
        found = row_digests(rows)
        return numbering.number(found) if self.number_rows else found

    def decode(
        self, records: pa.Table, rows: Rows, digests: pa.Array, contract: ContractSettings, shown: str
    ) -> Decoded:
        """Return the fates of rows; `records` (RECORD columns) has their places, `shown` is the name of the file.

        Raises UsageError if the SELECT does not fit the columns.
        """
        values = _values(rows, shown)
        schema = ValueSchema.of_rows(pa.schema(list(values.type)))
        try:
            self.sandbox.prepare(schema)
        except ConfigurationError as error:
            raise UsageError(f"{shown}: {error}; its columns are {', '.join(map(repr, values.type.names))}") from None
        table = pa.table([rows.numbers, values, digests], ["row", "value", "digest"])
        (mapped,) = self.sandbox.map([(table, schema)])
        problems = {row: _placed(rows.place(row), describe_problem(*error)) for row, error in mapped.errors.items()}
        origins, parsed = join_problems(mapped.events, problems)
        return validate_mapped(records, origins, parsed, contract, datetime.now(UTC))

    def close(self) -> None:
        """End the worker process."""
        self.sandbox.close()


def open_row_select(source: SourceFile) -> RowSelect:
    """Return the SELECT of a source of files."""
    return RowSelect(source, Sandbox(source.config, str(source.path)))


def join_rows(chunks: list[Rows]) -> Rows:
    """Return chunks of one file, which have the same columns, as one."""
    numbers = np.concatenate([chunk.numbers.to_numpy() for chunk in chunks])
    return Rows(pa.concat_tables([chunk.columns for chunk in chunks]).combine_chunks(), pa.array(numbers, pa.int64()))


def _values(rows: Rows, shown: str) -> pa.Array:
    """Return rows as structs of the columns that have a text form; an empty text is NULL."""
    names = [name for name in rows.columns.column_names if rows.unreadable(name) is None]
    most, count = Counter(name.lower() for name in names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UsageError(f"{shown}: several columns are named {most!r}, but for capital letters: rename them")
    columns = [_readable(rows.columns[name].combine_chunks()) for name in names]
    if not columns:
        raise UsageError(f"{shown}: no column can be read as text: convert them first")
    return pa.StructArray.from_arrays(columns, names)


def _readable(values: pa.Array) -> pa.Array:
    """Return texts as DuckDB reads them without loss: NULL for an empty one, and objects and arrays as exact JSON."""
    if values.type != pa.string():
        return values
    is_nested = pc.match_substring_regex(values, _NESTED)
    if pc.any(is_nested, min_count=0).as_py():
        given = values.filter(is_nested)
        values = pc.replace_with_mask(values, is_nested, pc.coalesce(exact_json(given.cast(pa.binary()))[0], given))
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _placed(place: str, problem: Problem) -> Problem:
    return Problem(problem.reason, f"{place}: {problem.detail}")
