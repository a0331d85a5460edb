-- How long users stay active: the share that has not left, by days since the first event (Kaplan-Meier).
-- $idle_days = 30 (1..36500): days without an event after which a user has left
-- Method: a user has left once more than idle_days have passed without an event, also if one comes later; others are
-- observed until as_of, so that young accounts contribute up to their age. The band is 1.96 standard errors (Greenwood). since and until
-- choose users by the day of their first event. A row for age 0 and for each age at which users left.
-- Chart: step x=age_days y=survival low=lower high=upper
WITH pauses AS (
    SELECT
        user_id,
        day,
        min(day) OVER (PARTITION BY user_id) AS first_day,
        CAST(as_of AS DATE) AS last_day,
        coalesce(lead(day) OVER (PARTITION BY user_id ORDER BY day), CAST(as_of AS DATE)) - day > $idle_days AS leaves
    FROM (SELECT DISTINCT user_id, day FROM user_days WHERE events > 0), snapshot_info
),

lives AS (
    SELECT
        coalesce(min(day) FILTER (leaves) - first_day + CAST($idle_days AS BIGINT), any_value(last_day) - first_day)
            AS age_days,
        bool_or(leaves) AS has_left
    FROM pauses
    WHERE ($since IS NULL OR first_day >= $since) AND ($until IS NULL OR first_day < $until)
    GROUP BY user_id, first_day
),

ages AS (
    SELECT age_days, count(*) AS observed, count(*) FILTER (has_left) AS left_users
    FROM lives
    GROUP BY age_days
    UNION ALL
    SELECT 0, 0, 0
    FROM lives
    HAVING count(*) FILTER (age_days = 0) = 0 AND count(*) > 0
),

risks AS (
    SELECT age_days, left_users, CAST(sum(observed) OVER (ORDER BY age_days DESC) AS BIGINT) AS at_risk
    FROM ages
),

curve AS (
    SELECT
        *,
        product(1 - left_users / at_risk) OVER so_far AS survival,
        sum(left_users / nullif(CAST(at_risk AS DOUBLE) * (at_risk - left_users), 0)) OVER so_far AS variance
    FROM risks
    WINDOW so_far AS (ORDER BY age_days)
)

SELECT
    age_days,
    at_risk,
    left_users,
    survival,
    greatest(survival * (1 - 1.96 * sqrt(coalesce(variance, 0))), 0) AS lower,
    least(survival * (1 + 1.96 * sqrt(coalesce(variance, 0))), 1) AS upper
FROM curve
WHERE age_days = 0 OR left_users > 0
ORDER BY age_days
