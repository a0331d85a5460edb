-- The sums of all users on each UTC day, by action_type: what trends_daily is made of. Points from time have no events.
SELECT
    day,
    action_type,
    count(*) AS users,
    CAST(sum(events) AS BIGINT) AS events,
    CAST(sum(counted) AS BIGINT) AS counted,
    count(*) FILTER (WHERE events > 0) AS active_users,
    CAST(sum(points) AS $points) AS points,
    CAST(sum(rating_sum) AS $ratings) AS rating_sum,
    CAST(sum(rating_count) AS BIGINT) AS rating_count
FROM $user_days
GROUP BY day, action_type
ORDER BY day, action_type
