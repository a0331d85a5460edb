-- The number of events by UTC day, action_type and the reason for which they did or did not count.
WITH otherwise AS (
    SELECT day, action_type, reason, CAST(sum(events) AS BIGINT) AS events
    FROM $user_reasons
    $of_days
    GROUP BY day, action_type, reason
),

granted AS (
    SELECT day, action_type, 'granted' AS reason, CAST(sum(events) AS BIGINT) AS events
    FROM (
        SELECT day, action_type, events
        FROM $user_days
        $of_days
        UNION ALL
        SELECT day, action_type, -events
        FROM otherwise
    )
    GROUP BY day, action_type
    HAVING sum(events) > 0
)

FROM otherwise
UNION ALL
FROM granted
ORDER BY day, action_type, reason
