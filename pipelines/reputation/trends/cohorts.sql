-- How points grow with the age of accounts, by the week of each user's first event.
-- $weeks = 26 (0..5200): the greatest age shown
-- Method: age 0 is the week (from Monday) of the first event; an average is over all users of the cohort, idle or not.
-- Weeks that as_of has not passed yet are left out. since and until choose cohorts.
-- Chart: line x=age_weeks y=average_points color=cohort
WITH first_event AS (
    SELECT user_id, CAST(date_trunc('week', min(day)) AS DATE) AS cohort
    FROM user_days
    GROUP BY user_id
),

cohort AS (
    SELECT cohort, count(*) AS users
    FROM first_event
    GROUP BY cohort
),

earned AS (
    SELECT
        first_event.cohort,
        (CAST(date_trunc('week', day) AS DATE) - first_event.cohort) // 7 AS age_weeks,
        count(DISTINCT user_days.user_id) FILTER (events > 0) AS active_users,
        CAST(sum(points) AS DOUBLE) AS points
    FROM user_days
    INNER JOIN first_event ON first_event.user_id = user_days.user_id
    GROUP BY first_event.cohort, age_weeks
),

ages AS (
    SELECT cohort, users, unnest(range(least($weeks + 1, (CAST(as_of AS DATE) - cohort) // 7))) AS age_weeks
    FROM cohort, snapshot_info
)

SELECT
    ages.cohort,
    ages.age_weeks,
    users,
    coalesce(active_users, 0) AS active_users,
    coalesce(active_users, 0) / users AS active_share,
    sum(coalesce(points, 0)) OVER (PARTITION BY ages.cohort ORDER BY ages.age_weeks) / users AS average_points
FROM ages
LEFT JOIN earned ON earned.cohort = ages.cohort AND earned.age_weeks = ages.age_weeks
WHERE ($since IS NULL OR ages.cohort >= $since) AND ($until IS NULL OR ages.cohort < $until)
ORDER BY ages.cohort, ages.age_weeks
