-- The statements of a refresh, in the order in which refresh_steps.py runs them.

-- name: refresh_deferred_user
-- Heavy users who are affected and computed later. A hash stands for all users who share it.
CREATE OR REPLACE TEMP TABLE deferred_user (user_hash UBIGINT)

-- name: refresh_changed_day_table
-- The days of users that changed since trends were last computed.
CREATE OR REPLACE TEMP TABLE changed_day (user_id VARCHAR, day DATE)

-- name: refresh_affected_event
-- The events that the steps run over in a refresh: those of affected users, and those that complete them.
CREATE OR REPLACE TEMP TABLE affected_event (
    user_hash UBIGINT,
    event_id VARCHAR,
    user_id VARCHAR,
    action_type VARCHAR,
    event_time TIMESTAMP WITH TIME ZONE,
    metadata MAP (VARCHAR, VARCHAR)
)

-- name: refresh_erased_event
-- The events of users who were erased since the warehouse was derived.
CREATE OR REPLACE TEMP TABLE erased_event AS
SELECT user_id, CAST(to_json(metadata) AS VARCHAR) AS metadata
FROM arrow_rows

-- name: refresh_is_new
-- The condition of an event that became known: by a commit, or because as_of passed its time.
(version > getvariable('since_version') OR t >= getvariable('since_as_of'))

-- name: refresh_affected_hash
-- Users with an event that became known, or that crossed the edge of a window or expired.
CREATE OR REPLACE TEMP TABLE affected_hash AS
SELECT DISTINCT user_hash
FROM by_user.event
WHERE t < getvariable('as_of') AND ($is_new OR $has_moved)

-- name: refresh_changed_key
-- Keys at which a completion may have been added or removed: those that a new completion names; of a user who retracted
-- or corrected an event, all; and those that erased events name.
CREATE OR REPLACE TEMP TABLE changed_key AS
WITH new_event AS (
    SELECT user_hash, action_type, metadata
    FROM by_user.event
    WHERE t < getvariable('as_of') AND $is_new
)

SELECT hash(key) AS key_hash
FROM (
    SELECT unnest(json_extract_string(metadata, getvariable('completion_keys'))) AS key
    FROM new_event
    WHERE list_contains(getvariable('completing_actions'), action_type)
)
WHERE key IS NOT NULL
UNION
SELECT key_hash
FROM by_user.keyed_event
WHERE
    user_hash IN (
        SELECT new_event.user_hash
        FROM new_event
        JOIN role ON role.action_type = new_event.action_type
        WHERE role.role IN ('retraction', 'correction')
    )
UNION
SELECT hash(key) AS key_hash
FROM (SELECT unnest(json_extract_string(metadata, getvariable('completion_keys'))) AS key FROM erased_event)
WHERE key IS NOT NULL

-- name: refresh_affected_by_completion
-- A completion affects every user with an event at its key.
INSERT INTO affected_hash
SELECT DISTINCT user_hash
FROM by_user.keyed_event
WHERE
    key_hash IN (FROM changed_key)
    AND user_hash NOT IN (FROM affected_hash)

-- name: refresh_defer_heavy_users
-- Defer affected users with more events than a refresh should wait for ...
INSERT INTO deferred_user
SELECT user_hash
FROM by_user.event
WHERE user_hash IN (FROM affected_hash) AND user_hash NOT IN (FROM deferred_user)
GROUP BY user_hash
HAVING count(*) > $max_events

-- name: refresh_without_deferred_users
-- ... and leave them out of this refresh;
DELETE FROM affected_hash
WHERE user_hash IN (FROM deferred_user)

-- name: refresh_include_deferred_users
-- or include the users deferred before.
INSERT INTO affected_hash
FROM deferred_user
WHERE user_hash NOT IN (FROM affected_hash)

-- name: refresh_load_affected_events
-- Load the whole history of the affected users.
INSERT INTO affected_event
SELECT
    user_hash,
    event_id,
    user_id,
    action_type,
    make_timestamptz(t),
    from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')
FROM by_user.event
WHERE user_hash IN (FROM affected_hash)

-- name: refresh_related_user
-- Users whose events decide whether an affected user's events are completed.
CREATE OR REPLACE TEMP TABLE related_user AS
SELECT DISTINCT user_hash
FROM by_user.keyed_event
WHERE
    key_hash IN (SELECT key_hash FROM by_user.keyed_event WHERE user_hash IN (FROM affected_hash))
    AND user_hash NOT IN (FROM affected_hash)

-- name: refresh_related_time
-- Times of the related users' events at the affected users' keys, and of their retractions and corrections. Other
-- events of a related user, possibly very many, are not read.
CREATE OR REPLACE TEMP TABLE related_time AS
SELECT user_hash, t
FROM by_user.keyed_event
WHERE
    user_hash IN (FROM related_user)
    AND key_hash IN (SELECT key_hash FROM by_user.keyed_event WHERE user_hash IN (FROM affected_hash))
UNION
SELECT user_hash, t
FROM by_user.event
WHERE
    user_hash IN (FROM related_user)
    AND action_type IN (SELECT action_type FROM role WHERE role IN ('retraction', 'correction'))

-- name: refresh_related_corrected
-- Times of the events that related users corrected: the correction may name the key, and the event another one.
INSERT INTO related_time
SELECT user_hash, t
FROM by_user.event
WHERE
    user_hash IN (FROM related_user)
    AND event_id IN (
        SELECT from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')[getvariable('correction_target')]
        FROM by_user.event
        WHERE
            user_hash IN (FROM related_user)
            AND action_type IN (SELECT action_type FROM role WHERE role = 'correction')
    )

-- name: refresh_load_related_events
-- Load what makes, retracts or corrects a completion.
INSERT INTO affected_event
SELECT
    user_hash,
    event_id,
    user_id,
    action_type,
    make_timestamptz(t),
    from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')
FROM by_user.event
WHERE
    (user_hash, t) IN (FROM related_time)
    AND action_type IN (
        SELECT unnest(getvariable('completing_actions'))
        UNION ALL
        SELECT action_type
        FROM role
        WHERE role = 'retraction'
    )

-- name: refresh_affected_user
-- Affected users by user_id, and erased ones. The steps, and then the query of each table, run for these users only.
CREATE OR REPLACE TEMP TABLE affected_user AS
SELECT user_id
FROM affected_event
WHERE user_hash IN (FROM affected_hash)
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
-- Users whose row changed, for publication.
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
