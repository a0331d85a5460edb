-- The average rating of each day with its 95 % confidence band, and the mean of the seven days to it.
-- $action_type = null: only ratings of this action_type
-- Method: ratings that count; the band is 1.96 standard errors of a ratio of sums, clustered by rated user, because the
-- ratings of one user resemble each other; null on days with one rated user. The mean weighs all ratings equally.
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

shown AS (
    SELECT
        by_day.day,
        CAST(ratings AS BIGINT) AS ratings,
        users AS rated_users,
        average,
        average - 1.96 * error AS lower,
        average + 1.96 * error AS upper,
        sum(total) OVER seven_days / sum(ratings) OVER seven_days AS seven_day_mean
    FROM by_day
    INNER JOIN errors ON errors.day = by_day.day
    WINDOW seven_days AS (ORDER BY by_day.day RANGE BETWEEN INTERVAL 6 DAYS PRECEDING AND CURRENT ROW)
)

FROM shown
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY day
