"""Points from time alone: by hand, in caps, windows and suspensions, explained, and as the clock passes midnight."""

import re
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipelines.cli.explain import print_contributions
from pipelines.errors import PolicyError
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.explain import explain, explain_change
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, DAY, NOW, Event, at, events_table, us
from tests.reputation.policies import policy
from tests.reputation.test_incremental import lake, rebuilt, rows

PAGE = REPOSITORY / "pipelines" / "reputation" / "policies" / "README.md"
RULES = """
name = "time"
version = "1"
windows_days = [30]
status = { suspend = ["Suspended"], reinstate = ["Reinstated"] }
[actions.Done]
points = 3
[time.member]
points = 5
every = "month"
"""


def event(action_type: str, *moment: int, user_id: str = "ann") -> Event:
    """Return an event of a moment: year, month, day, hour."""
    t = us(datetime(*moment, tzinfo=UTC))  # type: ignore[misc, arg-type]
    return Event(f"{action_type}-{t}", user_id, action_type, t)


def dated(events: list[Event], rules: str | Policy = RULES, as_of: datetime = AS_OF) -> list[tuple[str, str, int]]:
    """Return the day, the reason and the points of what time alone earned."""
    parsed = parse_policy(rules) if isinstance(rules, str) else rules
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        found = explain(connection, parsed, "ann", as_of)
    of_time = found.filter(found["event_id"].is_null() & found["event_time"].is_not_null())
    return [(f"{row['event_time']:%Y-%m-%d}", row["reason"], int(row["earned"])) for row in of_time.rows(named=True)]


OPENED = event("Opened", 2023, 10, 31, 22)


@pytest.mark.parametrize(
    ("more", "days"),
    [
        ("", ["2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29"]),
        ("times = 2", ["2023-11-30", "2023-12-31"]),
        ('since = "Done"', ["2024-02-02"]),
        ('since = "Never"', []),
    ],
)
def test_a_month_ends_on_the_day_it_began_or_its_last(more: str, days: list[str]) -> None:
    """Months count from the first day, so none drifts to an earlier day."""
    found = dated([OPENED, event("Done", 2024, 1, 2, 9)], RULES + more)
    assert found == [(day, "granted", 5) for day in days]


@pytest.mark.parametrize(("every", "number"), [("day", 121), ("week", 17), ("year", 0)])
def test_other_periods(every: str, number: int) -> None:
    """The newest day is that of as_of if it has begun: as_of is at midnight, which is not yet included."""
    assert len(dated([OPENED], RULES.replace("month", every))) == number
    assert len(dated([OPENED], RULES.replace("month", every), at(NOW + 1))) == number + (every == "day")


def test_a_suspension_and_a_cap() -> None:
    """A suspended user earns nothing, and a cap over all actions covers time as well; it can exempt it by name."""
    events = [OPENED, event("Suspended", 2023, 12, 1), event("Reinstated", 2024, 1, 31), event("Done", 2024, 1, 31, 1)]
    assert [reason for _, reason, _ in dated(events)] == ["granted", "suspended", "granted", "granted"]
    cap = '[caps.monthly]\nperiod = "month"\nmaximum = 4\n'
    assert [points for *_, points in dated(events, RULES + cap)] == [4, 0, 4, 4]
    assert [points for *_, points in dated(events, RULES + cap + 'exempt = ["member"]')] == [5, 0, 5, 5]


def test_beside_weights_of_ratings() -> None:
    """What time earns is no rating, and has no weight."""
    weighed = RULES.replace("points = 3", "points = 3\nrating = { fixed = 1, weight = 0.5 }")
    assert dated([OPENED, event("Done", 2024, 1, 2, 9)], weighed) == dated([OPENED], RULES)


def test_an_event_of_the_same_name_earns_nothing() -> None:
    """Anyone may write events of any action_type: what time earns does not come from events."""
    with duckdb.connect() as connection:
        connection.register("events", events_table([Event("e1", "ann", "member", NOW - DAY)]))
        assert explain(connection, parse_policy(RULES), "ann", AS_OF)["reason"].to_list() == ["no rule"]


def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """The policy of policies/README.md gives the lines that it shows."""
    section = PAGE.read_text(encoding="utf-8").partition("## Points from time")[2]
    (rules,), (lines,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)[:1] for kind in ("toml", "text"))
    first = Event("first", "ann", "UserRated", us(datetime(2026, 1, 31, 9, 30, tzinfo=UTC)))
    with duckdb.connect() as connection:
        connection.register("events", events_table([first]))
        print_contributions(
            explain(connection, parse_policy(rules), "ann", datetime(2026, 6, 1, tzinfo=UTC)).rows(named=True)
        )
    assert capsys.readouterr().out == lines


def test_a_change_between_two_moments() -> None:
    """What became due is a row without an event, and changes add up."""
    with duckdb.connect() as connection:
        connection.register("events", events_table([OPENED]))
        changes = explain_change(connection, parse_policy(RULES), "ann", at(NOW - DAY), AS_OF)
    assert changes.select("event_id", "action_type", "reason_before", "reason", "change").rows() == [
        (None, "member", None, "granted", 5)
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[time.Done]\npoints = 1\nevery = "day"', "Done is already in actions: an action has one role"),
        ('[time.member]\npoints = 1\nevery = "hour"', "day"),
        ("[time.member]\npoints = 1", "every"),
        ('[time.member]\npoints = 1\nevery = "day"\ntimes = 0', "times"),
        ('[time.member]\npoints = 1\nevery = "day"\nfrom = "Done"', "from"),
        (
            '[time.member]\npoints = 1\nevery = "day"\n[once.a]\nactions = ["member"]\nkeep = "first"',
            "member is not an action of this policy",
        ),
    ],
)
def test_mistakes_are_explained(table: str, message: str) -> None:
    """A name with two roles, an unknown period, a missing one, a limit of none, a key of another table."""
    with pytest.raises(PolicyError, match=message):
        parse_policy(RULES.partition("[time")[0] + table)


def users_of_days() -> list[Event]:
    """Return users whose first event was on each of thirty days before."""
    return [Event(f"e{n}", f"user-{n}", "Done", NOW - 20 * DAY - n * DAY - DAY // 3) for n in range(30)]


@pytest.mark.slow
def test_midnight_affects_those_who_earn(tmp_path: Path) -> None:
    """The clock alone adds points on their day and takes them from a window; a refresh recomputes these users only.

    It leaves the rows of a rebuild (`incremental-equals-rebuild`).
    """
    rules = policy(time={"weekly": {"points": 1, "every": "week"}}, windows_days=(10,))
    path, snapshot, affected = tmp_path / "warehouse.duckdb", lake(tmp_path, [users_of_days()]), list[int]()
    moments = (NOW - 1, NOW, NOW + 1, NOW + DAY, NOW + DAY + 1)
    with open_draft(path) as draft:
        for as_of in moments:
            derived = draft.refresh(snapshot, rules, at(as_of))
            affected.append(-1 if derived.rebuild_reason else derived.affected_users)
        draft.publish()
    due = [n for n in range(30) if (21 + n) % 7 == 0]
    left = [n for n in range(30) if (21 + n - 10) % 7 == 0 and 21 + n - 10 > 0]
    assert affected == [-1, 0, len({*due, *left}), 0, affected[-1]]
    assert 0 < affected[-1] < 12
    assert rows(path) == rebuilt(tmp_path, snapshot, rules, moments[-1])


def test_the_warehouse_and_its_trends(tmp_path: Path) -> None:
    """Points of a day without events are in scores and movers, and make no user active."""
    path = tmp_path / "warehouse.duckdb"
    derive(lake(tmp_path, [[OPENED]]), parse_policy(RULES), AS_OF, path)
    with Warehouse(path) as warehouse:
        activity = warehouse.trend("activity", period="day")
        assert activity.filter(pl.col("action_type").is_null())["active_users"].to_list() == [1, 0, 0, 0, 0]
        assert warehouse.sql("SELECT day, active_users FROM trends_scores").rows() == [(date(2023, 10, 31), 1)]
        assert warehouse.reputation("ann")["all_time_events"].item() == 0
        assert warehouse.trend("movers")["change"].to_list() == [5]
