-- Users, their events, and the events that count.
SELECT
    (SELECT count(*) FROM reputation),
    CAST(coalesce(sum(events), 0) AS BIGINT),
    CAST(coalesce(sum(counted), 0) AS BIGINT)
FROM user_days
