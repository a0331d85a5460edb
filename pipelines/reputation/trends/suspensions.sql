-- Users suspended and reinstated on each day, and how many were suspended at its end.
-- Method: changes of status by the policy in force; a suspension of a suspended user changes nothing. Every day from
-- the first suspension to as_of has a row.
-- Chart: step x=day y=currently_suspended
WITH changes AS (
    SELECT CAST(suspended_at AS DATE) AS day, 1 AS suspended, 0 AS reinstated
    FROM status_periods
    UNION ALL
    SELECT CAST(reinstated_at AS DATE), 0, 1
    FROM status_periods
    WHERE reinstated_at IS NOT NULL
),

days AS (
    SELECT CAST(unnest(generate_series(first_day, CAST(as_of AS DATE), INTERVAL 1 DAY)) AS DATE) AS day
    FROM snapshot_info, (SELECT min(day) AS first_day FROM changes)
),

by_day AS (
    SELECT
        days.day,
        CAST(coalesce(sum(suspended), 0) AS BIGINT) AS suspended,
        CAST(coalesce(sum(reinstated), 0) AS BIGINT) AS reinstated
    FROM days
    LEFT JOIN changes ON changes.day = days.day
    GROUP BY days.day
),

running AS (
    SELECT *, CAST(sum(suspended - reinstated) OVER (ORDER BY day) AS BIGINT) AS currently_suspended
    FROM by_day
)

FROM running
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY day
