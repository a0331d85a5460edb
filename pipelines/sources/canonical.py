"""One text for one value, however a format writes it: what the ids of rows without an id are made of.

CSV has 4.0, 4.00 or 4, Parquet a float or an integer, JSON any of them; a time is text, or a number with a type. Only
ids are made of this text: events keep what the file says.
"""

from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import TIMESTAMP
from pipelines.contract.times import read_times

pc: Any = compute  # its functions are made at import, where pyright does not see them
_MOST_DIGITS = 100
_POINT = r"^-?(?:0|[1-9][0-9]*)\.[0-9]+$"
_ALL_ZEROS = r"^(-?[0-9]+)\.0+$"
_LAST_ZEROS = r"^(-?[0-9]+\.[0-9]*[1-9])0+$"
_EXPONENT = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][-+]?[0-9]{1,3}$"
_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[-+][0-9]{2}:?[0-9]{2})?)?$"
)

_TRUTH = r"^(?:True|TRUE|False|FALSE)$"
_OTHERWISE = (
    r"^(?:-?[0-9]+\.[0-9]*0|-?[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]+|-0|[TF][a-zA-Z]+|[0-9]{4}-[0-9]{2}-[0-9]{2}.*)$"
)
"""What may have to be written in another way: one look at most texts."""


def canonical(texts: pa.Array) -> pa.Array:
    """Return each text in the one way that its value is written here; what is no number, time or truth value stays.

    Integers have no point, fractions no zeros at their end, neither an exponent; times are microseconds in UTC.
    """
    return _replaced(texts, pc.match_substring_regex(texts, _OTHERWISE), _in_one_way)


def _in_one_way(texts: pa.Array) -> pa.Array:
    texts = _replaced(texts, pc.match_substring_regex(texts, _POINT), _without_zeros)
    texts = _replaced(texts, pc.match_substring_regex(texts, _EXPONENT), _written_out)
    texts = _replaced(texts, pc.match_substring_regex(texts, _TIME), _in_utc)
    texts = _replaced(texts, pc.match_substring_regex(texts, _TRUTH), pc.ascii_lower)
    return pc.if_else(pc.equal(texts, "-0"), "0", texts)


def time_text(times: pa.Array) -> pa.Array:
    """Return TIMESTAMP values as ISO 8601 in UTC, without a fraction that is zero; nulls as empty texts."""
    texts = pc.strftime(times, format="%Y-%m-%dT%H:%M:%SZ")
    return pc.fill_null(pc.replace_substring_regex(texts, pattern=r"\.0+Z$", replacement="Z"), "")


def float_text(values: pa.Array) -> pa.Array:
    """Return floats as the shortest digits that mean them, without point or exponent where there is no fraction."""
    texts = pc.if_else(pc.is_nan(values), None, values).cast(pa.string())
    texts = _replaced(texts, pc.match_substring_regex(texts, _EXPONENT), _written_out)
    return _replaced(texts, pc.match_substring_regex(texts, _POINT), _without_zeros)


def _replaced(texts: pa.Array, mask: pa.Array, change: Any) -> pa.Array:
    mask = pc.fill_null(mask, fill_value=False)
    if not pc.any(mask, min_count=0).as_py():
        return texts
    return pc.replace_with_mask(texts, mask, change(texts.filter(mask)))


def _without_zeros(texts: pa.Array) -> pa.Array:
    texts = pc.replace_substring_regex(texts, pattern=_ALL_ZEROS, replacement=r"\1")
    return pc.replace_substring_regex(texts, pattern=_LAST_ZEROS, replacement=r"\1")


def _written_out(texts: pa.Array) -> pa.Array:
    written = [text if len(text) > _MOST_DIGITS else format(Decimal(text), "f") for text in texts.to_pylist()]
    return _without_zeros(pa.array(written, pa.string()))


def _in_utc(texts: pa.Array) -> pa.Array:
    times, errors = read_times(texts, "iso")
    return pc.if_else(pc.is_null(times), texts, time_text(times)) if errors else time_text(times.cast(TIMESTAMP))
