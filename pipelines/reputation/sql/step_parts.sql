-- Parts and variants of the steps.

-- name: policy_table
-- A table of the policy (role, emission, star or word) from its rows.
CREATE OR REPLACE TEMP TABLE $name AS
SELECT * FROM arrow_rows

-- name: step_07_nothing_corrected
-- Step 07 of a policy without corrections.
CREATE OR REPLACE TEMP VIEW corrected_event AS
SELECT * FROM known_event

-- name: known_at
-- The condition of step_01 that leaves out what was committed at or after known_at. Compaction keeps a row's batch_id.
AND event.batch_id IN (
    SELECT batch_id
    FROM commits
    WHERE epoch_us(committed) < getvariable('known_at')
)

-- name: source_row
-- The order of step_01 among events of the same time; a number of the metadata has at most 18 digits.
coalesce(parse_micro(event.metadata[getvariable('order_by')]), -1000000000000000000)

-- name: no_source_row
-- The same of a policy without order_by.
CAST(0 AS BIGINT)

-- name: per
-- One of the metadata keys of a rule's groups, in steps 12 and 14.
metadata[getvariable('${rule}_key_$number')],

-- name: words
-- The join of step_08 where a map of points, or of ratings, has texts.
LEFT JOIN word AS ${number}_word
    ON ${number}_word.emission_key = parsed.emission_key
    AND ${number}_word.number = '$number'
    AND ${number}_word.text = parsed.metadata[parsed.${number}_key]

-- name: rating_weight
-- A column of step_08: how much a rating counts, in millionths. A weight without a key is the same for all events.
CASE
    WHEN parsed.metadata[parsed.weight_key] IS NULL THEN parsed.weight_missing
    WHEN parse_micro(parsed.metadata[parsed.weight_key]) BETWEEN parsed.weight_minimum AND parsed.weight_maximum
        AND parse_micro(parsed.metadata[parsed.weight_key]) % parsed.weight_step = 0
        THEN parse_micro(parsed.metadata[parsed.weight_key])
    ELSE parsed.weight_unreadable
END AS rating_weight

-- name: weight
-- A column of step_15: how much a rating counts, in millionths.
CASE WHEN rating IS NOT NULL THEN $weight END AS weight,

-- name: weight_of_both
-- Its value where both the rater and the event say so: their product, without what is below a millionth.
rating_weight * $of_rater // 1000000

-- name: recency
-- A column of step_16: how much a rating counts beside the latest one, in billionths; half as much after each half-life.
-- A window that has ratings has the latest one, so it is the same in all of them, and does not change with as_of.
CASE
    WHEN rating IS NOT NULL THEN CAST(round(1e9 * pow(
        2.0,
        CAST(least(t - max(CASE WHEN rating IS NOT NULL THEN t END) OVER (PARTITION BY $among), 0) AS DOUBLE)
        / CAST($half_life AS DOUBLE)
    )) AS BIGINT)
END AS $name

-- name: has_text
-- The condition of an action that the metadata have a text at a key.
parsed.metadata[getvariable('${rule}_key')] = getvariable('${rule}_text')

-- name: has_number
-- The condition of an action that the metadata have a number within bounds at a key.
parse_micro(parsed.metadata[getvariable('${rule}_key')])
BETWEEN getvariable('${rule}_minimum') AND getvariable('${rule}_maximum')

-- name: matched
-- The condition of step_08 that an event meets one condition of its action, or is of another action or version.
(
    coalesce($has, false)
    OR NOT governed(
        parsed.action_type,
        parsed.t,
        getvariable('${rule}_actions'),
        getvariable('${edition}_from_us'),
        getvariable('${edition}_to_us')
    )
)

-- name: earned_at_epoch
-- The expression of step_15 where points decay, in 10^-15 points: granted x 2^((t - epoch) / half-life), that is what
-- it takes at the epoch to be worth granted at t. The exponent is split: its whole part is exact.
CASE
    WHEN half_life_us IS NULL THEN CAST(granted AS HUGEINT) * 1000000000
    ELSE CAST(round(
        CAST(granted AS DOUBLE) * 1e9
        * pow(2.0, coalesce(CAST((t - epoch_us) // half_life_us AS DOUBLE), 0.0))
        * pow(2.0, coalesce(CAST((t - epoch_us) % half_life_us AS DOUBLE) / CAST(half_life_us AS DOUBLE), 0.0))
    ) AS HUGEINT)
END

-- name: without_levels
-- The contributions as step_16 reads them, of a policy without levels.
(SELECT *, CAST(NULL AS BIGINT) AS level_no, CAST(NULL AS BIGINT) AS event_rank FROM contribution)

-- name: with_levels
-- The contributions with the score after each event, and the level that the user has then. The emissions of one event
-- have the same.
(
    SELECT *, $level_no AS level_no
    FROM (
        SELECT *, $score AS score_so_far, row_number() OVER so_far AS event_rank
        FROM contribution
        WINDOW so_far AS (PARTITION BY user_id ORDER BY t, source_row, event_id)
    )
    WINDOW in_order AS (PARTITION BY user_id ORDER BY event_rank)
)

-- name: has_level
-- Whether the score reaches a level.
CASE WHEN $score >= $reached THEN 1 ELSE 0 END

-- name: has_level_by_history
-- The same of a level that is lost below another score than reaches it: by the last event after which the score reached
-- it (an odd number) or lost it (an even one), or by the score before all events.
coalesce(
    max(
        CASE
            WHEN score_so_far >= $reached THEN 2 * event_rank + 1
            WHEN score_so_far < $lost THEN 2 * event_rank
        END
    ) OVER in_order % 2,
    $at_start
)
