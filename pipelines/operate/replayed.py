"""Which topic each replay read: rows of a replay have a topic id of their own, and the offsets of that topic."""

import duckdb

from pipelines.ingest.replay import PREFIX

# A topic that is created again has another id: a replay read the newest before it. If the topic was only read later, it
# is the first one after it.
_CREATE = f"""
CREATE VIEW {{schema}}.replays AS
WITH places AS (
    SELECT topic, topic_id, min(version) AS since
    FROM (SELECT version, unnest(ranges, recursive := true) FROM (SELECT version, ranges FROM {{schema}}.commits))
    GROUP BY ALL
)
SELECT
    replays.topic_id AS replay_id,
    coalesce(
        arg_max(places.topic_id, places.since) FILTER (places.since < replays.since),
        arg_min(places.topic_id, places.since)
    ) AS topic_id
FROM places AS replays
JOIN places ON replays.topic = '{PREFIX}' || places.topic
GROUP BY replays.topic_id
"""  # noqa: S608 - a constant of ours


def create_view_of_replays(connection: duckdb.DuckDBPyConnection, schema: str = "main") -> None:
    """Create the view `replays` beside the lake's views: replay_id, and the topic_id of the topic that it read."""
    connection.execute(_CREATE.format(schema=schema))
