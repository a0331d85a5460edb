"""Random policies, feature by feature, over the actions Rated, Starred, Done, Tipped and Many."""

from datetime import datetime
from decimal import Decimal
from typing import Any, get_args

from hypothesis import strategies as st

from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.measures import Measure
from tests.reputation.history import DAY, NOW, at

ACTIONS = ("Rated", "Starred", "Done", "Tipped", "Many")
STATUS = ("Suspended", "Reinstated")
EVENTS = (*ACTIONS, *STATUS, "Retracted", "Corrected", "Adjusted")
Table = dict[str, Any]


def policy(**changes: Any) -> Policy:
    """Return a policy over these actions with some of its keys changed; `actions` are merged key by key."""
    actions = {name: table | changes.get("actions", {}).get(name, {}) for name, table in base_actions().items()}
    return Policy.model_validate(base() | changes | {"actions": actions})


def base() -> Table:
    return {
        "name": "random",
        "version": "1",
        "windows_days": (30,),
        "status": {"suspend": ("Suspended",), "reinstate": ("Reinstated",)},
        "retraction": {"actions": ("Retracted",)},
        "correction": {"actions": ("Corrected",)},
    }


def base_actions() -> dict[str, Table]:
    rating = {"from": "rating", "minimum": -10, "maximum": 10, "digits": 1}
    return {
        "Rated": {
            "rating": rating,
            "points": {"from": "rating", "minimum": -10, "maximum": 10, "scale": "0.25", "digits": 1},
        },
        "Starred": {"rating": rating, "points": {"from": "rating", "map": {1: -2, 2: -1, 3: 0, 4.5: "0.5", 5: 2}}},
        "Done": {"points": 3},
        "Tipped": {"points": {"from": "amount", "minimum": 0, "maximum": 100, "digits": 2}},
        "Many": {"rating": rating, "emit": ({"points": 1}, {"points": {"from": "amount"}}, {"points": -2})},
    }


def measures() -> st.SearchStrategy[Table]:
    """Return measures of every formula, with every way of counting, bounding and rounding."""
    thresholds = st.sampled_from([{"positive_from": 1}, {"positive_from": 4, "negative_to": 2}, {"positive_from": 0}])
    names = st.sampled_from(get_args(Measure.model_fields["formula"].annotation))
    prior = {"prior_mean": "2.5", "prior_weight": "1.5"}
    halving = st.sampled_from([{}, {"half_life_days": "0.5"}, {"half_life_days": 30}])
    of_one = st.builds(
        lambda name, between, half: {"formula": name} | prior | between | (half if name == "mean" else {}),
        *(names, thresholds, halving),
    )
    learned = {"formula": "bayesian", "prior": "global"} | prior
    options = st.fixed_dictionaries(
        {},
        optional={
            "last": st.integers(1, 4),
            "minimum_count": st.integers(1, 4),
            "below_minimum": st.sampled_from(["5", "-0.5"]),
            "digits": st.integers(0, 3),
            "rounding": st.sampled_from(["half_up", "half_even", "floor", "ceiling"]),
        },
    )
    return st.builds(lambda a, b: a | b, of_one | st.just(learned), options)


PERIODS = ("day", "week", "month", "year", None)
PER = ("rater_id", ("rater_id", "ride_id"))


def caps() -> st.SearchStrategy[Table]:
    """Return one cap or two, over all actions or some, for the user or by rater."""
    one = st.fixed_dictionaries(
        {
            "period": st.sampled_from(PERIODS),
            "maximum": st.sampled_from(["0", "2.5", "4", "20"]),
            "counts": st.sampled_from(["gains", "net"]),
        },
        optional={
            "per": st.sampled_from(PER),
            "actions": st.just(("Rated", "Done")),
            "exempt": st.just(("Done",)),
        },
    )
    return st.dictionaries(st.sampled_from(["a", "b"]), one, min_size=1)


def once() -> st.SearchStrategy[Table]:
    """Return one uniqueness rule or two, for the user or by rater, in a period or for all time, first or last."""
    one = st.fixed_dictionaries(
        {
            "actions": st.sampled_from([("Rated",), ("Rated", "Starred", "Many")]),
            "keep": st.sampled_from(["first", "last"]),
        },
        optional={"per": st.sampled_from(PER), "period": st.sampled_from(PERIODS)},
    )
    return st.dictionaries(st.sampled_from(["a", "b"]), one, min_size=1)


def completion() -> st.SearchStrategy[Table]:
    """Return a completion rule for rides; an action may complete itself."""
    some = st.sampled_from([("Rated",), ("Rated", "Done"), ("Starred", "Many")])
    one = st.fixed_dictionaries(
        {"actions": some, "by": st.sampled_from([("Done",), ("Unknown", "Done")]), "key": st.just("ride_id")}
    )
    return st.dictionaries(st.sampled_from(["a", "b"]), one, min_size=1)


def scores() -> st.SearchStrategy[Table]:
    """Return a start, and bounds that sometimes limit the score."""
    floors, ceilings = st.sampled_from(["-1", "0", "1.5"]), st.sampled_from(["2", "4.25", "6"])
    return st.fixed_dictionaries(
        {}, optional={"start": st.sampled_from(["1", "-3"]), "floor": floors, "ceiling": ceilings}
    )


def status() -> st.SearchStrategy[Table]:
    """Return each way of treating a suspension."""
    rules = st.sampled_from([{"rule": "freeze"}, {"rule": "hide", "shown": "0.5"}, {"rule": "reset"}])
    return rules.map(lambda rule: base()["status"] | rule)


def emissions() -> st.SearchStrategy[Table]:
    """Return, by action, points that decay and penalties that expire."""
    halving = st.fixed_dictionaries({}, optional={"half_life_days": st.sampled_from(["0.5", "30"])})
    expiring = st.fixed_dictionaries({}, optional={"penalties_expire_after_days": st.sampled_from([1, 7])})
    one = st.builds(lambda a, b: a | b, halving, expiring)
    return st.dictionaries(st.sampled_from(["Rated", "Starred", "Done"]), one)


def conditions() -> st.SearchStrategy[Table]:
    """Return, by action, a text or a bounded number that the metadata must have."""
    bounds = st.sampled_from([{"minimum": 1}, {"maximum": "99.99"}, {"minimum": 0, "maximum": 3}])
    one = st.fixed_dictionaries(
        {}, optional={"ride_id": st.sampled_from(["r1", "'"]), "amount": bounds, "rating": bounds}
    )
    return st.dictionaries(st.sampled_from(ACTIONS), one).map(
        lambda chosen: {action: {"where": where} for action, where in chosen.items()}
    )


def values() -> st.SearchStrategy[Table]:
    """Return, by action, points that are read from texts and numbers, and points for an event without them."""
    numbers = {"from": "amount", "minimum": 0, "maximum": 100, "digits": 2}
    texts = {"from": "rating", "map": {"five": 2, 5: 1, "+4": "0.5", " 5": -1, "5.0000001": 3}}
    missing = st.fixed_dictionaries({}, optional={"missing": st.sampled_from([0, "-1.5"])})
    words = {"from": "rating", "map": {"five": "-0.5", " 5": 2}}
    stars = {"from": "rating", "minimum": -10, "maximum": 10, "digits": 1}
    rated = st.sampled_from([{"rating": "1.5"}, {"rating": words}, {"rating": words | {"missing": "1.25"}}, {}])
    weighed = weights().map(lambda weight: {"rating": stars | {"missing": "-0.5", "weight": weight}})
    rating = rated | weighed
    points = st.builds(lambda read, absent: {"points": read | absent}, st.sampled_from([numbers, texts]), missing)
    one = st.builds(lambda a, b: a | b, points, rating)
    return st.dictionaries(st.sampled_from(["Starred", "Done", "Tipped"]), one)


def weights() -> st.SearchStrategy[Any]:
    """Return weights of ratings: a fixed one, or a number, with and without what else counts."""
    others = st.fixed_dictionaries(
        {}, optional={"missing": st.sampled_from([0, "0.5"]), "unreadable": st.sampled_from(["0.000001", 2])}
    )
    read = {"from": "amount", "minimum": "0.5", "maximum": "99.99", "digits": 2}
    return st.just("0.25") | others.map(lambda other: read | other)


def scopes() -> st.SearchStrategy[Table]:
    """Return one scope or two: of hostile texts, of one that holds user_ids, with a default and without."""
    key = st.sampled_from(["city", "ride_id"])
    default = st.fixed_dictionaries({}, optional={"default": st.sampled_from(["elsewhere", "berlin"])})
    one = st.builds(lambda name, chosen: {"from": name} | chosen, key, default)
    return st.dictionaries(st.sampled_from(["city", "city_rank"]), one, min_size=1)


def time_points() -> st.SearchStrategy[Table]:
    """Return points from time, of any period, from any event or from some, which may end or decay."""
    one = st.fixed_dictionaries(
        {"points": st.sampled_from(["1.5", -1]), "every": st.sampled_from(["day", "week", "month", "year"])},
        optional={
            "since": st.sampled_from([("Done",), ("Unknown", "Reinstated")]),
            "times": st.integers(1, 3),
            "half_life_days": st.just("30"),
        },
    )
    return st.dictionaries(st.sampled_from(["member", "'"]), one, min_size=1)


def raters() -> st.SearchStrategy[Table]:
    """Return weights of raters, from seeds who rate, are rated, or do neither."""
    seeds = st.sampled_from([("rita",), ("ann", "rob"), ("zoe",)])
    return st.fixed_dictionaries(
        {"weight": st.just("trust"), "seeds": seeds},
        optional={
            "damping": st.sampled_from(["0", "0.25", "1"]),
            "rounds": st.integers(1, 4),
            "minimum": st.sampled_from(["0.05", "0.5"]),
            "key": st.sampled_from(["rater_id", "ride_id"]),
        },
    )


def adjustments() -> st.SearchStrategy[Table]:
    """Return points by an operator, which may decay."""
    points = {"from": "amount", "minimum": -2, "maximum": "99.99", "digits": 2}
    halving = st.fixed_dictionaries({}, optional={"half_life_days": st.sampled_from(["0.5", "30"])})
    return halving.map(lambda chosen: {"action": "Adjusted", "points": points} | chosen)


def levels() -> st.SearchStrategy[Table]:
    """Return levels, some of which are lost below another score than reaches them."""
    first = st.sampled_from([-3, 0, {"at": "0.5", "falls_below": -1}])
    second = st.sampled_from([2, {"at": 3, "falls_below": "0.75"}])
    third = st.sampled_from(["3.25", {"at": 4, "falls_below": 2}])
    return st.fixed_dictionaries({"low": first}, optional={"mid": second, "top": third})


def allowed(tables: tuple[Table, ...]) -> list[Table]:
    """Return versions without levels above their ceiling, and where points decay with levels that have no history.

    Where ratings have weights, medians become means.
    """
    if "'weight'" in repr(tables):
        tables = tuple(table | {"measures": unweighted(table.get("measures", {}))} for table in tables)
    earning = [table.get(key, {}) for table in tables for key in ("actions", "adjustment", "time")]
    decays = "half_life_days" in repr(earning)
    return [table | {"levels": _allowed(table, decays=decays)} if "levels" in table else table for table in tables]


def unweighted(measures: Table) -> Table:
    """Return measures with means instead of medians."""
    return {
        name: measure | ({"formula": "mean"} if measure["formula"] == "median" else {})
        for name, measure in measures.items()
    }


def _allowed(version: Table, *, decays: bool) -> Table:
    at = {name: Decimal(level["at"] if isinstance(level, dict) else level) for name, level in version["levels"].items()}
    ceiling = Decimal(version.get("score", {}).get("ceiling", 100))
    kept = sorted((name for name in at if at[name] <= ceiling), key=at.__getitem__)
    return {name: at[name] if decays else version["levels"][name] for name in kept}


def everything() -> st.SearchStrategy[Table]:
    """Return any combination of a version's features."""
    tables = {
        "status": status(),
        "adjustment": adjustments(),
        "time": time_points(),
        "score": scores(),
        "actions": emissions() | conditions() | values(),
        "completion": completion(),
        "once": once(),
        "caps": caps(),
        "levels": levels(),
        "order_by": st.sampled_from(["amount", "rating"]),
        "scopes": scopes(),
        "measures": st.dictionaries(st.sampled_from(["rating_average", "a"]), measures(), min_size=1),
    }
    return st.fixed_dictionaries({}, optional=tables).map(lambda drawn: allowed((drawn,))[0])


def whole_policies() -> st.SearchStrategy[Policy]:
    """Return policies of one version that use any combination of features."""
    return everything().map(lambda tables: policy(**tables))


def versioned(starts: tuple[datetime, ...], mode: str, *tables: Table) -> Policy:
    """Return a policy of several versions; all but the first have a start."""
    versions = [
        policy(**changes).versions[0].model_dump(exclude_unset=True, by_alias=True) for changes in allowed(tables)
    ]
    for number, version in enumerate(versions):
        version |= {"version": str(number), "effective_from": starts[number - 1] if number else None}
    return Policy.model_validate({"name": "versioned", "mode": mode, "versions": versions})


def versioned_policies() -> st.SearchStrategy[Policy]:
    """Return policies of two versions, the second in force since some days before now, or later."""
    starts = st.sampled_from((NOW - 30 * DAY, NOW - DAY, NOW - DAY // 2, NOW, NOW + 1)).map(lambda t: (at(t),))
    return st.builds(versioned, starts, st.sampled_from(["retroactive", "prospective"]), everything(), everything())
