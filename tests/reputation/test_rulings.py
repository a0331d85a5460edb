"""The rules of the default policy: one test each, with numbers computed by hand."""

from collections.abc import Sequence

import duckdb
import polars as pl
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scores import scores
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table

DEFAULT = load_policy("default")
SECOND = 1_000_000
START = NOW - 10 * DAY


def score(*events: Event, as_of: int = NOW) -> pl.DataFrame:
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        return scores(connection, DEFAULT, at(as_of))


def all_time(*events: Event, as_of: int = NOW) -> int:
    return score(*events, as_of=as_of)["all_time_score"][0]


def reasons(*events: Event) -> dict[str, str]:
    return {event_id: reason for event_id, (reason, _) in rulings(*events).items()}


def rulings(*events: Event) -> dict[str, tuple[str, str | None]]:
    """Return the reason and the related event of each event."""
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        scores(connection, DEFAULT, AS_OF)
        rows = connection.sql("SELECT event_id, reason, related_event_id FROM contribution").fetchall()
    assert len(rows) == len(events)
    return {event_id: (reason, related) for event_id, reason, related in rows}


def done(t: int, event_id: str = "done") -> Event:
    """Return an event that earns one point."""
    return Event(event_id, "ann", "TransactionCompleted", t)


def suspended(t: int, event_id: str = "s") -> Event:
    return Event(event_id, "ann", "AccountSuspended", t)


def reinstated(t: int, event_id: str = "r") -> Event:
    return Event(event_id, "ann", "AccountReinstated", t)


def retracted(t: int, target: str, user_id: str = "ann", event_id: str = "x") -> Event:
    return Event(event_id, user_id, "RatingRetracted", t, {"target_event_id": target})


def rated(rating: str, t: int = START, event_id: str = "rating") -> Event:
    return Event(event_id, "ann", "UserRated", t, {"rating": rating})


@pytest.mark.parametrize("days", DEFAULT.versions[0].windows_days)
@pytest.mark.parametrize(("shift", "inside"), [(-1, 0), (0, 1)])
def test_a_window_includes_its_first_microsecond(days: int, shift: int, inside: int) -> None:
    """A window is [as_of - N x 86,400 s, as_of): closed at its start."""
    row = score(done(NOW - days * DAY + shift))
    assert row[f"last_{days}_days_score"][0] == inside
    assert row["all_time_score"][0] == 1


def test_an_event_at_as_of_has_not_happened_yet() -> None:
    """Windows are open at their end: as_of itself belongs to the next moment."""
    assert score(done(NOW)).height == 0
    assert all_time(done(NOW - 1)) == 1


def test_times_keep_their_microseconds() -> None:
    """Times are whole microseconds, not floats, at any distance from 1970."""
    t = NOW + 123_457
    assert score(done(t), as_of=t).height == 0
    assert all_time(done(t), as_of=t + 1) == 1


@pytest.mark.parametrize(("t", "earned"), [(START - 1, 1), (START, 0), (START + DAY - 1, 0), (START + DAY, 1)])
def test_suspension_freezes_a_half_open_period(t: int, earned: int) -> None:
    """Events in [suspended, reinstated) earn nothing; at a tie the status event comes first."""
    assert all_time(suspended(START), reinstated(START + DAY), done(t)) == earned


def test_overlapping_suspensions_are_one() -> None:
    """A second suspension changes nothing; one reinstatement ends them all."""
    events = [
        suspended(START, "s1"),
        suspended(START + 2, "s2"),
        reinstated(START + 4),
        done(START + 3),
        done(START + 5, "d2"),
    ]
    assert all_time(*events) == 1
    assert reasons(*events) == {"s1": "status", "s2": "no effect", "r": "status", "done": "suspended", "d2": "granted"}


def test_reinstatement_without_suspension_is_a_counted_no_op() -> None:
    """It earns nothing, costs nothing, and has the reason `no effect`."""
    assert all_time(reinstated(START), done(START + 1)) == 1
    assert reasons(reinstated(START)) == {"r": "no effect"}


@pytest.mark.parametrize(("first", "second", "earned"), [("a", "b", 0), ("b", "a", 1)])
def test_status_events_at_one_moment_go_by_event_id(first: str, second: str, earned: int) -> None:
    """Reinstated and suspended in the same microsecond: the larger event_id comes last."""
    past = suspended(START - DAY, "0")
    assert all_time(past, reinstated(START, first), suspended(START, second), done(START + 1)) == earned


def test_status_is_that_of_as_of() -> None:
    """A suspension counts from its own event_time, not from when it arrived."""
    events = [suspended(START), reinstated(START + DAY), done(START - 1)]
    assert score(*events, as_of=START)["status"].to_list() == ["active"]
    assert score(*events, as_of=START + 1)["status"].to_list() == ["suspended"]
    assert score(*events, as_of=START + DAY + 1)["status"].to_list() == ["active"]


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_retraction_voids_its_target_before_and_after(shift: int) -> None:
    """The target earns nothing, whether the retraction is earlier or later."""
    assert all_time(done(START), retracted(START + shift, "done")) == 0


def test_a_second_retraction_changes_nothing() -> None:
    """The score is that without the target, not lower; the first retraction is the one that withdrew it."""
    events = [done(START), done(START, "other"), retracted(START, "done"), retracted(START + 1, "done", event_id="y")]
    assert all_time(*events) == 1
    assert score(*events)["all_time_events"][0] == 1
    assert rulings(*events) == {
        "done": ("retracted", "x"),
        "other": ("granted", None),
        "x": ("retraction", "done"),
        "y": ("no effect", "done"),
    }


def test_of_two_retractions_at_one_moment_the_smaller_event_id_is_the_first() -> None:
    """Rulings have the order of events, so that both engines and any order of arrival name the same one."""
    events = [retracted(START, "done", event_id="y"), done(START), retracted(START, "done", event_id="x")]
    assert rulings(*events) == {
        "done": ("retracted", "x"),
        "x": ("retraction", "done"),
        "y": ("no effect", "done"),
    }


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_retraction_stands(shift: int) -> None:
    """A retraction of it, earlier or later, has a reason of its own; the target stays retracted."""
    events = [done(START), retracted(START, "done"), retracted(START + shift, "x", event_id="y")]
    assert all_time(*events) == 0
    assert rulings(*events) == {
        "done": ("retracted", "x"),
        "x": ("retraction", "done"),
        "y": ("retraction stands", "x"),
    }


def test_a_retraction_counts_from_its_own_time() -> None:
    """As of a moment before the retraction the target still earns."""
    events = [done(START), retracted(START + SECOND, "done")]
    assert all_time(*events, as_of=START + SECOND) == 1
    assert all_time(*events, as_of=START + SECOND + 1) == 0


def test_a_retraction_by_another_user_has_no_effect() -> None:
    """Users can retract only their own events."""
    events = [done(START), retracted(START, "done", "bob")]
    assert score(*events)["all_time_score"].to_list() == [1, 0]
    assert rulings(*events) == {"done": ("granted", None), "x": ("no effect", "done")}


def test_a_retraction_without_a_target_is_without_effect() -> None:
    """A missing or unknown target changes no score, and neither does a status event: the reason says so."""
    lost = Event("y", "ann", "RatingRetracted", START)
    events = [done(START), retracted(START, "nothing"), lost, reinstated(START), retracted(START, "r", event_id="z")]
    assert all_time(*events) == 1
    assert rulings(*events) == {
        "done": ("granted", None),
        "r": ("no effect", None),
        "x": ("no effect", "nothing"),
        "y": ("no effect", None),
        "z": ("no effect", "r"),
    }


@pytest.mark.parametrize(
    "text", ["", " 5", "5 ", "5\n", "five", "5e0", "0x5", "1_0", "\u0665", "NaN", "11", "-11", "4.5", "9" * 40]
)
def test_an_unreadable_rating_earns_nothing(text: str) -> None:
    """Its reason is `unreadable`, and it counts neither as event nor as rating."""
    row = score(rated(text)).row(0, named=True)
    assert (row["all_time_score"], row["all_time_events"], row["all_time_rating_average"]) == (0, 0, None)
    assert reasons(rated(text)) == {"rating": "unreadable"}


@pytest.mark.parametrize(
    ("text", "earned"),
    [("5", 5), ("+5", 5), ("-5", -5), ("05", 5), ("5.0", 5), ("5.0000000", 5), ("0.0000000", 0), ("-10", -10)],
)
def test_a_plain_decimal_number_is_a_rating(text: str, earned: int) -> None:
    """Signs, leading zeros and trailing zeros are accepted."""
    assert all_time(rated(text)) == earned


def test_a_missing_rating_is_unreadable() -> None:
    """An event without the rating that its rule needs earns nothing."""
    assert reasons(Event("e", "ann", "DriverRated", START)) == {"e": "unreadable"}


def test_an_unknown_action_earns_nothing_but_makes_a_user() -> None:
    """A user exists from their first event on; the sum of no events is 0, the mean of no ratings is null."""
    row = score(Event("e", "ann", "Waved", START)).row(0, named=True)
    assert (row["user_id"], row["status"], row["all_time_score"], row["all_time_events"]) == ("ann", "active", 0, 0)
    assert (row["all_time_rating_average"], row["all_time_rating_count"]) == (None, 0)
    assert reasons(Event("e", "ann", "Waved", START)) == {"e": "no rule"}


def test_no_events_no_users() -> None:
    """An empty history has no rows, and all the columns."""
    frame = score()
    assert frame.height == 0
    assert frame.columns[:4] == ["user_id", "status", "all_time_score", "all_time_events"]


@pytest.mark.parametrize(
    "user_id", ["", "'; DROP TABLE events; --", '"', "a\0b", "👩‍🚀", "x" * 65_536, "$shown", "a\nb"]
)
def test_user_ids_are_only_ever_values(user_id: str) -> None:
    """A hostile user_id is scored like any other."""
    frame = score(Event("e", user_id, "TransactionCompleted", START))
    assert frame.select("user_id", "all_time_score").rows() == [(user_id, 1)]


def test_users_are_ordered_by_their_bytes() -> None:
    """The order of the rows does not depend on a locale."""
    users: Sequence[str] = ["b", "A", "a", "É", "😀", "Z", ""]
    frame = score(*(Event(user, user, "TransactionCompleted", START) for user in users))
    assert frame["user_id"].to_list() == sorted(users, key=str.encode)


def test_the_session_time_zone_changes_nothing() -> None:
    """Windows and days are UTC in any DuckDB session time zone."""
    with duckdb.connect() as connection:
        connection.register("events", events_table([done(NOW - 7 * DAY)]))
        connection.execute("SET TimeZone = 'Pacific/Auckland'")
        assert scores(connection, DEFAULT, AS_OF)["last_7_days_score"].to_list() == [1]
        assert connection.sql("SELECT day FROM fact").fetchall() == [(at(NOW - 7 * DAY).date(),)]


def test_as_of_without_a_time_zone_is_rejected() -> None:
    """Its midnight would be ambiguous."""
    with pytest.raises(UsageError, match="no time zone"):
        scores(duckdb.connect(), DEFAULT, AS_OF.replace(tzinfo=None))
