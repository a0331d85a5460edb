-- How fair each rater is and how good each rated user, each measured by the other (Kumar and others, ICDM 2016).
-- $rounds = 30 (1..100): rounds of the mutual definition; each halves the error at least, so 30 leave less than 1e-8
-- Method: S. Kumar, F. Spezzano, V. S. Subrahmanian and C. Faloutsos, Edge Weight Prediction in Weighted Signed
-- Networks. Goodness is the mean of the opinions received, each times its rater's fairness (-1 to 1); fairness is one
-- minus half the mean distance of a rater's opinions from the goodness of the rated (0 to 1). Both start at 1. Only
-- ratings that count; several of one pair are one opinion, their mean. The product of a rater's fairness and a user's
-- goodness predicts the opinion of the one about the other. day is that of the last rating, given or received.
-- Chart: point x=fairness y=goodness size=ratings_received
WITH RECURSIVE opinions AS MATERIALIZED (
    SELECT rater_id, user_id, avg(opinion) AS opinion, count(*) AS ratings, max(day) AS day
    FROM rating_counted
    GROUP BY rater_id, user_id
),

rounds AS (
    SELECT DISTINCT rater_id, CAST(1 AS DOUBLE) AS fairness, 0 AS round
    FROM opinions
    UNION ALL
    (
        WITH judged AS (
            SELECT opinions.user_id, avg(fairness * opinion) AS goodness, any_value(round) + 1 AS round
            FROM rounds
            INNER JOIN opinions ON opinions.rater_id = rounds.rater_id
            WHERE round < $rounds
            GROUP BY opinions.user_id
        )

        SELECT opinions.rater_id, 1 - avg(abs(opinion - goodness)) / 2 AS fairness, any_value(round) AS round
        FROM judged
        INNER JOIN opinions ON opinions.user_id = judged.user_id
        GROUP BY opinions.rater_id
    )
),

raters AS MATERIALIZED (
    SELECT rounds.rater_id AS user_id, any_value(fairness) AS fairness, sum(ratings) AS ratings, max(day) AS day
    FROM rounds
    INNER JOIN opinions ON opinions.rater_id = rounds.rater_id
    WHERE round = $rounds
    GROUP BY rounds.rater_id
),

rated AS (
    SELECT
        opinions.user_id,
        avg(fairness * opinion) AS goodness,
        avg(opinion) AS average,
        sum(opinions.ratings) AS ratings,
        max(opinions.day) AS day
    FROM opinions
    INNER JOIN raters ON raters.user_id = opinions.rater_id
    GROUP BY opinions.user_id
)

SELECT
    coalesce(rated.user_id, raters.user_id) AS user_id,
    greatest(rated.day, raters.day) AS day,
    fairness,
    goodness,
    average,
    CAST(coalesce(raters.ratings, 0) AS BIGINT) AS ratings_given,
    CAST(coalesce(rated.ratings, 0) AS BIGINT) AS ratings_received
FROM rated
FULL JOIN raters ON raters.user_id = rated.user_id
WHERE ($since IS NULL OR greatest(rated.day, raters.day) >= $since)
    AND ($until IS NULL OR greatest(rated.day, raters.day) < $until)
ORDER BY user_id
