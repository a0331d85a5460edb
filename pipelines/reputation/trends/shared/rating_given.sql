-- Every readable rating as it was given before as_of, retracted or not, by the scales of the policy in force.
-- level is its position between the scale's minimum (0) and maximum (1), which are those of all constant ratings for one
-- that is constant, such as an up vote; rater_id is null where the event has none.
CREATE OR REPLACE TEMP VIEW rating_given AS
WITH scales AS (
    SELECT
        action.key AS action_type,
        action.value ->> '$.rating.from' AS key,
        CAST(action.value ->> '$.rating.fixed' AS DOUBLE) AS fixed,
        CAST(action.value -> '$.rating.map' AS MAP(VARCHAR, DOUBLE)) AS words,
        coalesce(
            CAST(action.value ->> '$.rating.minimum' AS DOUBLE),
            list_min(map_values(words)),
            min(CAST(action.value ->> '$.rating.fixed' AS DOUBLE)) OVER ()
        ) AS minimum,
        coalesce(
            CAST(action.value ->> '$.rating.maximum' AS DOUBLE),
            list_max(map_values(words)),
            max(CAST(action.value ->> '$.rating.fixed' AS DOUBLE)) OVER ()
        ) AS maximum
    FROM snapshot_info, json_each(policy, '$.versions') AS edition, json_each(edition.value, '$.actions') AS action
    WHERE edition.value ->> '$.version' = policy_version
),

ratings AS (
    SELECT
        event.event_id,
        event.user_id,
        event.metadata['rater_id'] AS rater_id,
        event.action_type,
        event.event_time,
        event.event_day AS day,
        CASE
            WHEN scales.fixed IS NOT NULL THEN scales.fixed
            WHEN scales.words IS NOT NULL THEN scales.words[event.metadata[scales.key]]
            ELSE try_cast(event.metadata[scales.key] AS DOUBLE)
        END AS rating,
        minimum,
        maximum
    FROM events AS event
    INNER JOIN scales ON scales.action_type = event.action_type
    WHERE event.event_time < (SELECT as_of FROM snapshot_info)
)

SELECT
    * EXCLUDE (minimum, maximum),
    (rating - minimum) / nullif(maximum - minimum, 0) AS level
FROM ratings
WHERE rating BETWEEN minimum AND maximum
