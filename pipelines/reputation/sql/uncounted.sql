-- How many events earn nothing because no rule or no number of the policy fits them, the most frequent first.
SELECT reason, action_type, CAST(sum(events) AS BIGINT) AS events
FROM $source
WHERE reason IN ('unreadable', 'no rule')
GROUP BY reason, action_type
ORDER BY reason DESC, events DESC, action_type
