"""Canonical text of values, independent of the file format: the input of generated event ids.

CSV has 4.0, 4.00 or 4, Parquet a float or an integer, JSON any of them; a time is text, or a number with a type. Only
generated ids use canonical text: events keep the text of the file.
"""

from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP
from pipelines.sources.nested import canonical_json

pc: Any = compute  # its functions are generated at import, invisible to pyright
_MAX_CHARS = 100
_DECIMAL = r"^-?(?:0|[1-9][0-9]*)\.[0-9]+$"
_ZERO_FRACTION = r"^(-?[0-9]+)\.0+$"
_TRAILING_ZEROS = r"^(-?[0-9]+\.[0-9]*[1-9])0+$"
_EXPONENT = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][-+]?[0-9]{1,3}$"
_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[-+][0-9]{2}:?[0-9]{2})?)?$"
)
_BOOLEAN = r"^(?:True|TRUE|False|FALSE)$"
_NESTED = r"^[{\[]"
_NOT_CANONICAL = (
    r"^(?:-?[0-9]+\.[0-9]*0|-?[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]+|-0|[TF][a-zA-Z]+|[0-9]{4}-[0-9]{2}-[0-9]{2}.*)$"
    r"|^[{\[]"
)
"""Text that may need rewriting: most texts are tested only once."""


def canonicalize(texts: pa.Array) -> pa.Array:
    """Return numbers, times, booleans and JSON in canonical text; leave other text unchanged.

    Numbers have no exponent, integers no decimal point, fractions no trailing zeros, also within JSON. Times
    are ISO 8601 in UTC with microseconds.
    """
    return _replace_where(texts, pc.match_substring_regex(texts, _NOT_CANONICAL), _canonical_form)


def _canonical_form(texts: pa.Array) -> pa.Array:
    texts = _replace_where(texts, pc.match_substring_regex(texts, _DECIMAL), _strip_zeros)
    texts = _replace_where(texts, pc.match_substring_regex(texts, _EXPONENT), _expand_exponent)
    texts = _replace_where(texts, pc.match_substring_regex(texts, _TIME), _to_utc)
    texts = _replace_where(texts, pc.match_substring_regex(texts, _BOOLEAN), pc.ascii_lower)
    texts = _replace_where(texts, pc.match_substring_regex(texts, _NESTED), _canonical_nested)
    return pc.if_else(pc.equal(texts, "-0"), "0", texts)


def time_text(times: pa.Array) -> pa.Array:
    """Return times as ISO 8601, in UTC or without a zone, and without a zero fraction; nulls become empty strings."""
    texts = pc.strftime(times, format="%Y-%m-%dT%H:%M:%SZ" if times.type.tz else "%Y-%m-%dT%H:%M:%S")
    return pc.fill_null(pc.replace_substring_regex(texts, pattern=r"\.0+(Z?)$", replacement=r"\1"), "")


def float_text(values: pa.Array) -> pa.Array:
    """Return floats as their shortest digits that round-trip, without an exponent or a zero fraction; NaN is null."""
    texts = pc.if_else(pc.is_nan(values), None, values).cast(pa.string())
    texts = _replace_where(texts, pc.match_substring_regex(texts, _EXPONENT), _expand_exponent)
    return _replace_where(texts, pc.match_substring_regex(texts, _DECIMAL), _strip_zeros)


def decimal_text(values: pa.Array) -> pa.Array:
    """Return decimals with all digits of their scale, without an exponent: Arrow writes a small one as 0E-7."""
    texts = values.cast(pa.string())
    return _replace_where(texts, pc.match_substring(texts, "E"), _plain_digits)


def _plain_digits(texts: pa.Array) -> pa.Array:
    return pa.array([f"{Decimal(text):f}" for text in texts.to_pylist()], pa.string())


def _replace_where(texts: pa.Array, mask: pa.Array, change: Any) -> pa.Array:
    mask = pc.fill_null(mask, fill_value=False)
    if not pc.any(mask, min_count=0).as_py():
        return texts
    return pc.replace_with_mask(texts, mask, change(texts.filter(mask)))


def _strip_zeros(texts: pa.Array) -> pa.Array:
    texts = pc.replace_substring_regex(texts, pattern=_ZERO_FRACTION, replacement=r"\1")
    return pc.replace_substring_regex(texts, pattern=_TRAILING_ZEROS, replacement=r"\1")


def _expand_exponent(texts: pa.Array) -> pa.Array:
    written = [text if len(text) > _MAX_CHARS else format(Decimal(text), "f") for text in texts.to_pylist()]
    return _strip_zeros(pa.array(written, pa.string()))


def _canonical_nested(texts: pa.Array) -> pa.Array:
    return pa.array(list(map(canonical_json, texts.to_pylist())), pa.string())


def _to_utc(texts: pa.Array) -> pa.Array:
    from pipelines.contract.times import read_times  # noqa: PLC0415 - loads numba, half of the start of a table worker

    times, errors = read_times(texts, "iso")
    return pc.if_else(pc.is_null(times), texts, time_text(times)) if errors else time_text(times.cast(TIMESTAMP))
