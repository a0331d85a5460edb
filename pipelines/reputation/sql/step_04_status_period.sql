-- The periods [from_t, to_t) in which a user was suspended; to_t is null if the suspension lasts.
CREATE OR REPLACE TEMP VIEW status_period AS
SELECT user_id, from_t, suspended_by, to_t, reinstated_by
FROM (
    SELECT
        user_id,
        t AS from_t,
        event_id AS suspended_by,
        suspends,
        lead(t) OVER status_order AS to_t,
        lead(event_id) OVER status_order AS reinstated_by
    FROM status_transition
    WINDOW status_order AS (PARTITION BY user_id ORDER BY t, source_row, event_id)
)
WHERE suspends
