"""The rules of the policy language: one test each, with numbers computed by hand."""

from typing import Any

import duckdb
import pytest

from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.scores import scores
from tests.reputation.history import DAY, NOW, Event, at, events_table

MIDNIGHT = NOW - 10 * DAY
"""The start of a Tuesday, 2024-02-20."""
HEAD = """
name = "rules"
version = "1"
windows_days = [7, 30]
status = { suspend = ["Suspended"], reinstate = ["Reinstated"], STATUS }
retraction = { actions = ["Retracted"] }
correction = { actions = ["Corrected"] }
"""


class Case:
    """A policy and the result of some events."""

    def __init__(self, rules: str, *events: Event, as_of: int = NOW, status: str = 'rule = "freeze"') -> None:
        with duckdb.connect() as connection:
            connection.register("events", events_table(events))
            self.users = scores(connection, parse_policy(HEAD.replace("STATUS", status) + rules), at(as_of))
            rows = connection.sql("SELECT event_id, reason, granted FROM contribution ORDER BY ALL").fetchall()
        self.reasons = {event_id: reason for event_id, reason, _ in rows}
        self.granted = {event_id: granted / 1_000_000 for event_id, _, granted in rows}

    def __getitem__(self, column: str) -> Any:
        return self.users[column][0]


def up(event_id: str, t: int = MIDNIGHT, action_type: str = "Up", **metadata: str) -> Event:
    return Event(event_id, "ann", action_type, t, metadata)


UP = "[actions.Up]\npoints = 10\n[actions.Down]\npoints = -2\n"
CAP = UP + "[caps.votes]\nperiod = 'day'\nmaximum = 25\n"


def test_a_cap_grants_up_to_its_maximum_in_the_order_of_events() -> None:
    """10 + 10 + 10 under 25 are 25, and the contributions add up to it."""
    case = Case(CAP, up("c"), up("a"), up("b"))
    assert case["all_time_score"] == 25
    assert case.granted == {"a": 10, "b": 10, "c": 5}
    assert case.reasons == {"a": "granted", "b": "granted", "c": "capped"}
    assert case["all_time_events"] == 3


def test_a_cap_after_a_reversal_has_room_again() -> None:
    """The cap is over surviving events: what was retracted has not used it up."""
    case = Case(CAP, up("a"), up("b"), up("c"), Event("x", "ann", "Retracted", NOW - 1, {"target_event_id": "a"}))
    assert case["all_time_score"] == 20


def test_a_cap_over_gains_leaves_losses_alone() -> None:
    """min(25, 30) - 2."""
    assert Case(CAP, up("a"), up("b"), up("c"), up("d", action_type="Down"))["all_time_score"] == 23


def test_a_cap_over_the_net_lets_losses_make_room() -> None:
    """min(25, 30 - 2)."""
    case = Case(CAP + "counts = 'net'\n", up("a"), up("b"), up("c"), up("d", action_type="Down"))
    assert case["all_time_score"] == 25
    assert case.granted == {"a": 10, "b": 10, "c": 5, "d": 0}


@pytest.mark.parametrize(
    ("period", "t", "score"),
    [("day", DAY, 50), ("day", DAY - 1, 25), ("week", 6 * DAY - 1, 25), ("week", 6 * DAY, 50), ("month", 9 * DAY, 25)],
)
def test_a_cap_resets_with_its_period(period: str, t: int, score: int) -> None:
    """UTC days, weeks from Monday, months (2024-02-20 is a Tuesday)."""
    events = [up(f"{i}{j}", MIDNIGHT + j) for i in range(3) for j in (0, t)]
    assert Case(CAP.replace("'day'", f"'{period}'"), *events)["all_time_score"] == score


def test_a_cap_exempts_actions() -> None:
    """An exempt action neither uses the cap nor is limited by it."""
    case = Case(CAP + "exempt = ['Up']\n", up("a"), up("b"), up("c"))
    assert case["all_time_score"] == 30


def test_a_cap_per_rater_is_one_for_each() -> None:
    """25 from rob, 10 from rita, and 25 from all events without a rater."""
    raters = [{"rater_id": "rob"}] * 3 + [{"rater_id": "rita"}] + [{}] * 3
    case = Case(CAP + "per = 'rater_id'\n", *(up(str(i), **metadata) for i, metadata in enumerate(raters)))
    assert case["all_time_score"] == 25 + 10 + 25


def test_groups_by_several_keys_over_all_time_and_by_year() -> None:
    """A cap per rater and item without a period is over all time; once per year lets the next year through."""
    pairs = [("r", "i"), ("r", "j"), ("r", "i"), ("s", "i")]
    votes = [up(f"{n}", MIDNIGHT - n * DAY * 40, rater=r, item=i) for n, (r, i) in enumerate(pairs)]
    cap = Case(UP + "[caps.pair]\nmaximum = 15\nper = ['rater', 'item']\n", *votes)
    assert cap.granted == {"0": 5, "1": 10, "2": 10, "3": 10}
    once = Case(UP + "[once.y]\nactions = ['Up']\nper = ['item']\nperiod = 'year'\nkeep = 'first'\n", *votes)
    assert once.reasons == {"0": "granted", "1": "granted", "2": "superseded", "3": "granted"}


def test_caps_follow_each_other() -> None:
    """At most 15 from each rater, of which at most 25 a day."""
    rules = UP + "[caps.rater]\nperiod = 'day'\nmaximum = 15\nper = 'rater_id'\n" + CAP.removeprefix(UP)
    events = [up(f"{rater}{i}", rater_id=rater) for rater in ("rita", "rob") for i in range(2)]
    case = Case(rules, *events)
    assert case.granted == {"rita0": 10, "rita1": 5, "rob0": 10, "rob1": 0}


ONCE = UP + "[once.rater]\nactions = ['Up']\nper = 'rater_id'\nperiod = 'week'\nkeep = 'first'\n"


@pytest.mark.parametrize(
    ("keep", "reasons"), [("first", ["granted", "superseded"]), ("last", ["superseded", "granted"])]
)
def test_once_keeps_the_first_or_the_last(keep: str, reasons: list[str]) -> None:
    """One per rater and week; the other one is superseded and does not count."""
    events = [up("a", MIDNIGHT, rater_id="rob"), up("b", MIDNIGHT + DAY, rater_id="rob")]
    case = Case(ONCE.replace("first", keep), *events)
    assert list(case.reasons.values()) == reasons
    assert (case["all_time_score"], case["all_time_events"]) == (10, 1)


def test_once_lets_the_next_period_the_next_rater_and_other_actions_through() -> None:
    """Only the same rater in the same week competes."""
    events = [
        up("a", MIDNIGHT, rater_id="rob"),
        up("b", MIDNIGHT + 6 * DAY, rater_id="rob"),
        up("c", MIDNIGHT, rater_id="rita"),
        up("d", MIDNIGHT, "Down", rater_id="rob"),
    ]
    assert Case(ONCE, *events)["all_time_score"] == 28


WHERE = """
[actions.Up]
where = { verified = "true", amount = { minimum = 5, maximum = 9.5 } }
points = { from = "votes" }
[actions.Down]
points = -2
"""


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"verified": "true", "amount": "5", "votes": "3"}, "granted"),
        ({"verified": "true", "amount": "9.500000", "votes": "3"}, "granted"),
        ({"verified": "true", "amount": "9.500001", "votes": "3"}, "not matched"),
        ({"verified": "true", "amount": "4.999999", "votes": "3"}, "not matched"),
        ({"verified": "true", "amount": "five", "votes": "3"}, "not matched"),
        ({"verified": "True", "amount": "5", "votes": "3"}, "not matched"),
        ({"amount": "5", "votes": "3"}, "not matched"),
        ({"verified": "true", "votes": "3"}, "not matched"),
        ({"verified": "false", "amount": "5"}, "not matched"),
        ({"verified": "true", "amount": "5"}, "unreadable"),
    ],
)
def test_only_events_that_meet_the_conditions_of_their_action_earn(metadata: dict[str, str], reason: str) -> None:
    """Texts are equal character by character, numbers lie within their bounds; other actions have no conditions."""
    case = Case(WHERE, up("a", **metadata), up("b", action_type="Down"))
    assert case.reasons == {"a": reason, "b": "granted"}
    assert case["all_time_score"] == (1 if reason == "granted" else -2)


def test_a_condition_is_judged_after_a_correction_and_a_suspension() -> None:
    """A corrected event meets the condition; one during a suspension is `suspended` whether it meets it or not."""
    correction = Event("c", "ann", "Corrected", NOW - 1, {"target_event_id": "a", "verified": "true"})
    suspension = Event("s", "ann", "Suspended", MIDNIGHT + 1)
    case = Case(WHERE, up("a", amount="5", votes="3"), correction, suspension, up("b", MIDNIGHT + 2))
    assert case.reasons == {"a": "granted", "b": "suspended", "c": "correction", "s": "status"}


VOTED = "[actions.Up]\npoints = { from = 'vote', map = { up = 1, down = -1, 5 = 7 }, MISSING }\n"


@pytest.mark.parametrize(
    ("metadata", "missing", "reason", "score"),
    [
        ({"vote": "up"}, ", missing = 0", "granted", 1),
        ({"vote": "down"}, ", missing = 0", "granted", -1),
        ({"vote": "5.0"}, ", missing = 0", "granted", 7),
        ({"vote": "Up"}, ", missing = 0", "unreadable", 0),
        ({}, ", missing = 0.5", "granted", 0.5),
        ({}, "", "unreadable", 0),
    ],
)
def test_texts_and_missing_keys_have_points(metadata: dict[str, str], missing: str, reason: str, score: float) -> None:
    """Texts are compared character by character, numbers as numbers; only an absent key is missing."""
    case = Case(VOTED.replace(", MISSING", missing), up("a", **metadata))
    assert (case.reasons["a"], case["all_time_score"]) == (reason, score)


def test_votes_are_ratings_by_text_or_by_action() -> None:
    """Two ups of three votes in words; with one action per vote, a constant rating each."""
    measures = "[measures]\nliked = { formula = 'share', positive_from = 1, negative_to = -1 }\n"
    words = "[actions.Up]\nrating = { from = 'vote', map = { up = 1, down = -1 } }\npoints = 1\n"
    votes = [up(f"{n}", vote=vote) for n, vote in enumerate(("up", "up", "down", "Up"))]
    case = Case(words + measures, *votes)
    assert (case["all_time_liked"], case["all_time_rating_count"], case["all_time_score"]) == (2 / 3, 3, 3)
    assert case.reasons["3"] == "unreadable"
    constant = Case(
        UP.replace("points", "rating = 1\npoints", 1).replace("-2", "-2\nrating = -1") + measures,
        votes[0],
        up("9", action_type="Down"),
    )
    assert (constant["all_time_liked"], constant["all_time_rating_average"]) == (0.5, 0)


@pytest.mark.parametrize(
    ("rating", "metadata", "reason", "mean"),
    [
        ("minimum = 1, maximum = 5", {}, "unreadable", None),
        ("minimum = 1, maximum = 5, missing = 2.5", {}, "granted", 2.5),
        ("minimum = 1, maximum = 5, missing = 2.5", {"vote": ""}, "unreadable", None),
        ("minimum = 1, maximum = 5, missing = 2.5", {"vote": "6"}, "unreadable", None),
        ("map = { up = 1, down = -1 }, missing = 0.5", {}, "granted", 0.5),
        ("map = { up = 1, down = -1 }, missing = 0.5", {"vote": "down"}, "granted", -1),
    ],
)
def test_a_rating_without_its_key_is_what_the_policy_says(
    rating: str, metadata: dict[str, str], reason: str, mean: float | None
) -> None:
    """Only an absent key is missing; a text that is no rating stays unreadable."""
    case = Case(f"[actions.Up]\nrating = {{ from = 'vote', {rating} }}", up("a", **metadata))
    assert (case.reasons["a"], case["all_time_rating_average"]) == (reason, mean)


WEIGHED = """
[actions.Up]
rating = { from = "stars", minimum = 1, maximum = 5, weight = { from = "helpful", minimum = 0.5, maximum = 9, MORE } }
[actions.Down]
rating = { fixed = 1, weight = 0.5 }
"""


@pytest.mark.parametrize(
    ("helpful", "more", "reason", "mean"),
    [
        ({"helpful": "2.5"}, "", "granted", (2.5 * 5 + 0.5) / 3),
        ({"helpful": "2.55"}, "", "unreadable", 1),
        ({"helpful": "0"}, "", "unreadable", 1),
        ({"helpful": "very"}, ", missing = 0", "unreadable", 1),
        ({"helpful": "very"}, ", unreadable = 1", "granted", (5 + 0.5) / 1.5),
        ({}, ", unreadable = 1", "unreadable", 1),
        ({}, ", missing = 0", "granted", 1),
        ({}, ", missing = 9", "granted", (9 * 5 + 0.5) / 9.5),
    ],
)
def test_ratings_count_by_their_weights(helpful: dict[str, str], more: str, reason: str, mean: float) -> None:
    """The mean is of weight times rating; the policy says what an event without a weight, or with another text, has."""
    rules = WEIGHED.replace(", MORE", f", digits = 1{more}")
    case = Case(rules, up("a", stars="5", **helpful), up("b", action_type="Down"))
    assert (case.reasons, case["all_time_events"]) == ({"a": reason, "b": "granted"}, 1 + (reason == "granted"))
    assert case["all_time_rating_average"] == pytest.approx(mean, rel=1e-15)
    assert case["all_time_rating_count"] == case["all_time_events"]


def test_once_ignores_retracted_events() -> None:
    """After the retraction of the first event the second one counts."""
    retraction = Event("x", "ann", "Retracted", NOW - 1, {"target_event_id": "a"})
    case = Case(ONCE, up("a", rater_id="rob"), up("b", MIDNIGHT + 1, rater_id="rob"), retraction)
    assert case.reasons == {"a": "retracted", "b": "granted", "x": "retraction"}


RIDE = "[completion.ride]\nactions = ['Up']\nby = ['Done']\nkey = 'ride_id'\n" + UP


def test_a_rating_waits_for_the_completion_of_its_ride() -> None:
    """Before or after, by any user; without it, or without a key, the rating earns nothing."""
    done = Event("done", "bob", "Done", NOW - DAY, {"ride_id": "1"})
    rated = [up("a", ride_id="1"), up("b", NOW - 1, ride_id="1"), up("c", ride_id="2"), up("d")]
    case = Case(RIDE, done, *rated)
    assert case["all_time_score"] == 20
    assert case.reasons == {
        "a": "granted",
        "b": "granted",
        "c": "not completed",
        "d": "not completed",
        "done": "no rule",
    }
    assert Case(RIDE, done, *rated, as_of=NOW - DAY)["all_time_score"] == 0


def test_a_retracted_completion_completes_nothing() -> None:
    """After the retraction of the completion its ratings no longer count."""
    done = Event("done", "bob", "Done", NOW - DAY, {"ride_id": "1"})
    withdrawn = Event("x", "bob", "Retracted", NOW - 1, {"target_event_id": "done"})
    assert Case(RIDE, up("a", ride_id="1"), done, withdrawn).reasons["a"] == "not completed"


def test_points_decay() -> None:
    """After one half-life half is left, after two a quarter; windows and counts are unaffected."""
    rules = "[actions.Up]\npoints = 10\nhalf_life_days = 7\n[actions.Down]\npoints = -2\n"
    case = Case(rules, up("a", NOW - 7 * DAY), up("b", NOW - 14 * DAY), up("c", NOW - 14 * DAY, "Down"))
    assert (case["all_time_score"], case["last_7_days_score"], case["all_time_events"]) == (5 + 2.5 - 2, 5, 3)


@pytest.mark.parametrize(("age", "score"), [(3 * DAY - 1, 8), (3 * DAY, 10)])
def test_penalties_expire(age: int, score: int) -> None:
    """A loss counts until its expiry; a gain does not expire."""
    rules = UP.replace("points = -2", "points = -2\npenalties_expire_after_days = 3")
    case = Case(rules, up("a"), up("b", NOW - age, "Down"))
    assert (case["all_time_score"], case["all_time_events"]) == (score, 2)


@pytest.mark.parametrize(
    ("events", "score"),
    [(["Up"], 11), (["Down"], 1), (["Up", "Down"], 9), (["Up", "Up", "Up"], 20), (["Waved"], 1)],
)
def test_a_score_starts_and_stays_between_bounds(events: list[str], score: int) -> None:
    """Starts at 1, never below 1 or above 20; a user without points shows the start."""
    rules = "[score]\nstart = 1\nfloor = 1\nceiling = 20\n" + UP
    case = Case(rules, *(up(f"{i}", MIDNIGHT + i, action) for i, action in enumerate(events)))
    assert case["all_time_score"] == score
    assert case["last_30_days_score"] == 10 * events.count("Up") - 2 * events.count("Down")


RATED = "[actions.Up]\npoints = 10\nrating = { from = 'stars', minimum = 1, maximum = 5 }\n"


SUSPENDED = [
    up("a", MIDNIGHT, stars="5"),
    Event("s", "ann", "Suspended", MIDNIGHT + 1),
    up("b", MIDNIGHT + 2, stars="4"),
    Event("r", "ann", "Reinstated", MIDNIGHT + 3),
    up("c", MIDNIGHT + 4, stars="3"),
]


@pytest.mark.parametrize(
    ("text", "during", "after"),
    [
        ('rule = "freeze"', (10, 5.0, 1), (20, 4.0, 2)),
        ('rule = "hide", shown = 1', (1, None, 2), (30, 4.0, 3)),
        ('rule = "reset"', (0, None, 0), (10, 3.0, 1)),
    ],
)
def test_what_a_suspension_does(text: str, during: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """Score, rating average and events while suspended, and after the reinstatement."""
    columns = ("all_time_score", "all_time_rating_average", "all_time_events")
    for as_of, expected in [(MIDNIGHT + 3, during), (MIDNIGHT + 5, after)]:
        case = Case(RATED, *SUSPENDED, as_of=as_of, status=text)
        assert tuple(case[column] for column in columns) == expected


def test_after_a_reset_events_at_the_reinstatement_count() -> None:
    """Status events come first at a tie: [suspended, reinstated) is open at its end here too."""
    events = [*SUSPENDED, up("d", MIDNIGHT + 3, stars="1")]
    assert Case(RATED, *events, status='rule = "reset"').reasons == {
        "a": "reset",
        "b": "suspended",
        "c": "granted",
        "d": "granted",
        "s": "status",
        "r": "status",
    }


def test_emissions_fill_a_cap_in_their_order() -> None:
    """5 is cut to 3, then -3 leaves min(3, 2): one less."""
    rules = "[actions.Up]\nemit = [{ points = 5 }, { points = -3 }]\n[caps.c]\nperiod = 'day'\nmaximum = 3\n"
    with duckdb.connect() as connection:
        connection.register("events", events_table([up("a")]))
        scores(
            connection, parse_policy(HEAD.replace("STATUS", 'rule = "freeze"') + rules + "counts = 'net'\n"), at(NOW)
        )
        rows = connection.sql("SELECT emission_no, granted // 1000000 FROM contribution ORDER BY 1").fetchall()
    assert rows == [(0, 3), (1, -1)]


def test_several_emissions_are_one_event() -> None:
    """Each earns separately; the event counts once, and not at all if one of them is unreadable."""
    rules = "[actions.Up]\nemit = [{ points = 1 }, { points = { from = 'tip' } }, { points = -3 }]\n"
    case = Case(rules, up("a", tip="7"), up("b", tip="lots"))
    assert (case["all_time_score"], case["all_time_events"]) == (5, 1)
    assert case.reasons == {"a": "granted", "b": "unreadable"}


def corrected(event_id: str, t: int, stars: str, target: str = "a", user_id: str = "ann") -> Event:
    return Event(event_id, user_id, "Corrected", t, {"target_event_id": target, "stars": stars})


def test_a_change_of_a_change_has_no_effect() -> None:
    """A retraction withdraws an event or a correction, a correction changes an event: anything else is `no effect`.

    A retraction of a retraction has a reason of its own; so has one that names itself.
    """
    events = [
        up("a", stars="1"),
        Event("r", "ann", "Retracted", NOW - 9, {"target_event_id": "a"}),
        Event("rr", "ann", "Retracted", NOW - 8, {"target_event_id": "r"}),
        up("b", stars="1"),
        corrected("k", NOW - 9, "4", target="b"),
        corrected("kk", NOW - 8, "5", target="k"),
        corrected("kr", NOW - 8, "5", target="r"),
        corrected("kl", NOW - 8, "5", target="not here yet"),
        Event("own", "ann", "Retracted", NOW - 7, {"target_event_id": "own"}),
        Event("late", "ann", "Retracted", NOW - 6, {"target_event_id": "not here yet"}),
        Event("bobs", "bob", "Retracted", NOW - 5, {"target_event_id": "r"}),
    ]
    case = Case(RATED, *events)
    assert case["all_time_rating_average"] == 4.0
    assert case.reasons == {
        "a": "retracted",
        "b": "granted",
        "k": "correction",
        "r": "retraction",
        **dict.fromkeys(("rr", "own"), "retraction stands"),
        **dict.fromkeys(("kk", "kr", "kl", "late", "bobs"), "no effect"),
    }


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_correction_changes_its_target_before_and_after(shift: int) -> None:
    """The target keeps its time and its points by action, and has the rating of the correction."""
    case = Case(RATED, up("a", stars="1"), corrected("k", MIDNIGHT + shift, "5"))
    assert (case["all_time_score"], case["all_time_rating_average"], case["all_time_events"]) == (10, 5.0, 1)
    assert case.reasons == {"a": "granted", "k": "correction"}


def test_the_latest_correction_by_the_same_user_applies() -> None:
    """By event time, then event_id; a retracted correction and one by another user have no effect."""
    events = [
        up("a", stars="1"),
        corrected("k1", NOW - 9, "2"),
        corrected("k2", NOW - 9, "3"),
        corrected("k3", NOW - 8, "4"),
        corrected("k4", NOW - 7, "5", user_id="bob"),
        Event("x", "ann", "Retracted", NOW - 6, {"target_event_id": "k3"}),
    ]
    case = Case(RATED, *events)
    assert case["all_time_rating_average"] == 3.0
    assert case.reasons["k3"] == "retracted"


VERSIONS = """
name = "versions"
mode = "MODE"
[[versions]]
version = "1"
actions.Up.points = 10
[[versions]]
version = "2"
effective_from = 2024-02-20T00:00:00Z
actions.Up.points = 5
caps.votes = { period = "day", maximum = 7 }
once.rater = { actions = ["Up"], per = "rater_id", keep = "first", period = "day" }
score.ceiling = 3
"""


@pytest.mark.parametrize(
    ("mode", "as_of", "score"),
    [
        ("retroactive", MIDNIGHT - 1, 10),
        ("retroactive", MIDNIGHT + 3, 3),
        ("prospective", MIDNIGHT - 1, 10),
        ("prospective", MIDNIGHT + 3, 3),
    ],
)
def test_bounds_follow_the_version_in_force(mode: str, as_of: int, score: int) -> None:
    """Bounds are those of the version in force at as_of, in either mode."""
    events = [up("a", MIDNIGHT - DAY), up("b", MIDNIGHT - DAY // 2 + DAY)]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        policy = parse_policy(VERSIONS.replace("MODE", mode))
        assert scores(connection, policy, at(as_of))["all_time_score"].to_list() == [score]


@pytest.mark.parametrize(
    ("mode", "granted"),
    [("retroactive", {"a": 5, "b": 5, "c": 2}), ("prospective", {"a": 10, "b": 5, "c": 2})],
)
def test_a_new_version_applies_to_all_or_to_later_events(mode: str, granted: dict[str, int]) -> None:
    """Retroactive: all by version 2. Prospective: an event the microsecond before is by version 1."""
    events = [
        up(event_id, t, rater_id=event_id)
        for event_id, t in zip("abc", (MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 1), strict=True)
    ]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        scores(connection, parse_policy(VERSIONS.replace("MODE", mode)), at(NOW))
        rows = connection.sql("SELECT event_id, granted // 1000000, version FROM contribution ORDER BY 1").fetchall()
    assert {event_id: points for event_id, points, _ in rows} == granted
    assert rows[0][2] == ("2" if mode == "retroactive" else "1")


def test_a_rule_applies_only_to_events_of_its_version() -> None:
    """Once a day in version 1: the event of the first microsecond of version 2 does not compete."""
    policy = """
name = "versions"
mode = "prospective"
[[versions]]
version = "1"
actions.Up.points = 1
once.daily = { actions = ["Up"], keep = "first" }
[[versions]]
version = "2"
effective_from = 2024-02-20T00:00:00Z
actions.Up.points = 10
"""
    events = [up("a", MIDNIGHT - 2), up("b", MIDNIGHT - 1), up("c", MIDNIGHT)]
    with duckdb.connect() as connection:
        connection.register("events", events_table(events))
        assert scores(connection, parse_policy(policy), at(NOW))["all_time_score"].to_list() == [11]
