-- The prior of a Bayesian mean from the data: the mean of all ratings given before a day (priors.py). Weights are in
-- millionths, 1,000,000 for a rating where all weigh alike; totals are ratings, in millionths, times weights.

-- name: rating_given
-- What the ratings of each user add to the sums of a day, and take from those of the day on which they are retracted. Status
-- and the rules between ratings and points play no part: they would change the priors of the past.
CREATE OR REPLACE TEMP VIEW rating_given AS
WITH given AS (
    SELECT
        event.user_id,
        utc_day(event.t) AS day,
        greatest(utc_day(event.t), utc_day(withdrawn.t)) AS last_day,
        retracted.event_id IS NOT NULL AS is_retracted,
        $weight AS weight,
        event.rating
    FROM emitted AS event
    LEFT JOIN retracted_event AS retracted
        ON retracted.user_id = event.user_id AND retracted.event_id = event.event_id
    LEFT JOIN known_event AS withdrawn
        ON withdrawn.user_id = retracted.user_id AND withdrawn.event_id = retracted.retracted_by
    $weights
    WHERE event.emission_no = 0 AND event.matched AND event.rating IS NOT NULL$readable
)

SELECT
    user_id,
    day,
    CAST(sum(ratings) AS BIGINT) AS ratings,
    CAST(sum(weight) AS HUGEINT) AS weight,
    CAST(sum(CAST(rating AS HUGEINT) * weight) AS HUGEINT) AS total
FROM (
    SELECT user_id, day, 1 AS ratings, weight, rating
    FROM given
    UNION ALL
    SELECT user_id, last_day AS day, 0 AS ratings, -weight AS weight, rating
    FROM given
    WHERE is_retracted
)
GROUP BY user_id, day

-- name: priors_weights
-- In rating_given: the join with raters' weights.
LEFT JOIN rater_weight AS weighing
    ON weighing.day = utc_day(event.t) AND weighing.rater_id = event.metadata[getvariable('rater_key')]

-- name: priors_by_day
-- The sums of each day with ratings or retractions, and the mean of all days before it, in millionths; null for none.
SELECT
    day,
    ratings,
    weight,
    total,
    CASE WHEN weight_before > 0 THEN CAST(round_half_even(total_before, weight_before) AS BIGINT) END AS prior
FROM (
    SELECT
        *,
        CAST(sum(weight) OVER before AS HUGEINT) AS weight_before,
        CAST(sum(total) OVER before AS HUGEINT) AS total_before
    FROM (
        SELECT
            day,
            CAST(sum(ratings) AS BIGINT) AS ratings,
            CAST(sum(weight) AS HUGEINT) AS weight,
            CAST(sum(total) AS HUGEINT) AS total
        FROM ($source)
        GROUP BY day
        HAVING sum(ratings) <> 0 OR sum(weight) <> 0
    )
    WINDOW before AS (ORDER BY day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)

-- name: priors_computed
-- The priors from all events.
CREATE OR REPLACE TEMP TABLE rating_prior AS
$query

-- name: priors_stored
-- The priors that a warehouse holds.
CREATE OR REPLACE TEMP VIEW rating_prior AS
FROM rating_priors

-- name: priors_change
-- What a refresh changes in the sums of days: of the affected users, those of their events now without the stored ones.
CREATE OR REPLACE TEMP TABLE prior_change AS
SELECT
    day,
    CAST(sum(ratings) AS BIGINT) AS ratings,
    CAST(sum(weight) AS HUGEINT) AS weight,
    CAST(sum(total) AS HUGEINT) AS total
FROM (
    SELECT user_id, day, ratings, weight, total
    FROM rating_given
    UNION ALL
    SELECT user_id, day, -ratings, -weight, -total
    FROM (SELECT $columns FROM arrow_rows)
)
SEMI JOIN affected_user USING (user_id)
GROUP BY day
HAVING sum(ratings) <> 0 OR sum(weight) <> 0 OR sum(total) <> 0

-- name: priors_first_change
-- The first day whose sums change: the priors of the days after it do.
SELECT min(day) FROM prior_change

-- name: priors_changed
-- The priors after these changes.
CREATE OR REPLACE TABLE rating_priors AS
$query
ORDER BY day

-- name: priors_sums
-- The sums of days before these changes, and the changes.
SELECT day, ratings, weight, total
FROM rating_priors
UNION ALL
SELECT day, ratings, weight, total
FROM prior_change

-- name: priors_join
-- In step 15: the prior on the day of the rating.
LEFT JOIN rating_prior AS learned ON learned.day = utc_day(t)

-- name: priors_column
-- In step 15: the prior that a rating brings into force for its user.
CASE WHEN rating IS NOT NULL THEN learned.prior END AS prior,
