-- One row: the events, conflicts and dead letters at places, and the number of records that they are of.
WITH found AS (
    SELECT 'event' AS kind, topic_id, topic_partition, "offset" FROM events
    UNION ALL
    SELECT 'conflict', topic_id, topic_partition, "offset" FROM conflicts
    UNION ALL
    SELECT 'dead letter', topic_id, topic_partition, "offset" FROM dead_letters
),
at_places AS (
    SELECT found.*
    FROM found
    INNER JOIN places USING (topic_id, topic_partition)
    WHERE "offset" >= places.start_offset AND "offset" < places.end_offset
)
SELECT
    count(*) FILTER (kind = 'event') AS events,
    count(*) FILTER (kind = 'conflict') AS conflicts,
    count(*) FILTER (kind = 'dead letter') AS dead_letters,
    count(DISTINCT (topic_id, topic_partition, "offset")) AS records
FROM at_places
