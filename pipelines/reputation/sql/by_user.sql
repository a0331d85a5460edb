-- by_user.duckdb: the lake's events ordered by user, which a refresh reads instead of the whole lake.

-- name: by_user_info
-- State of the file: the lake, the version up to which it holds events, the erasures applied to them, and the rules that
-- keyed_event is for.
CREATE TABLE IF NOT EXISTS by_user.info (
    version BIGINT,
    last_batch VARCHAR,
    lake_id VARCHAR,
    duckdb_version VARCHAR,
    completions VARCHAR,
    format INTEGER,
    erasures BIGINT
)

-- name: by_user_stored_info
-- The state of a file of one format.
SELECT version, last_batch, lake_id, duckdb_version, completions, format, erasures
FROM info
WHERE format = ?

-- name: by_user_erased_user
-- Users who were erased since, from the erased events.
CREATE OR REPLACE TEMP TABLE erased_user AS
SELECT DISTINCT user_id, hash(user_id) AS user_hash
FROM arrow_rows

-- name: by_user_remaining_event
-- Events without theirs, in the same order.
CREATE TABLE next.event AS
SELECT *
FROM by_user.event
WHERE NOT (user_hash IN (SELECT user_hash FROM erased_user) AND user_id IN (SELECT user_id FROM erased_user))

-- name: by_user_remaining_keyed_event
-- Keyed events without theirs. Those of a hash that another user shares stay: they only affect more users.
CREATE TABLE next.keyed_event AS
SELECT *
FROM by_user.keyed_event
WHERE
    user_hash NOT IN (
        SELECT user_hash
        FROM erased_user
        WHERE user_hash NOT IN (SELECT user_hash FROM next.event)
    )

-- name: by_user_remaining_file
-- The files whose events are stored.
CREATE TABLE next.file AS
SELECT path
FROM by_user.file

-- name: by_user_remaining_info
-- The state, which names the erasures as soon as the file is brought up to date.
CREATE TABLE next.info AS
SELECT *
FROM by_user.info

-- name: by_user_committed
-- The version of each batch, read once: there may be as many files of commits as commits.
CREATE OR REPLACE TEMP TABLE committed AS
SELECT batch_id, version
FROM ($source) AS commits
WHERE version <= $version

-- name: by_user_last_batch
-- The batch of the newest commit up to a version. It identifies the history: a lake restored from a backup may give the
-- same version to another batch.
SELECT arg_max(batch_id, version)
FROM committed
WHERE version <= ?

-- name: by_user_events
-- The events of a list of files with the hash of the user and the version that added each. Metadata is JSON text,
-- because a scan cannot skip the maps of rows that it filters out.
SELECT
    hash(stored.user_id) AS user_hash,
    stored.user_id,
    stored.event_id,
    stored.action_type,
    epoch_us(stored.event_time) AS t,
    CAST(to_json(stored.metadata) AS VARCHAR) AS metadata,
    coalesce(committed.version, 0) AS version
FROM ($source) AS stored
LEFT JOIN committed ON committed.batch_id = stored.batch_id
WHERE coalesce(committed.version, 0) > $after
ORDER BY user_hash, t

-- name: by_user_keyed_event
-- The events at a key of a completion rule, by hash: those that need the key and those that complete it.
CREATE OR REPLACE TABLE by_user.keyed_event (key_hash UBIGINT, user_hash UBIGINT, t BIGINT)

-- name: by_user_insert_keyed_events
-- Append the events at completion keys that came after a version.
INSERT INTO by_user.keyed_event
SELECT DISTINCT hash(key) AS key_hash, user_hash, t
FROM (
    SELECT user_hash, t, unnest(json_extract_string(metadata, getvariable('completion_keys'))) AS key
    FROM by_user.event
    WHERE version > $after AND list_contains(getvariable('completion_actions'), action_type)
)
WHERE key IS NOT NULL

-- name: by_user_delete_files
-- Forget the files that the snapshot no longer has: compaction merged them.
DELETE FROM by_user.file
WHERE path NOT IN (SELECT unnest(getvariable('files')))

-- name: by_user_insert_files
-- Remember the files whose events are stored.
INSERT INTO by_user.file
SELECT path
FROM (SELECT unnest(getvariable('files')) AS path)
WHERE path NOT IN (FROM by_user.file)
