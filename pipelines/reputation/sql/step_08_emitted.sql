-- Each event with the emissions that the policy gives its action_type; points and rating are read from the metadata. An
-- event without a rule, or with a role, is one row without points. Points and rating usually come from one key, whose
-- number is parsed once. matched says whether the event meets the conditions of its action.
CREATE OR REPLACE TEMP VIEW emitted AS
SELECT
    *,
    points IS NOT NULL AND (NOT rates OR rating IS NOT NULL$weight_is_read) AS readable
FROM (
    SELECT
        parsed.event_id,
        parsed.user_id,
        parsed.action_type,
        parsed.t,
        parsed.source_row,
        parsed.metadata,
        parsed.role,
        parsed.emission_no,
        parsed.version,
        parsed.half_life_us,
        parsed.epoch_us,
        parsed.penalties_expire_us,
        CASE
            WHEN parsed.fixed IS NOT NULL THEN parsed.fixed
            WHEN parsed.points_missing IS NOT NULL AND parsed.metadata[parsed.points_key] IS NULL
                THEN parsed.points_missing
            WHEN parsed.mapped THEN $points_of_map
            WHEN parsed.points_number BETWEEN parsed.points_minimum AND parsed.points_maximum
                AND parsed.points_number % parsed.points_step = 0
                THEN parsed.points_number * parsed.scale // 1000000
        END AS points,
        $matched AS matched,
        parsed.rating_key IS NOT NULL OR parsed.rating_fixed IS NOT NULL AS rates,
        CASE
            WHEN parsed.rating_fixed IS NOT NULL THEN parsed.rating_fixed
            WHEN parsed.rating_missing IS NOT NULL AND parsed.metadata[parsed.rating_key] IS NULL
                THEN parsed.rating_missing
            $rating_of_text
            WHEN parsed.rating_number BETWEEN parsed.rating_minimum AND parsed.rating_maximum
                AND parsed.rating_number % parsed.rating_step = 0
                THEN parsed.rating_number
        END AS rating$rating_weight
    FROM (
        SELECT
            *,
            CASE
                WHEN rating_key = points_key THEN points_number
                ELSE parse_micro(metadata[rating_key])
            END AS rating_number
        FROM (
            SELECT
                event.event_id,
                event.user_id,
                event.t,
                event.source_row,
                event.metadata,
                event.role,
                emission.* REPLACE (event.action_type AS action_type),
                parse_micro(event.metadata[emission.points_key]) AS points_number
            FROM corrected_event AS event
            LEFT JOIN emission
                ON emission.action_type = event.action_type
                AND event.t >= emission.from_us
                AND event.t < emission.to_us
        )
    ) AS parsed
    LEFT JOIN star
        ON star.emission_key = parsed.emission_key
        AND star.value = parsed.points_number
    $points_words
    $rating_words
)
