-- The activity of each UTC day, by action_type: a view over the sums, as a mean changes by no difference.
SELECT
    day,
    action_type,
    events,
    counted,
    active_users,
    points,
    CASE WHEN rating_count > 0 THEN CAST(rating_sum AS DOUBLE) / CAST(rating_count AS DOUBLE) END AS rating_average,
    rating_count
FROM day_sums
