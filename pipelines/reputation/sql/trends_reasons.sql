-- Why events did or did not count, by UTC day and action_type.
CREATE TABLE trends_reasons AS
SELECT day, action_type, reason, count(*) AS events
FROM fact
WHERE is_first
GROUP BY day, action_type, reason
ORDER BY day, action_type, reason
