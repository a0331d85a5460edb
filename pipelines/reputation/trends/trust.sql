-- How far each user is trusted by those whom others trust, and what a rater's opinions weigh (EigenTrust, WWW 2003).
-- $seeds = null: user_ids trusted from the start, former ones too, separated by commas; null: all users alike
-- $damping = 0.15 (0..1): share of all trust that returns to the seeds in each round
-- $rounds = 20 (1..100): rounds of passing trust on
-- Method: S. D. Kamvar, M. T. Schlosser and H. Garcia-Molina, The EigenTrust Algorithm for Reputation Management in P2P
-- Networks: t(k+1) = (1 - damping) C^T t(k) + damping p, from t(0) = p. Row i of C divides a rater's trust among those
-- rated well, in proportion to the sum of the opinions about each (ratings that count, in thousandths of the scale, at
-- most 9,000 whole ones; sums below zero are nothing); a rater without any passes it to the seeds, p. All trust is 10^12
-- units, divided in whole numbers, and what rounding drops goes to the seeds: the result is exact, the same on every
-- machine. weight is in millionths: trust times the number of trusted users, at most 1,000,000, so a rater trusted like
-- the average weighs fully. trusted_by is the user who passed on the most trust in the last round, and
-- trusted_by_share the share of all that raters passed on; day is that of the last rating, given or received.
-- Chart: point x=average y=weight size=ratings_received
WITH names AS MATERIALIZED (
    SELECT user_id, CAST(row_number() OVER (ORDER BY user_id) AS INTEGER) AS no
    FROM (
        SELECT user_id FROM rating_counted
        UNION
        SELECT rater_id FROM rating_counted
        UNION
        SELECT unnest(CAST($seeds AS VARCHAR[]))
    )
),

opinions AS MATERIALIZED (
    SELECT
        rater.no AS rater,
        rated.no AS rated,
        CAST(greatest(0, least(sum(CAST(round(opinion * 1000) AS BIGINT)), 9000000)) AS BIGINT) AS opinion,
        sum(opinion) AS total,
        CAST(count(*) AS INTEGER) AS ratings,
        max(day) AS day
    FROM rating_counted
    INNER JOIN names AS rater ON rater.user_id = rater_id
    INNER JOIN names AS rated ON rated.user_id = rating_counted.user_id
    GROUP BY rater.no, rated.no
),

givers AS MATERIALIZED (
    SELECT
        rater AS no,
        CAST(sum(opinion) AS BIGINT) AS given,
        CAST(sum(ratings) AS BIGINT) AS ratings,
        max(day) AS day
    FROM opinions
    GROUP BY rater
),

seeds AS MATERIALIZED (
    SELECT no
    FROM names
    WHERE CAST($seeds AS VARCHAR[]) IS NULL OR list_contains(CAST($seeds AS VARCHAR[]), user_id)
),

shares AS (
    SELECT rater, rated, opinion
    FROM opinions
    WHERE opinion > 0
),

trusted AS MATERIALIZED (
    SELECT no, trust, trust_weight(trust, count(*) OVER ()) AS weight
    FROM trust_rounds('shares', 'seeds', CAST(round($damping * 1000000) AS BIGINT), $rounds)
),

-- The rater with the largest flow, by one maximum: the flow, and below it the number.
received AS MATERIALIZED (
    SELECT
        opinions.rated AS no,
        max(CAST(trust * opinion // nullif(given, 0) AS HUGEINT) * 4294967296 + opinions.rater) AS largest,
        CAST(sum(trust * opinion // nullif(given, 0)) AS BIGINT) AS flows,
        sum(opinions.total) / sum(opinions.ratings) AS average,
        CAST(sum(opinions.ratings) AS BIGINT) AS ratings,
        max(opinions.day) AS day
    FROM opinions
    INNER JOIN givers ON givers.no = opinions.rater
    LEFT JOIN trusted ON trusted.no = opinions.rater
    GROUP BY opinions.rated
)

SELECT
    names.user_id,
    greatest(received.day, givers.day) AS day,
    coalesce(trust, 0) AS trust,
    coalesce(weight, 0) AS weight,
    trusting.user_id AS trusted_by,
    CASE WHEN flows > 0 THEN CAST(largest // 4294967296 AS DOUBLE) / flows END AS trusted_by_share,
    average,
    coalesce(givers.ratings, 0) AS ratings_given,
    coalesce(received.ratings, 0) AS ratings_received
FROM names
LEFT JOIN trusted ON trusted.no = names.no
LEFT JOIN received ON received.no = names.no
LEFT JOIN givers ON givers.no = names.no
LEFT JOIN names AS trusting ON flows > 0 AND trusting.no = largest % 4294967296
WHERE ($since IS NULL OR greatest(received.day, givers.day) >= $since)
    AND ($until IS NULL OR greatest(received.day, givers.day) < $until)
ORDER BY names.user_id
