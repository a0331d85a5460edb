-- How the points of all users so far were spread at the end of each day or week.
-- $period = "week" | "day": length of a row's period; weeks start on Monday
-- Method: a user's points are those of all events up to then (no decay, start or bounds), of active and idle users
-- alike; a percentile is the points of some user (no interpolation). The cost is users times rows: use it for a few
-- years by week, a few months by day.
-- Chart: line x=first_day y=median low=p10 high=p90
WITH standing AS (
    SELECT
        CAST(date_trunc($period, day) AS DATE) AS first_day,
        user_id,
        sum(sum(points)) OVER (PARTITION BY user_id ORDER BY first_day) AS points,
        lead(first_day) OVER (PARTITION BY user_id ORDER BY first_day) AS next_day
    FROM user_days
    GROUP BY first_day, user_id
),

times AS (
    SELECT CAST(unnest(generate_series(min(first_day), max(first_day), CAST('1 ' || $period AS INTERVAL))) AS DATE)
        AS first_day
    FROM standing
)

SELECT
    times.first_day,
    count(*) AS users,
    CAST(quantile_disc(points, 0.1) AS DOUBLE) AS p10,
    CAST(quantile_disc(points, 0.25) AS DOUBLE) AS p25,
    CAST(quantile_disc(points, 0.5) AS DOUBLE) AS median,
    CAST(quantile_disc(points, 0.75) AS DOUBLE) AS p75,
    CAST(quantile_disc(points, 0.9) AS DOUBLE) AS p90
FROM times
INNER JOIN standing
    ON times.first_day >= standing.first_day
    AND times.first_day < coalesce(standing.next_day, DATE 'infinity')
WHERE ($since IS NULL OR times.first_day >= $since) AND ($until IS NULL OR times.first_day < $until)
GROUP BY times.first_day
ORDER BY times.first_day
