-- The number of a user's events that were not plainly granted, by UTC day, action_type and reason.
SELECT user_id, day, action_type, reason, count(*) AS events
FROM fact
WHERE is_first AND reason <> 'granted'
GROUP BY user_id, day, action_type, reason
ORDER BY user_id, day, action_type, reason
