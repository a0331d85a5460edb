"""Record timestamps are validated once, on input: a valid time, or null."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.schema import TIMESTAMP
from pipelines.contract.times import bus_times

FIRST_MS = 946_684_800_000
LAST_MS = 253_402_214_400_000


@given(st.lists(st.integers(-(2**70), 2**70) | st.integers(FIRST_MS - 2, LAST_MS + 2) | st.none()))
def test_a_time_is_exact_or_null(milliseconds: list[int | None]) -> None:
    """Between 2000-01-01 and 9999-12-31 the time is exact; outside, and on overflow, it is null."""
    times = bus_times(milliseconds)
    expected = [ms * 1000 if ms is not None and FIRST_MS <= ms <= LAST_MS else None for ms in milliseconds]
    assert times.type == TIMESTAMP
    assert times.cast(pa.int64()).to_pylist() == expected
    assert all(time is None or time.year >= 2000 for time in times.to_pylist())


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_an_array_gives_the_same_times_as_a_list(milliseconds: list[int]) -> None:
    """Bulk conversion gives the same result."""
    assert bus_times(np.array(milliseconds, np.int64)).equals(bus_times(milliseconds))


@pytest.mark.parametrize("factor", [1_000, 1_000_000])
def test_other_units_are_null(factor: int) -> None:
    """Microseconds and nanoseconds instead of milliseconds become null, not a wrong time."""
    now_ms = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000)
    assert bus_times([now_ms, now_ms * factor, now_ms // 1000, 0, -1]).null_count == 4
