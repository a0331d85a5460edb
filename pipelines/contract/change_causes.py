"""What can be behind a change of the feed: the names of `causes` in the table `score_changes`.

`feed_causes.py` finds them, and rules of notifications name them.
"""

NEW_EVENT, LEFT_THE_WINDOW, PENALTY_EXPIRED = "new event", "left the window", "penalty expired"
OF_ROLES = {
    "retraction": "retraction",
    "correction": "correction",
    "suspend": "suspension",
    "reinstate": "reinstatement",
}
"""By the role of the event's action."""
POINTS_FROM_TIME, POLICY, DECAY = "points from time", "policy", "decay"
ACCOUNT_MERGED, EVENTS_REMOVED = "account merged", "events removed"
EVENTS_OF_OTHERS, RECOMPUTED = "events of others", "recomputed"
CAUSES = (
    NEW_EVENT,
    *OF_ROLES.values(),
    LEFT_THE_WINDOW,
    PENALTY_EXPIRED,
    POINTS_FROM_TIME,
    POLICY,
    DECAY,
    ACCOUNT_MERGED,
    EVENTS_REMOVED,
    EVENTS_OF_OTHERS,
    RECOMPUTED,
)
START = "start"
"""Instead of these, of the first publication: it says what is shown, and that nothing changed."""
