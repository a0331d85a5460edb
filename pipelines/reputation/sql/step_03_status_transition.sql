-- The status events that changed a status: a suspension of an active user, a reinstatement of a suspended one.
CREATE OR REPLACE TEMP VIEW status_transition AS
SELECT user_id, t, source_row, event_id, suspends
FROM (
    SELECT
        user_id,
        t,
        source_row,
        event_id,
        role = 'suspend' AS suspends,
        lag(role = 'suspend', 1, false) OVER status_order AS suspended
    FROM known_event
    WHERE role IN ('suspend', 'reinstate')
    WINDOW status_order AS (PARTITION BY user_id ORDER BY t, source_row, event_id)
)
WHERE suspends <> suspended
