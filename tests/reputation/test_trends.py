"""Trends of small histories, against results computed by hand. AS_OF is Friday, 2024-03-01."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy, parse_policy, shipped_policies
from pipelines.reputation.trends import trends
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import AS_OF, Event, snapshot_of, us
from tests.reputation.merges import merges_table, stored

Open = Callable[..., Warehouse]

STARS = """
name = "stars"
version = "1"
[actions.Praised]
rating = { from = "stars", minimum = -2, maximum = 2 }
"""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """Open a warehouse without events."""
    folder = tmp_path_factory.mktemp("empty")
    derive(snapshot_of(folder), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as warehouse:
        yield warehouse


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """Open a warehouse with ratings by several raters over a month."""
    folder, diary = tmp_path_factory.mktemp("busy"), Diary()
    for number in range(1, 29):
        for rater, user in (("ada", "bob"), ("bob", "ada"), ("cyd", "ada")):
            diary.rate(number, user, 1 + number % 5, rater)
    derive(snapshot_of(folder / "lake", diary.events), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as warehouse:
        yield warehouse


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Derive events, by the default policy unless another is given, and open the warehouse."""
    with ExitStack() as stack:

        def derived(events: list[Event], policy: Policy | None = None) -> Warehouse:
            path = tmp_path / "warehouse.duckdb"
            derive(snapshot_of(tmp_path / "lake", events), policy or load_policy("default"), AS_OF, path)
            return stack.enter_context(Warehouse(path))

        yield derived


class Diary:
    """Records events at noon of days in February 2024."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, day: int, user_id: str, action_type: str = "TransactionCompleted", **metadata: str) -> str:
        event_id = f"event-{len(self.events):04d}"
        t = us(datetime(2024, 2, day, 12, tzinfo=UTC)) + len(self.events)
        self.events.append(Event(event_id, user_id, action_type, t, metadata))
        return event_id

    def rate(self, day: int, user_id: str, stars: int, rater_id: str = "rider") -> str:
        return self.add(day, user_id, "DriverRated", rating=str(stars), rater_id=rater_id)


@pytest.fixture
def diary() -> Diary:
    return Diary()


def day(number: int) -> date:
    return date(2024, 2, number)


def test_activity_counts_each_user_once(diary: Diary, opened: Open) -> None:
    """Over all actions, and over a week, a user is one active user, regardless of the number of days and actions."""
    diary.rate(5, "ada", 5)
    for number in (5, 6, 12):
        diary.add(number, "ada")
    diary.add(6, "bob", "Unheard")
    warehouse = opened(diary.events)
    assert warehouse.trend("activity", period="week").rows() == [
        (day(5), None, 2, 4, 3),
        (day(5), "DriverRated", 1, 1, 1),
        (day(5), "TransactionCompleted", 1, 2, 2),
        (day(5), "Unheard", 1, 1, 0),
        (day(12), None, 1, 1, 1),
        (day(12), "TransactionCompleted", 1, 1, 1),
    ]
    only = warehouse.trend("activity", since=day(6), until=day(12), action_type="Unheard")
    assert only.rows() == [(day(6), "Unheard", 1, 1, 0)]


def test_the_band_of_a_rating_is_clustered_by_user(diary: Diary, opened: Open) -> None:
    """Two users: sums 10 of 2 and 3 of 1; residuals 4/3 and -4/3; the error is sqrt(2/1 * 32/9) / 3 = 8/9."""
    for user_id, stars in (("ada", 5), ("ada", 5), ("bob", 3)):
        diary.rate(5, user_id, stars)
    diary.rate(11, "ada", 1)
    diary.rate(12, "ada", 2)
    first, *without, second, third = opened(diary.events).trend("rating").rows(named=True)
    assert [(row["day"], row["ratings"], row["average"]) for row in without] == [
        (day(n), 0, None) for n in range(6, 11)
    ]
    assert {row["seven_day_mean"] for row in without} == {13 / 3}
    assert (first["ratings"], first["rated_users"]) == (3, 2)
    assert first["average"] == pytest.approx(13 / 3)
    assert first["lower"] == pytest.approx(13 / 3 - 1.96 * 8 / 9)
    assert first["upper"] == pytest.approx(13 / 3 + 1.96 * 8 / 9)
    assert (second["lower"], second["upper"]) == (None, None)
    assert second["seven_day_mean"] == pytest.approx(14 / 4)
    assert third["seven_day_mean"] == pytest.approx(3 / 2)


def test_the_distribution_includes_idle_users(diary: Diary, opened: Open) -> None:
    """Four users with 1, 2, 3 and 4 points; in the idle week all keep them, in the third the first gains 6."""
    for points in (1, 2, 3, 4):
        for _ in range(points):
            diary.add(5, f"user-{points}")
    for _ in range(6):
        diary.add(19, "user-1")
    rows = opened(diary.events).trend("distribution").rows()
    assert rows[0] == (day(5), 4, 1.0, 1.0, 2.0, 3.0, 4.0)
    assert rows[1] == (day(12), 4, 1.0, 1.0, 2.0, 3.0, 4.0)
    assert rows[2] == (day(19), 4, 2.0, 2.0, 3.0, 4.0, 7.0)


def test_cohorts_average_over_all_users(diary: Diary, opened: Open) -> None:
    """Two came in the first week, one stays; one came a week later. The week of as_of is not over: no row."""
    for number, user_id in ((5, "ada"), (6, "bob"), (12, "ada"), (14, "cyd"), (26, "bob")):
        diary.add(number, user_id)
    assert opened(diary.events).trend("cohorts").rows() == [
        (day(5), 0, 2, 2, 1.0, 1.0),
        (day(5), 1, 2, 1, 0.5, 1.5),
        (day(5), 2, 2, 0, 0.0, 1.5),
        (day(12), 0, 1, 1, 1.0, 1.0),
        (day(12), 1, 1, 0, 0.0, 1.0),
    ]


def test_movers_name_the_main_action(diary: Diary, opened: Open) -> None:
    """A gain by ratings beside a smaller one by transactions, a loss by ratings against a transaction, no change."""
    diary.rate(5, "ada", 5)
    diary.rate(20, "ada", 4)
    diary.add(20, "ada")
    diary.rate(21, "bob", 1)
    diary.add(21, "bob")
    diary.add(5, "cyd")
    diary.add(26, "dan")
    diary.add(26, "eve")
    warehouse = opened(diary.events)
    assert warehouse.trend("movers", top=2).rows() == [
        ("gain", 1, "ada", 10.0, 6.0, 16.0, "DriverRated", 5.0, 1),
        ("gain", 2, "dan", 0.0, 1.0, 1.0, "TransactionCompleted", 1.0, 1),
        ("loss", 1, "bob", 0.0, -9.0, -9.0, "DriverRated", -10.0, 1),
    ]
    earlier = warehouse.trend("movers", since=day(1), until=day(20))
    assert earlier.select("user_id", "change").rows() == [("ada", 10.0), ("cyd", 1.0)]


def test_retention_follows_high_users(diary: Diary, opened: Open) -> None:
    """Of ten users the one with most points is high; a week later another has passed her, and she is still active."""
    for number in range(10):
        diary.add(5, f"user-{number}")
    diary.add(5, "user-0")
    for _ in range(5):
        diary.add(12, "user-1")
    diary.add(12, "user-0")
    rows = opened(diary.events).trend("retention", high_share=0.1).rows()
    assert rows == [(day(5), 1, 1, 1, 0, 1.0, 0.0), (day(5), 2, 1, 0, 0, 0.0, 0.0), (day(12), 1, 1, 0, 1, 0.0, 1.0)]


def test_survival_counts_the_first_long_pause(diary: Diary, opened: Open) -> None:
    """Bob pauses at once and comes back, ada stops later; cyd and dan are young: they leave the users at risk only."""
    for number, user_id in ((1, "ada"), (5, "ada"), (1, "bob"), (12, "bob"), (20, "cyd"), (26, "cyd"), (28, "dan")):
        diary.add(number, user_id)
    warehouse = opened(diary.events)
    first, second, last = warehouse.trend("survival", idle_days=7).rows()
    assert first == (0, 4, 0, 1.0, 1.0, 1.0)
    assert second == (7, 3, 1, *(pytest.approx(value) for value in (2 / 3, 2 / 3 * (1 - 1.96 / 6**0.5), 1)))
    assert last == (11, 1, 1, 0.0, 0.0, 0.0)
    young = warehouse.trend("survival", idle_days=7, since=day(20))
    assert young.select("age_days", "at_risk", "survival").rows() == [(0, 2, 1.0)]


def test_suspensions_add_up(diary: Diary, opened: Open) -> None:
    """A second suspension changes nothing; a day without a change has a row; the last day is that of as_of."""
    diary.add(5, "ada", "AccountSuspended")
    diary.add(6, "ada", "AccountSuspended")
    diary.add(7, "bob", "AccountSuspended")
    diary.add(7, "ada", "AccountReinstated")
    warehouse = opened(diary.events)
    assert warehouse.trend("suspensions", until=day(9)).rows() == [
        (day(5), 1, 0, 1),
        (day(6), 0, 0, 1),
        (day(7), 1, 1, 1),
        (day(8), 0, 0, 1),
    ]
    assert warehouse.trend("suspensions")["day"].max() == AS_OF.date()


def test_inflation_is_separate_from_new_raters(diary: Diary, opened: Open) -> None:
    """The average rises because a kind rater joins; the rater of both weeks gives the same ratings as before."""
    for number in (5, 12):
        diary.rate(number, "ada", 3, "old")
    diary.rate(13, "ada", 5, "new")
    warehouse = opened(diary.events)
    assert warehouse.trend("inflation", period="week", panel_share=1).rows() == [
        (day(5), 1, 1, 3.0, 1, 3.0, 0.0),
        (day(12), 2, 2, 4.0, 1, 3.0, 0.0),
    ]


def test_stored_tables_are_trends_too(diary: Diary, opened: Open) -> None:
    """The stored tables are queried like other trends, within since and until."""
    for number in (5, 6, 7):
        diary.rate(number, "ada", 5)
    warehouse = opened(diary.events)
    for name in ("daily", "scores", "reasons"):
        assert warehouse.trend(name).equals(warehouse.sql(f"FROM trends_{name} ORDER BY ALL"))
        assert warehouse.trend(name, since=day(6), until=day(7))["day"].to_list() == [day(6)]


def test_ratings_are_read_by_the_policy(diary: Diary, opened: Open) -> None:
    """Another key, another scale; outside it, of another action or at as_of and later, there is no rating."""
    for stars in ("-2", "1", "3", "many"):
        diary.add(5, "ada", "Praised", stars=stars, rater_id="bob")
    diary.add(5, "ada", "Scorned", stars="1", rater_id="bob")
    diary.events.append(Event("late", "ada", "Praised", us(AS_OF), {"stars": "1", "rater_id": "bob"}))
    warehouse = opened(diary.events, parse_policy(STARS))
    assert warehouse.trend("inflation")["ratings"].to_list() == [2]
    given = warehouse._connection.sql("SELECT rating, level FROM rating_given ORDER BY ALL").fetchall()
    assert given == [(-2.0, 0.0), (1.0, 0.75)]


def test_votes_are_ratings_of_one_scale(diary: Diary, opened: Open) -> None:
    """Texts by their map, constant ratings of several actions by the least and the greatest of them."""
    policy = """name = "votes"
        version = "1"
        actions.Voted.rating = { from = "vote", map = { up = 2, "do wn" = -2, meh = 1 } }
        actions.Up.rating = 1
        actions.Down.rating = -1
    """
    for vote in ("up", "do wn", "meh", "Up"):
        diary.add(5, "ada", "Voted", vote=vote)
    diary.add(5, "ada", "Up")
    diary.add(5, "ada", "Down")
    warehouse = opened(diary.events, parse_policy(policy))
    assert warehouse.trend("inflation")["ratings"].to_list() == [5]
    given = warehouse._connection.sql("SELECT rating, level FROM rating_given ORDER BY ALL").fetchall()
    assert given == [(-2.0, 0.0), (-1.0, 0.0), (1.0, 0.75), (1.0, 1.0), (2.0, 1.0)]


READ = """
name = "read"
version = "1"
[actions.Praised]
where = { verified = "1" }
rating = { from = "stars", minimum = 1, maximum = 5, missing = 3 }
points = { from = "stars", minimum = 1, maximum = 5, missing = 3 }
[actions.Scaled]
rating = { from = "stars", minimum = 1, maximum = 5, digits = 1 }
[[actions.Scaled.emit]]
points = 1
[[actions.Scaled.emit]]
points = { from = "bonus", minimum = 0, maximum = 9 }
"""


def test_a_rating_given_is_one_that_the_policy_reads(diary: Diary, opened: Open) -> None:
    """What counts gave the same rating; what is unreadable or not matched gave none, and costs no user an alarm."""
    texts = ("5", "1e0", " 1", "1.0000001", "1.000000000", "0x1", "1_0", "+2", "1.5", "6", "nan", "", "4.")
    for text in texts:
        diary.add(5, "ada", "Praised", stars=text, verified="1", rater_id="bob")
        diary.add(5, "ada", "Scaled", stars=text, bonus="1", rater_id="bob")
        diary.add(5, "ada", "Scaled", stars=text, bonus="a lot", rater_id="bob")
    diary.add(5, "ada", "Praised", verified="1", rater_id="bob")
    diary.add(5, "ada", "Praised", stars="1", verified="no", rater_id="bob")
    warehouse = opened(diary.events, parse_policy(READ))
    rows = warehouse.explain("ada").filter((pl.col("reason") == "granted") & (pl.col("emission_no") == 0))
    granted = sorted((name, float(rating)) for name, rating in rows.select("event_id", "rating").rows())
    assert [rating for _, rating in granted].count(3) == 1
    assert sorted(warehouse.ratings_given("ada").rows()) == granted
    warehouse.trend("inflation")
    given = warehouse._connection.sql("SELECT event_id, rating FROM rating_given ORDER BY ALL").fetchall()
    assert given == granted
    assert set(rows["rating"].to_list()) == {1.0, 1.5, 2.0, 3.0, 5.0}


@pytest.mark.parametrize(("text", "named"), [("1", ["ada"]), (" 1", []), ("1e0", [])])
def test_an_unreadable_rating_raises_no_alarm(text: str, named: list[str], diary: Diary, opened: Open) -> None:
    """A sender cannot get a user named by low ratings that cost no points."""
    for number in range(1, 10):
        diary.rate(number, "ada", 5)
    warehouse = opened([*diary.events, *(_low(number, text) for number in range(12))])
    assert warehouse.trend("review_bombs")["user_id"].to_list() == named


def _low(number: int, rating: str) -> Event:
    metadata = {"rating": rating, "rater_id": f"rider-{number}"}
    return Event(f"low-{number}", "ada", "DriverRated", us(datetime(2024, 2, 20, 12, tzinfo=UTC)) + number, metadata)


def test_ratings_are_given_to_the_current_user(tmp_path: Path, diary: Diary) -> None:
    """Merged users are one, as rated and as raters."""
    diary.rate(5, "old ada", 5, "old bob")
    diary.rate(6, "ada", 4, "bob")
    path = tmp_path / "warehouse.duckdb"
    merged = merges_table(stored([("old ada", "ada"), ("old bob", "bob")]))
    derive(snapshot_of(tmp_path / "lake", diary.events, merged_users=merged), load_policy("default"), AS_OF, path)
    with Warehouse(path) as warehouse:
        assert warehouse.trend("inflation").select("ratings", "raters").rows() == [(2, 1)]
        given = warehouse._connection.sql("SELECT DISTINCT user_id, rater_id FROM rating_given").fetchall()
        assert given == [("ada", "bob")]


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_policies())
def test_every_trend_runs_under_every_policy(name: str, diary: Diary, opened: Open) -> None:
    """Under every policy the results have the same columns."""
    for number in range(1, 9):
        diary.rate(number, "ada", 1 + number % 5, f"rider-{number % 3}")
        diary.add(number, "bob")
    warehouse = opened(diary.events, load_policy(name))
    widths = {trend: warehouse.trend(trend).width for trend in trends()}
    assert min(widths.values()) >= 4
    assert warehouse.trend("activity", period="week").height > 0


@pytest.mark.parametrize("name", trends())
def test_every_trend_runs_without_events(name: str, empty: Warehouse) -> None:
    """An empty history gives no rows, and every trend has a description."""
    assert empty.trend(name).is_empty()
    assert trends()[name].meaning.endswith(".")


def test_a_trend_follows_a_handle_that_was_shown(diary: Diary, opened: Open) -> None:
    """A notebook or a debugger shows the warehouse; nothing is left unfinished on its connection."""
    diary.rate(5, "ada", 5)
    warehouse = opened(diary.events)
    assert "lake version" in repr(warehouse)
    assert warehouse.trend("rating").height == 1


def test_since_may_be_a_moment(diary: Diary, opened: Open) -> None:
    """A time stands for its UTC day; one without a time zone is in UTC."""
    diary.add(5, "ada")
    warehouse = opened(diary.events)
    assert warehouse.trend("daily", since=datetime.fromisoformat("2024-02-06T01:00:00+02:00")).height == 1
    assert warehouse.trend("daily", since=datetime(2024, 2, 5)).height == 1  # noqa: DTZ001 - on purpose


def test_a_period_that_ends_before_it_begins_is_refused(diary: Diary, opened: Open) -> None:
    """Of every question with two moments: no rows would look like an answer."""
    diary.add(5, "ada")
    warehouse, later, earlier = opened(diary.events), "2025-07-01", "2025-06-01"
    swapped = "^the period begins at 2025-07-01.*, which is not before its end, 2025-06-01.*: swap them$"
    asked: list[Callable[[], object]] = [
        lambda: warehouse.trend("daily", later, earlier),
        lambda: warehouse.events(since=later, until=earlier),
        lambda: warehouse.explain_change("ada", later, earlier),
    ]
    for ask in asked:
        with pytest.raises(UsageError, match=swapped):
            ask()
    with pytest.raises(UsageError, match="is not before"):
        warehouse.change(later, earlier)
    with pytest.raises(UsageError, match="is not before its end"):
        warehouse.trend("daily", later, later)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("wether", {}, "no trend 'wether': there are activity, "),
        ("movers", {"tops": 3}, "movers has no parameter tops: it has since, until, top"),
        ("movers", {"top": "many"}, "top='many' is not a whole number from 1 to 1,000,000: the default is 10"),
        ("movers", {"top": "1.5"}, "top='1.5' is not a whole number from 1 to"),
        ("movers", {"top": 2.9}, "top=2.9 is not a whole number"),
        ("movers", {"top": True}, "top=True is not a whole number"),
        ("movers", {"top": None}, "top=None is not a whole number"),
        ("movers", {"top": -1}, "top=-1 is not a whole number from 1"),
        ("retention", {"weeks": "9999999999"}, "weeks='9999999999' is not a whole number from 1 to 5,200"),
        ("review_bombs", {"fdr": "nan"}, "fdr='nan' is not a number from 0 to 1: the default is 0.01"),
        ("retention", {"high_share": "inf"}, "high_share='inf' is not a number from 0 to 1"),
        ("trust", {"seeds": ""}, "seeds='' has an empty user_id"),
        ("trust", {"seeds": "ann,,bob"}, "seeds='ann,,bob' has an empty user_id"),
        ("trust", {"seeds": 5}, "seeds=5 is not a text"),
        ("rating", {"action_type": "DriverRatd"}, "action_type 'DriverRatd': did you mean 'DriverRated'"),
        ("activity", {"action_type": "zzz"}, "no event has the action_type 'zzz': check the spelling"),
        ("inflation", {"action_type": "zzz"}, "no event has the action_type"),
        ("activity", {"period": "year"}, "period='year' is not allowed: use day or week"),
    ],
)
def test_errors_list_what_is_known(name: str, parameters: dict[str, Any], message: str, empty: Warehouse) -> None:
    """An unknown trend or parameter, or an invalid value: the error lists valid ones."""
    with pytest.raises(UsageError, match=message):
        empty.trend(name, **parameters)


_NUMBERS = [
    (name, parameter, bound)
    for name, trend in trends().items()
    for parameter, declared in trend.parameters.items()
    if isinstance(declared.default, int | float)
    for bound in (declared.lowest, declared.highest)
]


def test_every_number_has_bounds() -> None:
    """The default lies within them; without bounds it would not."""
    for trend in trends().values():
        for name, declared in trend.parameters.items():
            if isinstance(declared.default, int | float):
                assert declared.lowest <= declared.default < declared.highest, (trend.name, name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameter", "bound"), _NUMBERS)
def test_every_bound_is_a_value(name: str, parameter: str, bound: float, busy: Warehouse) -> None:
    """At each bound a trend returns numbers, neither an error nor nan, and beyond it a refusal."""
    rows = busy.trend(name, **{parameter: bound})
    floats = rows.select(pl.selectors.float().is_nan().any())
    assert not any(floats.row(0)) if floats.width else True
    beyond = bound - 1 if bound == trends()[name].parameters[parameter].lowest else bound + 1
    with pytest.raises(UsageError, match=f"^{parameter}={beyond} is not a "):
        busy.trend(name, **{parameter: beyond})


def test_the_list_has_every_trend(empty: Warehouse) -> None:
    """`trends()` shows each trend with its parameters and their defaults."""
    listed = dict(empty.trends().select("trend", "parameters").rows())
    assert listed.keys() == trends().keys()
    assert listed["retention"] == "high_share=0.1, weeks=12"
