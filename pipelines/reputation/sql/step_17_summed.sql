-- One row per user with an event: status, and for every view its counts, measures and exact sums of points by half-life.
-- views.py fills in the columns of the views.
SELECT
    tally.user_id,
    CASE WHEN suspended.user_id IS NULL THEN 'active' ELSE 'suspended' END AS status,
    $columns
FROM (
    SELECT
        user_id,
        $tallies
    FROM fact
    GROUP BY user_id
) AS tally
LEFT JOIN (SELECT user_id FROM status_period WHERE to_t IS NULL) AS suspended ON suspended.user_id = tally.user_id
