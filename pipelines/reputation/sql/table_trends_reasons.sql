-- The number of events by UTC day, action_type and the reason for which they did or did not count: the events of a day
-- that have no other reason are granted.
SELECT day, action_type, reason, CAST(sum(events) AS BIGINT) AS events
FROM (
    SELECT day, action_type, reason, events
    FROM $user_reasons
    UNION ALL
    SELECT day, action_type, 'granted' AS reason, events
    FROM $user_days
    UNION ALL
    SELECT day, action_type, 'granted' AS reason, -events AS events
    FROM $user_reasons
)
GROUP BY day, action_type, reason
HAVING sum(events) > 0
ORDER BY day, action_type, reason
