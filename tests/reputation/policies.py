"""Random policies, feature by feature, over the actions Rated, Starred, Done and Tipped."""

from typing import Any

from hypothesis import strategies as st

from pipelines.reputation.policy import Policy

ACTIONS = ("Rated", "Starred", "Done", "Tipped")
STATUS = ("Suspended", "Reinstated")
EVENTS = (*ACTIONS, *STATUS, "Retracted")
Table = dict[str, Any]


def policy(**changes: Any) -> Policy:
    """Return a policy over the four actions with some of its keys changed; `actions` are merged key by key."""
    actions = {name: table | changes.get("actions", {}).get(name, {}) for name, table in base_actions().items()}
    return Policy.model_validate(base() | changes | {"actions": actions})


def base() -> Table:
    return {
        "name": "random",
        "version": "1",
        "windows_days": (30,),
        "status": {"suspend": ("Suspended",), "reinstate": ("Reinstated",)},
        "retraction": {"actions": ("Retracted",)},
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
    }


def measures() -> st.SearchStrategy[Table]:
    """Return measures of every formula, with every way of counting, bounding and rounding."""
    thresholds = st.sampled_from([{"positive_from": 1}, {"positive_from": 4, "negative_to": 2}, {"positive_from": 0}])
    binary = st.sampled_from(["beta", "wilson", "share", "positives", "negatives"]).map(lambda name: {"formula": name})
    prior = {"formula": "bayesian", "prior_mean": "2.5", "prior_weight": "1.5"}
    of_one = st.just({"formula": "mean"}) | st.just(prior) | st.builds(lambda a, b: a | b, binary, thresholds)
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
    return st.builds(lambda a, b: a | b, of_one, options)
