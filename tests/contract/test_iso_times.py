"""ISO 8601 times: the compiled parser of the common forms agrees with Python's, which parses the others."""

from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.times import read_times

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PARTS = st.sampled_from([*"0123456789TtZz:.,-+ W", "2026", "00", "24", "60", "é", "\u0662", "+01:00", ".123"])


@st.composite
def _time_texts(draw: st.DrawFn) -> str:
    """Return an ISO 8601 time of any form, or one with a part replaced."""
    offset = draw(st.sampled_from(["", "Z", "+00:00", "+01:00", "-2359", "+05", "+24:00", "+01:60", "-00:00:30"]))
    year, month, day = draw(st.integers(0, 9999)), draw(st.integers(0, 13)), draw(st.integers(0, 32))
    time = f"{draw(st.integers(0, 24)):02}:{draw(st.integers(0, 60)):02}:{draw(st.integers(0, 60)):02}"
    fraction = draw(st.sampled_from(["", "", ".5", ".123456", ".1234567899", ",5", "."]))
    text = f"{year:04}-{month:02}-{day:02}{draw(st.sampled_from('TT t'))}{time}{fraction}{offset}"
    if draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(_PARTS) + text[at + draw(st.integers(0, 2)) :]


@given(st.lists(st.none() | _time_texts(), max_size=8))
def test_times_are_what_python_reads(texts: list[str | None]) -> None:
    """The compiled parser accepts nothing that `datetime.fromisoformat` does not, and reads the same time."""
    times, errors = read_times(pa.array(texts, pa.string()), "iso")
    assert times.cast(pa.int64()).to_pylist() == [None if text is None else _microseconds(text) for text in texts]
    assert sorted(errors) == [row for row, text in enumerate(texts) if text is not None and _microseconds(text) is None]


@given(st.integers(-62_100_000_000_000_000, 253_400_000_000_000_000), st.integers(-1439, 1439))
def test_any_time_at_any_offset(microseconds: int, offset: int) -> None:
    """A time has the same microseconds at each offset, in each common form."""
    local = (_EPOCH + timedelta(microseconds=microseconds)).astimezone(timezone(timedelta(minutes=offset)))
    texts = [local.isoformat(separator, "microseconds") for separator in "T "]
    texts += [f"{text[:-3]}{text[-2:].replace('00', '')}" for text in texts]
    assert read_times(pa.array(texts), "iso")[0].cast(pa.int64()).to_pylist() == [microseconds] * 4


def _microseconds(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    found = (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)
    return found if -62_135_596_800_000_000 <= found <= 253_402_300_799_999_999 else None
