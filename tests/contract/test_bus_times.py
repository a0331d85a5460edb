"""Record times are bounded once, at the door: what is no time is null, for every reader."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.schema import TIMESTAMP
from pipelines.contract.times import bus_times

_FIRST, _LAST = 946_684_800_000, 253_402_214_400_000
"""2000-01-01 and 9999-12-31, in milliseconds since 1970."""


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 0, _FIRST - 1, _FIRST, _LAST, _LAST + 1])))
def test_a_record_time_is_a_time_or_null(milliseconds: list[int]) -> None:
    """Within [2000-01-01, 9999-12-31] it is kept to the millisecond; -1, 0, ns and us counted as ms are null."""
    times = bus_times(np.array(milliseconds, np.int64))
    assert times.type == TIMESTAMP
    assert times.cast(pa.int64()).to_pylist() == [ms * 1_000 if _FIRST <= ms <= _LAST else None for ms in milliseconds]
