-- The statements of a refresh, in the order in which refresh_steps.py runs them.

-- name: refresh_changed_day_table
-- The days of users that changed since trends were last computed.
CREATE OR REPLACE TEMP TABLE changed_day (user_id VARCHAR, day DATE)

-- name: refresh_affected_event
-- The events that the steps run over in a refresh: those of affected users, and those that complete them.
CREATE OR REPLACE TEMP TABLE affected_event (
    event_id VARCHAR,
    user_id VARCHAR,
    action_type VARCHAR,
    event_time TIMESTAMP WITH TIME ZONE,
    metadata MAP (VARCHAR, VARCHAR)
)

-- name: refresh_erased_event
-- The events of users who were erased since the warehouse was derived.
CREATE OR REPLACE TEMP TABLE erased_event AS
SELECT user_id, metadata
FROM arrow_rows

-- name: refresh_erased_links
-- The links of completions that erased events may have been.
SELECT DISTINCT hash('value', value) AS link
FROM (
    SELECT unnest(list_transform(getvariable('completion_keys'), lambda key: metadata[key])) AS value
    FROM erased_event
)
WHERE value IS NOT NULL

-- name: refresh_load_events
-- Add events to them.
INSERT INTO affected_event
SELECT event_id, user_id, action_type, make_timestamptz(t), metadata
FROM arrow_rows

-- name: refresh_affected_user
-- Affected users by user_id, and erased ones. The steps, and then the query of each table, run for these users only.
CREATE OR REPLACE TEMP TABLE affected_user AS
SELECT user_id
FROM affected_event
UNION
SELECT user_id
FROM erased_event

-- name: refresh_recomputed
-- For each table: the recomputed rows, each as one value, so that whole rows compare.
CREATE OR REPLACE TEMP TABLE recomputed AS
SELECT now AS row_value
FROM ($query) AS now

-- name: refresh_stored
-- The stored rows, each as one value, with its rowid.
CREATE OR REPLACE TEMP TABLE stored AS
SELECT before.rowid AS row_id, before AS row_value
FROM $name AS before
WHERE before.user_id IN (FROM affected_user)

-- name: refresh_deleted
-- Stored rows that the recomputed ones do not contain ...
CREATE OR REPLACE TEMP TABLE deleted AS
FROM stored
ANTI JOIN recomputed USING (row_value)

-- name: refresh_inserted
-- ... and recomputed rows that are not stored.
CREATE OR REPLACE TEMP TABLE inserted AS
FROM recomputed
ANTI JOIN stored USING (row_value)

-- name: refresh_delete_rows
-- Delete the former ...
DELETE FROM $name
WHERE rowid IN (SELECT row_id FROM deleted)

-- name: refresh_insert_rows
-- ... and insert the latter: unchanged rows are not written.
INSERT INTO $name
SELECT unnest(row_value)
FROM inserted

-- name: refresh_changed_day
-- Remember the changed days until their trends are computed.
INSERT INTO changed_day
SELECT DISTINCT row_value.user_id, row_value.day
FROM (SELECT row_value FROM deleted UNION ALL FROM inserted)

-- name: refresh_changed_user
-- Users whose scores changed, for publication.
SELECT DISTINCT row_value.user_id
FROM (SELECT row_value FROM deleted UNION ALL FROM inserted)

-- name: refresh_pending_day
-- Before a publication: the days whose trends are out of date, that is the changed days and, because scores run on, the
-- later days of the same users.
CREATE OR REPLACE TEMP TABLE pending_day AS
SELECT day
FROM changed_day
UNION
SELECT later.day
FROM user_days AS later
JOIN (SELECT user_id, min(day) AS day FROM changed_day GROUP BY user_id) AS first
    ON first.user_id = later.user_id AND later.day > first.day

-- name: refresh_delete_days
-- Delete the trends of these days; insert_rows then inserts the new ones.
DELETE FROM $name
WHERE day IN (FROM pending_day)
