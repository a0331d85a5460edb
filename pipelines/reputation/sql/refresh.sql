-- The statements of a refresh, in the order in which refresh_steps.py runs them.

-- name: refresh_affected_event
-- The events that the steps run over in a refresh: those of affected users, and those that complete them.
CREATE OR REPLACE TEMP TABLE affected_event (
    event_id VARCHAR,
    user_id VARCHAR,
    action_type VARCHAR,
    event_time TIMESTAMP WITH TIME ZONE,
    metadata MAP (VARCHAR, VARCHAR)
)

-- name: refresh_history_rows
-- Events in the form of the histories.
SELECT
    hash(user_id) AS user_hash,
    user_id,
    event_id,
    action_type,
    epoch_us(event_time) AS t,
    metadata,
    CAST(0 AS BIGINT) AS version
FROM $source

-- name: refresh_load_events
-- Add events to affected_event.
INSERT INTO affected_event
SELECT event_id, user_id, action_type, make_timestamptz(t), metadata
FROM arrow_rows

-- name: refresh_affected_user
-- Affected users by user_id, and those of removed events. The steps, and then the query of each table, run for these users only.
CREATE OR REPLACE TEMP TABLE affected_user AS
SELECT user_id
FROM affected_event
UNION
SELECT user_id
FROM arrow_rows

-- name: refresh_recomputed
-- For each table: the recomputed rows, in the form of the stored ones. Reading them from the query itself binds it twice.
CREATE OR REPLACE TEMP TABLE recomputed AS
SELECT $columns
FROM (
$query
)
