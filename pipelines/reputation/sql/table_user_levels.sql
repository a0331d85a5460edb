-- The level of each user from the end of each UTC day on which it changed, and from the first day with an event. A day
-- on which a user leaves a level and returns to it is no change. Null stands for below the first level.
SELECT
    user_id,
    day,
    $level AS level,
    $level_before AS level_before,
    is_first
FROM (
    SELECT
        user_id,
        day,
        level_no,
        lag(level_no) OVER by_day AS level_no_before,
        lag(level_no) OVER by_day IS NULL AS is_first
    FROM (
        SELECT user_id, day, arg_max(level_no, event_rank) AS level_no
        FROM fact
        WHERE level_no IS NOT NULL
        GROUP BY user_id, day
    )
    WINDOW by_day AS (PARTITION BY user_id ORDER BY day)
)
WHERE is_first OR level_no <> level_no_before
ORDER BY user_id, day
