-- What each user did and earned on each UTC day, by action_type.
SELECT
    user_id,
    day,
    action_type,
    count(*) FILTER (WHERE is_first) AS events,
    count(*) FILTER (WHERE counted) AS counted,
    $points AS points,
    $ratings AS rating_sum,
    count(rating) AS rating_count
FROM fact
GROUP BY user_id, day, action_type
ORDER BY user_id, day
