-- The distribution of the scores of each day's active users: each user's points of all days so far, at the end of the
-- day. Quantiles are scores of a user (no interpolation). Of a user's rows of a day, which all have the score at its
-- end, the last one is used.
SELECT
    day,
    count(*) AS active_users,
    min(score) AS minimum,
    quantile_disc(score, 0.1) AS p10,
    quantile_disc(score, 0.25) AS p25,
    quantile_disc(score, 0.5) AS median,
    quantile_disc(score, 0.75) AS p75,
    quantile_disc(score, 0.9) AS p90,
    max(score) AS maximum
FROM (
    SELECT day, score
    FROM (
        SELECT
            day,
            CAST(sum(points) OVER (PARTITION BY user_id ORDER BY day) AS $exact) AS score,
            sum(events) OVER (PARTITION BY user_id ORDER BY day RANGE BETWEEN CURRENT ROW AND CURRENT ROW) AS events
        FROM $user_days
        $of_users
        QUALIFY lead(day) OVER (PARTITION BY user_id ORDER BY day) IS DISTINCT FROM day
    )
    WHERE events > 0
)
$of_days
GROUP BY day
ORDER BY day
