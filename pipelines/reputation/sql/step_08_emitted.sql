-- Each event with the emissions that the policy gives its action_type; points and rating are read from the metadata. An
-- event without a rule, or with a role, is one row without points.
CREATE OR REPLACE TEMP VIEW emitted AS
SELECT
    *,
    points IS NOT NULL AND (rating IS NOT NULL OR NOT rates) AS readable
FROM (
    SELECT
        event.event_id,
        event.user_id,
        event.action_type,
        event.t,
        event.metadata,
        event.role,
        emission.emission_no,
        emission.version,
        emission.half_life_us,
        emission.epoch_us,
        emission.penalties_expire_us,
        CASE
            WHEN emission.fixed IS NOT NULL THEN emission.fixed
            WHEN emission.mapped THEN star.points
            WHEN parse_micro(event.metadata[emission.points_key])
                BETWEEN emission.points_minimum AND emission.points_maximum
                AND parse_micro(event.metadata[emission.points_key]) % emission.points_step = 0
                THEN parse_micro(event.metadata[emission.points_key]) * emission.scale // 1000000
        END AS points,
        emission.rating_key IS NOT NULL AS rates,
        CASE
            WHEN parse_micro(event.metadata[emission.rating_key])
                BETWEEN emission.rating_minimum AND emission.rating_maximum
                AND parse_micro(event.metadata[emission.rating_key]) % emission.rating_step = 0
                THEN parse_micro(event.metadata[emission.rating_key])
        END AS rating
    FROM corrected_event AS event
    LEFT JOIN emission
        ON emission.action_type = event.action_type
        AND event.t >= emission.from_us
        AND event.t < emission.to_us
    LEFT JOIN star
        ON star.emission_key = emission.emission_key
        AND star.value = parse_micro(event.metadata[emission.points_key])
)
