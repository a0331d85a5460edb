-- The activity of each UTC day, by action_type; points from time have no events.
SELECT
    day,
    action_type,
    CAST(sum(events) AS BIGINT) AS events,
    CAST(sum(counted) AS BIGINT) AS counted,
    count(*) FILTER (WHERE events > 0) AS active_users,
    CAST(sum(points) AS $exact) AS points,
    CASE WHEN sum(rating_count) > 0 THEN CAST(sum(rating_sum) AS DOUBLE) / CAST(sum(rating_count) AS DOUBLE) END
        AS rating_average,
    CAST(sum(rating_count) AS BIGINT) AS rating_count
FROM $user_days
$of_days
GROUP BY day, action_type
ORDER BY day, action_type
