-- Every rating as it was given before as_of, retracted or not: those of events that meet the conditions of their action
-- and are readable, by the steps of the derivation, which also find the rating. $source: the last of these steps.
-- level is the rating's position between the minimum (0) and the maximum (1) of the scale of the policy in force;
-- rater_id is null where the event has none.
CREATE OR REPLACE TEMP VIEW rating_given AS
SELECT
    event.event_id,
    event.user_id,
    event.metadata['rater_id'] AS rater_id,
    event.action_type,
    make_timestamptz(event.t) AS event_time,
    utc_day(event.t) AS day,
    event.rating / 1000000 AS rating,
    greatest(0, least(1, (event.rating - minimum) / nullif(maximum - minimum, 0))) AS level
FROM $source AS event
INNER JOIN opinion_scale AS scale ON scale.action_type = event.action_type
WHERE event.emission_no = 0 AND event.role IS NULL AND event.matched AND event.readable AND event.rating IS NOT NULL
