-- The distribution of the scores of each day's active users. A quantile is the lowest score that its share of the users
-- has reached, in whole numbers: a score of a user, without interpolation.
SELECT
    day,
    CAST(sum(users) AS BIGINT) AS active_users,
    min(score) AS minimum,
    min(score) FILTER (WHERE 10 * reached >= total) AS p10,
    min(score) FILTER (WHERE 4 * reached >= total) AS p25,
    min(score) FILTER (WHERE 2 * reached >= total) AS median,
    min(score) FILTER (WHERE 4 * reached >= 3 * total) AS p75,
    min(score) FILTER (WHERE 10 * reached >= 9 * total) AS p90,
    max(score) AS maximum
FROM (
    SELECT
        day,
        score,
        users,
        sum(users) OVER (PARTITION BY day ORDER BY score) AS reached,
        sum(users) OVER (PARTITION BY day) AS total
    FROM $day_scores
)
GROUP BY day
ORDER BY day
