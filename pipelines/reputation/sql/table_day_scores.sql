-- How many of each UTC day's active users have which score: a user's points of all days so far, at the end of the day.
-- Of a user's rows of a day, which all have the score at its end, the last one is used.
SELECT day, score, count(*) AS users
FROM (
    SELECT
        day,
        CAST(sum(points) OVER (PARTITION BY user_id ORDER BY day) AS $score) AS score,
        sum(events) OVER (PARTITION BY user_id ORDER BY day RANGE BETWEEN CURRENT ROW AND CURRENT ROW) AS events
    FROM $user_days
    QUALIFY lead(day) OVER (PARTITION BY user_id ORDER BY day) IS DISTINCT FROM day
)
WHERE events > 0
GROUP BY day, score
ORDER BY day, score
