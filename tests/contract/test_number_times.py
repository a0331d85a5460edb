"""Times as numbers: what is parsed in bulk is what Python's decimals say, and no text ends the process."""

import math
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.contract.times import TimeUnit, read_times

_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": Fraction(1, 1000)}
_YEAR_1, _YEAR_9999 = -62_135_596_800_000_000, 253_402_300_799_999_999
_DIGITS = st.sampled_from(["", "0", "7", "1289241911", "9" * 19, "9" * 20, "1" * 38, "5" + "0" * 38, "1" + "0" * 300])
_SIGNS = st.sampled_from(["", "-", "+"])
_FRACTIONS = st.sampled_from(["", ".", ".5", f".{'0' * 60}1"])
_EXPONENTS = st.sampled_from(["", "", "e9", "E+09", "e-3", "e99"])
_NUMBERS = st.builds("{}{}{}{}".format, _SIGNS, _DIGITS, _FRACTIONS, _EXPONENTS)
_UNITS = st.sampled_from(["s", "ms", "us", "ns"])


@given(st.lists(st.none() | _NUMBERS, max_size=4), _UNITS)
@example(["1" + "0" * 300], "s")
@example([".5"], "s")
@example([".5", "soon"], "s")
def test_a_number_is_its_time_or_an_error_beside_any_other(texts: list[str | None], unit: TimeUnit) -> None:
    """It is exact, rounded down, and a number of too many digits never wraps around to another time."""
    times, errors = read_times(pa.array(texts, pa.string()), unit)
    for row, (text, time) in enumerate(zip(texts, times.cast(pa.int64()).to_pylist(), strict=True)):
        alone, _ = read_times(pa.array([text], pa.string()), unit)
        assert alone.cast(pa.int64())[0].as_py() == time
        assert (row in errors) == (text is not None and time is None)
        if text is not None and time is not None:
            exact = math.floor(Fraction(text) * _MICROSECONDS[unit])
            assert time == exact
            assert _YEAR_1 <= exact <= _YEAR_9999


@pytest.mark.parametrize("text", ["1.5e-999999999", "0e-999999999", "1e999999999", f"0.{'0' * 20_000_000}"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_an_endless_exponent_is_an_error(text: str, unit: TimeUnit) -> None:
    """Arrow's decimals end the process at some of them (`not-blocked`)."""
    times, errors = read_times(pa.array(["1", text, "2"]), unit)
    assert (times.null_count, [*errors]) == (1, [1])
