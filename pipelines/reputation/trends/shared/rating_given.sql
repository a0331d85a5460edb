-- Every readable rating as it was given before as_of, retracted or not, by the scales of the policy in force.
-- level is its position between the scale's minimum (0) and maximum (1); rater_id is null where the event has none.
CREATE OR REPLACE TEMP VIEW rating_given AS
WITH ratings AS (
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
    INNER JOIN rating_scale AS scales ON scales.action_type = event.action_type
    WHERE event.event_time < (SELECT as_of FROM snapshot_info)
)

SELECT
    * EXCLUDE (minimum, maximum),
    (rating - minimum) / nullif(maximum - minimum, 0) AS level
FROM ratings
WHERE rating BETWEEN minimum AND maximum
