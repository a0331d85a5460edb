-- How far each user is trusted by those whom others trust, and what a rater's opinions weigh (EigenTrust, WWW 2003).
-- $seeds = null: user_ids trusted from the start, separated by commas; null: all users alike
-- $damping = 0.15: share of all trust that returns to the seeds in each round (0 to 1)
-- $rounds = 20: rounds of passing trust on
-- Method: S. D. Kamvar, M. T. Schlosser and H. Garcia-Molina, The EigenTrust Algorithm for Reputation Management in P2P
-- Networks: t(k+1) = (1 - damping) C^T t(k) + damping p, from t(0) = p. Row i of C divides a rater's trust among those
-- rated well, in proportion to the sum of the opinions about each (ratings that count, in thousandths of the scale, at
-- most 9,000 whole ones; sums below zero are nothing); a rater without any passes it to the seeds, p. All trust is 10^12
-- units, divided in whole numbers, and what rounding drops goes to the seeds: the result is exact, the same on every
-- machine. weight is in millionths: trust times the number of trusted users, at most 1,000,000, so a rater trusted like
-- the average weighs fully. trusted_by is the user who passed on the most trust in the last round, and
-- trusted_by_share the share of all that raters passed on; day is that of the last rating, given or received.
-- Chart: point x=average y=weight size=ratings_received
WITH RECURSIVE opinions AS MATERIALIZED (
    SELECT
        rater_id,
        user_id,
        CAST(least(sum(CAST(round(opinion * 1000) AS BIGINT)), 9000000) AS BIGINT) AS opinion,
        sum(opinion) AS total,
        count(*) AS ratings,
        max(day) AS day
    FROM rating_counted
    GROUP BY rater_id, user_id
),

shares AS MATERIALIZED (
    SELECT rater_id, user_id, opinion, CAST(sum(opinion) OVER (PARTITION BY rater_id) AS BIGINT) AS given
    FROM opinions
    WHERE opinion > 0
),

members AS (
    SELECT rater_id AS user_id
    FROM opinions
    UNION
    SELECT user_id
    FROM opinions
),

seeds AS MATERIALIZED (
    SELECT user_id, CAST(count(*) OVER () AS BIGINT) AS seeds
    FROM (
        SELECT DISTINCT trim(unnest(string_split(CAST($seeds AS VARCHAR), ','))) AS user_id
        UNION ALL
        SELECT user_id
        FROM members
        WHERE $seeds IS NULL
    )
),

rounds AS (
    SELECT user_id, 1000000000000 // seeds AS trust, 0 AS round
    FROM seeds
    UNION ALL
    (
        WITH passed AS (
            SELECT
                shares.user_id,
                CAST(sum(trust * opinion // given) AS BIGINT)
                * (1000000 - CAST(round($damping * 1000000) AS BIGINT))
                // 1000000 AS trust,
                any_value(round) + 1 AS round
            FROM rounds
            INNER JOIN shares ON shares.rater_id = rounds.user_id
            WHERE round < $rounds
            GROUP BY shares.user_id
        ),

        returned AS (
            SELECT 1000000000000 - CAST(sum(trust) AS BIGINT) AS trust, any_value(round) AS round
            FROM passed
            HAVING count(*) > 0
        )

        SELECT user_id, CAST(sum(trust) AS BIGINT) AS trust, any_value(round) AS round
        FROM (
            SELECT user_id, trust, round
            FROM passed
            UNION ALL
            SELECT user_id, trust // seeds, round
            FROM seeds, returned
        )
        GROUP BY user_id
    )
),

trusted AS MATERIALIZED (
    SELECT user_id, trust, count(*) OVER () AS users
    FROM rounds
    WHERE round = (SELECT max(round) FROM rounds) AND trust > 0
),

received AS (
    SELECT
        opinions.user_id,
        arg_max(opinions.rater_id, (coalesce(trust * shares.opinion // given, 0), opinions.rater_id))
            FILTER (trust * shares.opinion // given > 0) AS trusted_by,
        max(trust * shares.opinion // given) / nullif(sum(trust * shares.opinion // given), 0) AS trusted_by_share,
        sum(opinions.total) / sum(opinions.ratings) AS average,
        sum(opinions.ratings) AS ratings,
        max(opinions.day) AS day
    FROM opinions
    LEFT JOIN shares ON shares.rater_id = opinions.rater_id AND shares.user_id = opinions.user_id
    LEFT JOIN trusted ON trusted.user_id = opinions.rater_id
    GROUP BY opinions.user_id
),

given AS (
    SELECT rater_id AS user_id, sum(ratings) AS ratings, max(day) AS day
    FROM opinions
    GROUP BY rater_id
)

SELECT
    listed.user_id,
    greatest(received.day, given.day) AS day,
    coalesce(trust, 0) AS trust,
    CAST(least(1000000, coalesce(CAST(trust AS HUGEINT) * users // 1000000, 0)) AS BIGINT) AS weight,
    trusted_by,
    trusted_by_share,
    average,
    CAST(coalesce(given.ratings, 0) AS BIGINT) AS ratings_given,
    CAST(coalesce(received.ratings, 0) AS BIGINT) AS ratings_received
FROM (SELECT user_id FROM members UNION SELECT user_id FROM seeds) AS listed
LEFT JOIN trusted ON trusted.user_id = listed.user_id
LEFT JOIN received ON received.user_id = listed.user_id
LEFT JOIN given ON given.user_id = listed.user_id
WHERE ($since IS NULL OR greatest(received.day, given.day) >= $since)
    AND ($until IS NULL OR greatest(received.day, given.day) < $until)
ORDER BY listed.user_id
