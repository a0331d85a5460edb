-- The weights of raters: EigenTrust over who rated whom. Trust is 10^12 units in whole numbers, weights are in
-- millionths. raters.py runs these; the trend `trust` calls the macro, too.

-- name: macro_trust_rounds
-- The trust of users after some rounds from the seeds. opinion_table: with rater, rated and opinion (above 0), each pair
-- once; seed_table: with no; damping: in millionths. Columns no and trust; users without trust have no row.
-- t(k+1) = (1 - damping) C^T t(k) + damping p. What no rater passes on goes to the seeds, p: the damping, all of a rater
-- without opinions, and what whole numbers drop.
CREATE OR REPLACE TEMP MACRO trust_rounds(opinion_table, seed_table, damping, last_round) AS TABLE
    WITH RECURSIVE local AS MATERIALIZED (
        FROM query_table(opinion_table)
    ),

    totals AS MATERIALIZED (
        SELECT rater, CAST(sum(opinion) AS BIGINT) AS given
        FROM local
        GROUP BY rater
    ),

    start AS MATERIALIZED (
        SELECT no, CAST(count(*) OVER () AS BIGINT) AS seeds
        FROM query_table(seed_table)
    ),

    passing AS (
        SELECT no, 1000000000000 // seeds AS trust, 0 AS round
        FROM start
        UNION ALL
        (
            WITH giving AS (
                SELECT passing.no, trust, given, round + 1 AS round
                FROM passing
                INNER JOIN totals ON totals.rater = passing.no
                WHERE round < last_round
            ),

            passed AS (
                SELECT
                    local.rated AS no,
                    CAST(sum(trust * opinion // given) AS BIGINT) * (1000000 - damping) // 1000000 AS trust,
                    any_value(round) AS round
                FROM local
                INNER JOIN giving ON giving.no = local.rater
                GROUP BY local.rated
            ),

            returned AS (
                SELECT 1000000000000 - CAST(sum(trust) AS BIGINT) AS trust, any_value(round) AS round
                FROM passed
                HAVING count(*) > 0
            )

            SELECT no, CAST(sum(trust) AS BIGINT) AS trust, any_value(round) AS round
            FROM (
                SELECT no, trust, round
                FROM passed
                UNION ALL
                SELECT no, trust // seeds, round
                FROM start, returned
            )
            GROUP BY no
        )
    )

    SELECT no, trust
    FROM passing
    WHERE round = (SELECT max(round) FROM passing) AND trust > 0

-- name: macro_trust_weight
-- What a user trusted so far weighs, in millionths: fully (1,000,000) if like the average of all `users` trusted ones.
CREATE OR REPLACE TEMP MACRO trust_weight(trust, users) AS
    CAST(least(1000000, CAST(trust AS HUGEINT) * users // 1000000) AS BIGINT)

-- name: raters_given
-- Every rating as an opinion: the place of the rating on the scale of its action, from -1000 to 1000, in force from the
-- day after `day` until `last_day`, the day of its first retraction; 0 for one that cannot be read, does not meet the
-- conditions of its action, or is of oneself. Status, corrections and the rules between ratings and points play no part:
-- what a day's weights come from is known when the day begins.
CREATE OR REPLACE TEMP TABLE opinion_given AS
SELECT
    event.user_id,
    event.metadata[getvariable('rater_key')] AS rater_id,
    utc_day(event.t) AS day,
    utc_day(withdrawn.t) AS last_day,
    greatest(-1000, least(1000, CASE
        WHEN event.rating IS NULL
            OR NOT event.matched
            OR coalesce(event.metadata[getvariable('rater_key')] = event.user_id, true) THEN 0
        WHEN scale.maximum > scale.minimum
            THEN (2 * event.rating - scale.minimum - scale.maximum) * 1000 // (scale.maximum - scale.minimum)
        ELSE 1000 * CAST(sign(event.rating) AS BIGINT)
    END)) AS opinion
FROM emitted AS event
INNER JOIN opinion_scale AS scale ON scale.action_type = event.action_type
LEFT JOIN retracted_event AS retracted
    ON retracted.user_id = event.user_id AND retracted.event_id = event.event_id
LEFT JOIN known_event AS withdrawn
    ON withdrawn.user_id = retracted.user_id AND withdrawn.event_id = retracted.retracted_by
WHERE event.emission_no = 0

-- name: raters_numbers
-- Users as numbers, which the rounds join by.
CREATE OR REPLACE TEMP TABLE rater_number AS
SELECT user_id, CAST(row_number() OVER (ORDER BY user_id) AS INTEGER) AS no
FROM (
    SELECT user_id FROM opinion_given
    UNION
    SELECT rater_id FROM opinion_given WHERE rater_id IS NOT NULL
    UNION
    SELECT unnest(getvariable('trust_seeds'))
)

-- name: raters_opinions
-- The opinions by numbers, those of a pair and a day as one.
CREATE OR REPLACE TEMP TABLE opinion_of_day AS
SELECT rater.no AS rater, rated.no AS rated, day, last_day, CAST(sum(opinion) AS BIGINT) AS opinion
FROM opinion_given
INNER JOIN rater_number AS rater ON rater.user_id = rater_id
INNER JOIN rater_number AS rated ON rated.user_id = opinion_given.user_id
GROUP BY ALL

-- name: raters_seeds
-- The seeds by number.
CREATE OR REPLACE TEMP TABLE trust_seed AS
SELECT no
FROM rater_number
WHERE list_contains(getvariable('trust_seeds'), user_id)

-- name: raters_no_weights
-- The weights in force by day; a rater without a row has the minimum.
CREATE OR REPLACE TEMP TABLE rater_weight (day DATE, rater_id VARCHAR, weight BIGINT)

-- name: raters_stored_weights
-- The weights that a warehouse holds.
INSERT INTO rater_weight
SELECT day, user_id, weight
FROM rater_weights

-- name: raters_stored_before
-- The weights that a warehouse holds of the days before one.
SELECT day, user_id, weight
FROM rater_weights
WHERE day < ?

-- name: raters_earlier
-- Weights of earlier days (arrow_rows), as `raters_of_day` makes them: one of them was the last day.
INSERT INTO rater_weight
SELECT day, user_id, weight
FROM arrow_rows
WHERE day < (SELECT max(day) FROM opinion_given) AND (
    $whole
    OR (day, user_id) IN (SELECT (day, rater_id) FROM opinion_given)
)

-- name: raters_days
-- The days with ratings, oldest first.
SELECT DISTINCT day
FROM opinion_given
ORDER BY day

-- name: raters_opinions_in_force
-- The good opinions of each rater when a day begins.
SELECT rater, rated, CAST(least(sum(opinion), 9000000) AS BIGINT) AS opinion
FROM opinion_of_day
WHERE day < getvariable('weighed_day') AND (last_day IS NULL OR last_day >= getvariable('weighed_day'))
GROUP BY rater, rated
HAVING sum(opinion) > 0

-- name: raters_of_day
-- The weights in force on a day, from the opinions in force when it begins: those of its raters, or of all users on the
-- last day with ratings, which may have more of them, and where a correction may change the rater ($whole).
INSERT INTO rater_weight
WITH opinions AS MATERIALIZED (
    $opinions
),

trusted AS (
    SELECT no, trust_weight(trust, count(*) OVER ()) AS weight
    FROM trust_rounds('opinions', 'trust_seed', getvariable('trust_damping'), getvariable('trust_rounds'))
)

SELECT getvariable('weighed_day'), user_id, weight
FROM trusted
INNER JOIN rater_number ON rater_number.no = trusted.no
WHERE weight >= getvariable('trust_minimum') AND (
    $whole
    OR getvariable('weighed_day') = (SELECT max(day) FROM opinion_given)
    OR trusted.no IN (SELECT rater FROM opinion_of_day WHERE day = getvariable('weighed_day'))
)

-- name: raters_join
-- In step 15: the weight of the rater on the day of the rating.
LEFT JOIN rater_weight AS weighing
    ON weighing.day = utc_day(t) AND weighing.rater_id = metadata[getvariable('rater_key')]

-- name: raters_weight
-- In step 15: the weight of the rater.
coalesce(weighing.weight, getvariable('trust_minimum'))
