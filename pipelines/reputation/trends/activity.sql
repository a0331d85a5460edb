-- Active users and their events, by day or week and action_type; action_type null: all actions together.
-- $period = "day" | "week": length of a row's period; weeks start on Monday
-- $action_type = null: only this action_type, without rows of all actions
-- Method: an active user has at least one event in the period, whether it counted or not.
-- Chart: line x=first_day y=active_users color=action_type null=all
SELECT
    CAST(date_trunc($period, day) AS DATE) AS first_day,
    action_type,
    count(DISTINCT user_id) FILTER (events > 0) AS active_users,
    CAST(sum(events) AS BIGINT) AS events,
    CAST(sum(counted) AS BIGINT) AS counted
FROM user_days
WHERE $action_type IS NULL OR action_type = $action_type
GROUP BY GROUPING SETS ((first_day, action_type), (first_day))
HAVING
    ($action_type IS NULL OR GROUPING(action_type) = 0)
    AND ($since IS NULL OR first_day >= $since)
    AND ($until IS NULL OR first_day < $until)
ORDER BY first_day, action_type NULLS FIRST
