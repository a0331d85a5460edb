-- How many of a user's events were not simply granted, and why, by UTC day and action_type.
SELECT user_id, day, action_type, reason, count(*) AS events
FROM fact
WHERE is_first AND reason <> 'granted'
GROUP BY user_id, day, action_type, reason
ORDER BY user_id, day, action_type, reason
