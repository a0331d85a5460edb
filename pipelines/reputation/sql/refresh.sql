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

-- name: refresh_changed_day
-- For a publication: the days of users that changed since trends were last computed.
CREATE OR REPLACE TEMP TABLE changed_day AS
SELECT DISTINCT user_id, day
FROM arrow_rows

-- name: refresh_changed_day_hashes
-- The users of the changed days, as hashes.
SELECT DISTINCT hash(user_id) AS user_hash
FROM changed_day

-- name: refresh_loaded
-- The stored rows of some users in a table.
CREATE OR REPLACE TEMP TABLE loaded_$name AS
SELECT $columns
FROM arrow_rows

-- name: refresh_pending_day
-- The days whose trends are out of date, that is the changed days and, because scores accumulate, the later days of the
-- same users.
CREATE OR REPLACE TEMP TABLE pending_day AS
SELECT day
FROM changed_day
UNION
SELECT later.day
FROM loaded_user_days AS later
JOIN (SELECT user_id, min(day) AS day FROM changed_day GROUP BY user_id) AS first
    ON first.user_id = later.user_id AND later.day > first.day

-- name: refresh_pending_times
-- The start and end of each of these days, in microseconds since 1970.
SELECT epoch_us(CAST(day AS TIMESTAMP)), epoch_us(CAST(day + 1 AS TIMESTAMP))
FROM pending_day

-- name: refresh_delete_days
-- Delete the trends of these days; insert_rows then inserts the new ones.
DELETE FROM $name
WHERE day IN (FROM pending_day)
