"""Options that several commands share."""

from datetime import UTC, datetime

import pytest

from pipelines.cli.options import instant, time_of
from pipelines.errors import UsageError


def test_now_is_a_time() -> None:
    """`now` is this moment; days and ISO 8601 are read as before, and an option that is not given has no time."""
    before = datetime.now(UTC)
    assert before <= time_of("now") <= datetime.now(UTC)
    assert instant("2026-01-31") == time_of("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert instant(None) is None


def test_another_word_is_refused() -> None:
    """The message says how a time is written."""
    with pytest.raises(UsageError, match="'yesterday' is not a time: write it like"):
        time_of("yesterday")
