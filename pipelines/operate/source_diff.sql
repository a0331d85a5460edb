-- One row: the events, conflicts and dead letters at places, and the number of records that they are of. A replay has those
-- of the topic that it read: a dead letter or conflict of both counts once.
WITH found AS (
    SELECT 'event' AS kind, event_id, topic_id, topic_partition, "offset" FROM events
    UNION ALL
    SELECT 'conflict', event_id, topic_id, topic_partition, "offset" FROM conflicts
    UNION ALL
    SELECT 'dead letter', NULL, topic_id, topic_partition, "offset" FROM dead_letters
),
as_read AS (
    SELECT DISTINCT
        found.* REPLACE (coalesce(replays.topic_id, found.topic_id) AS topic_id)
    FROM found
    LEFT JOIN replays ON found.topic_id = replays.replay_id
),
at_places AS (
    SELECT as_read.*
    FROM as_read
    INNER JOIN places USING (topic_id, topic_partition)
    WHERE "offset" >= places.start_offset AND "offset" < places.end_offset
)
SELECT
    count(*) FILTER (kind = 'event') AS events,
    count(*) FILTER (kind = 'conflict') AS conflicts,
    count(*) FILTER (kind = 'dead letter') AS dead_letters,
    count(DISTINCT (topic_id, topic_partition, "offset")) AS records
FROM at_places
