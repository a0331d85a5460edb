-- The average rating of each day with its 95 % confidence band.
-- $action_type = null: only ratings of this action_type
-- Method: ratings that count; the band is 1.96 standard errors of a ratio of sums, clustered by rated user, because the
-- ratings of one user resemble each other; null on days with one rated user. seven_day_mean is that of the seven days to
-- it, of all ratings equally. Every day from the first to the last one with a rating has a row.
-- Chart: line x=day y=average low=lower high=upper
WITH by_user AS (
    SELECT
        day,
        user_id,
        CAST(sum(rating_sum) AS DOUBLE) AS total,
        CAST(sum(rating_count) AS DOUBLE) AS ratings
    FROM user_days
    WHERE rating_count > 0 AND ($action_type IS NULL OR action_type = $action_type)
    GROUP BY day, user_id
),

by_day AS (
    SELECT day, count(*) AS users, sum(ratings) AS ratings, sum(total) AS total, sum(total) / sum(ratings) AS average
    FROM by_user
    GROUP BY day
),

errors AS (
    SELECT
        by_user.day,
        sqrt(any_value(by_day.users / nullif(by_day.users - 1, 0)) * sum((by_user.total - average * by_user.ratings) ** 2))
        / any_value(by_day.ratings) AS error
    FROM by_user
    INNER JOIN by_day ON by_day.day = by_user.day
    GROUP BY by_user.day
),

days AS (
    SELECT CAST(unnest(generate_series(min(day), max(day), INTERVAL 1 DAY)) AS DATE) AS day
    FROM by_day
),

shown AS (
    SELECT
        days.day,
        CAST(coalesce(ratings, 0) AS BIGINT) AS ratings,
        coalesce(users, 0) AS rated_users,
        average,
        average - 1.96 * error AS lower,
        average + 1.96 * error AS upper,
        sum(total) OVER seven_days / sum(ratings) OVER seven_days AS seven_day_mean
    FROM days
    LEFT JOIN by_day ON by_day.day = days.day
    LEFT JOIN errors ON errors.day = days.day
    WINDOW seven_days AS (ORDER BY days.day RANGE BETWEEN INTERVAL 6 DAYS PRECEDING AND CURRENT ROW)
)

FROM shown
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY day
