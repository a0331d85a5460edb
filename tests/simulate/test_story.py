"""The four users whose reputation is easy to follow by hand."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipelines.simulate.story import BOMBED_USER, STORY_IDS, story

_IDS = pa.array(map(str, range(STORY_IDS)))
_MIDNIGHT = datetime(2026, 11, 29, tzinfo=UTC)


@pytest.mark.parametrize("length", [timedelta(days=90), timedelta(days=3)])
def test_the_bomb_is_on_one_day(length: timedelta) -> None:
    """At whatever time of the day a world ends: trends count ratings by UTC days."""
    for minute in range(0, 24 * 60, 3):
        end = _MIDNIGHT + timedelta(minutes=minute)
        events = story(round(end.timestamp() * 1e6), round(length / timedelta(microseconds=1)), _IDS).to_pylist()
        of_heidi = [event for event in events if event["user_id"] == BOMBED_USER]
        bomb = [each for each in of_heidi if dict(each["metadata"]).get("rater_id", "").startswith("stranger-")]
        assert len(bomb) == 10
        assert len({each["event_time"].date() for each in bomb}) == 1, end
