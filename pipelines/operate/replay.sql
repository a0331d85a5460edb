-- One row: how the events of the schemas lake and fresh compare, as the columns of Comparison. Of a conflict in the range
-- either payload may have come first, so it is not a difference.
-- What an earlier replay added to the lake counts at the places of the topic that it read.
WITH ranges AS (
    FROM replayed
    UNION ALL
    SELECT replays.replay_id, replayed.topic_partition, replayed.start_offset, replayed.end_offset
    FROM replayed
    INNER JOIN lake.replays USING (topic_id)
),
conflicting AS (
    SELECT event_id
    FROM lake.conflicts
    INNER JOIN ranges USING (topic_id, topic_partition)
    WHERE "offset" >= ranges.start_offset AND "offset" < ranges.end_offset
    UNION
    SELECT event_id FROM fresh.conflicts
),
in_range AS (
    SELECT event_id
    FROM lake.events
    INNER JOIN ranges USING (topic_id, topic_partition)
    WHERE "offset" >= ranges.start_offset AND "offset" < ranges.end_offset
),
paired AS (
    SELECT
        fresh.event_id,
        lake.event_id IS NULL AS missing,
        fresh.event_id NOT IN (FROM conflicting)
        AND (lake.user_id, lake.action_type, lake.event_time, list_sort(map_entries(lake.metadata)))
        IS DISTINCT FROM
        (fresh.user_id, fresh.action_type, fresh.event_time, list_sort(map_entries(fresh.metadata))) AS different,
        concat_ws(
            '; ',
            CASE WHEN lake.user_id <> fresh.user_id THEN format('user_id {} -> {}', lake.user_id, fresh.user_id) END,
            CASE
                WHEN lake.action_type <> fresh.action_type
                    THEN format('action_type {} -> {}', lake.action_type, fresh.action_type)
            END,
            CASE
                WHEN lake.event_time <> fresh.event_time
                    THEN format('event_time {} -> {}', lake.event_time::VARCHAR, fresh.event_time::VARCHAR)
            END,
            CASE
                WHEN list_sort(map_entries(lake.metadata)) <> list_sort(map_entries(fresh.metadata))
                    THEN format('metadata {} -> {}', lake.metadata::VARCHAR, fresh.metadata::VARCHAR)
            END
        ) AS fields
    FROM fresh.events AS fresh
    LEFT JOIN lake.events AS lake USING (event_id)
),
differences AS (
    SELECT event_id, CASE WHEN missing THEN 'missing' ELSE 'different' END AS kind, left(fields, 300) AS fields
    FROM paired
    WHERE missing OR different
    UNION ALL
    SELECT event_id, 'extra', '' FROM in_range WHERE event_id NOT IN (SELECT event_id FROM fresh.events)
)
SELECT
    (SELECT count(*) FROM paired) - count(*) FILTER (kind <> 'extra') AS same,
    count(*) FILTER (kind = 'different') AS different,
    count(*) FILTER (kind = 'missing') AS missing,
    count(*) FILTER (kind = 'extra') AS extra,
    coalesce(list(event_id ORDER BY event_id)[1:5], []) AS examples,
    coalesce(arg_min(fields, event_id) FILTER (kind = 'different'), '') AS fields,
    {
        'different': min(event_id) FILTER (kind = 'different'),
        'missing': min(event_id) FILTER (kind = 'missing'),
        'extra': min(event_id) FILTER (kind = 'extra')
    } AS first
FROM differences
