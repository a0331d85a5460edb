-- The periods in which each user was suspended, as timestamps.
SELECT
    user_id,
    make_timestamptz(from_t) AS suspended_at,
    suspended_by,
    make_timestamptz(to_t) AS reinstated_at,
    reinstated_by
FROM status_period
$only
ORDER BY user_id, from_t, suspended_by
