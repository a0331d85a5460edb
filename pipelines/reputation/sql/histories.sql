-- The histories of users: the lake's events ordered by user, as histories.py stores them.

-- name: histories_committed
-- The version of each batch. Its rows may be newer than the snapshot, whose events they then are not.
CREATE TEMP TABLE IF NOT EXISTS committed (batch_id VARCHAR, version BIGINT)

-- name: histories_committed_file
-- The files that they were read from, each once: there may be as many as commits.
CREATE TEMP TABLE IF NOT EXISTS committed_file (file VARCHAR)

-- name: histories_read_files
-- The files that were read.
FROM committed_file

-- name: histories_forget_commits
-- Start over ...
DELETE FROM committed

-- name: histories_forget_files
-- ... after a compaction of the files, or with another lake.
DELETE FROM committed_file

-- name: histories_add_commits
-- Add the commits of files ...
INSERT INTO committed
SELECT batch_id, version
FROM ($source) AS commits

-- name: histories_add_files
-- ... and remember these.
INSERT INTO committed_file
SELECT unnest(CAST(? AS VARCHAR[]))

-- name: histories_last_batch
-- The batch of the newest commit between two versions. It identifies the history: a lake restored from a backup may give the
-- same version to another batch.
SELECT arg_max(batch_id, version)
FROM committed
WHERE version BETWEEN ? AND ?

-- name: histories_events
-- The events of a list of files that were added after a version, ordered by user.
SELECT
    hash(stored.user_id) AS user_hash,
    stored.user_id,
    stored.event_id,
    stored.action_type,
    epoch_us(stored.event_time) AS t,
    stored.metadata,
    coalesce(committed.version, 0) AS version
FROM ($source) AS stored
LEFT JOIN committed ON committed.batch_id = stored.batch_id
WHERE coalesce(committed.version, 0) > $after
ORDER BY user_hash

-- name: histories_users
-- The hashes of users.
SELECT DISTINCT hash(user_id) AS user_hash
FROM arrow_rows

-- name: histories_target
-- The metadata key at which a retraction or a correction names its event.
CREATE OR REPLACE TEMP VIEW target AS
SELECT
    action_type,
    CASE role WHEN 'retraction' THEN getvariable('retraction_target') ELSE getvariable('correction_target') END AS key
FROM role
WHERE role IN ('retraction', 'correction')

-- name: histories_links
-- What events name, by hash: a value at a key of a completion rule, as an event that needs a completion (`gated`) or that
-- is one (`completing`), or the event that they retract or correct.
SELECT DISTINCT hash(kind, value) AS link, row
FROM (
    SELECT
        kind,
        unnest(list_transform(getvariable('completion_keys'), lambda key: metadata[key])) AS value,
        row
    FROM arrow_rows
    CROSS JOIN (VALUES ('gated'), ('completing')) AS kinds(kind)
    WHERE
        CASE kind
            WHEN 'gated' THEN list_contains(getvariable('gated_actions'), action_type)
            ELSE list_contains(getvariable('completing_actions'), action_type)
        END
    UNION ALL
    SELECT 'event' AS kind, event.metadata[target.key] AS value, event.row
    FROM arrow_rows AS event
    JOIN target ON target.action_type = event.action_type
)
WHERE value IS NOT NULL

-- name: histories_links_of_kind
-- The links that events of a kind have with these events of the other kind: at the same values.
SELECT DISTINCT hash('$kind', value) AS link
FROM (
    SELECT unnest(list_transform(getvariable('completion_keys'), lambda key: metadata[key])) AS value
    FROM arrow_rows
    WHERE list_contains(getvariable('${other}_actions'), action_type)
)
WHERE value IS NOT NULL

-- name: histories_links_to
-- The links that retractions and corrections of these events have.
SELECT DISTINCT hash('event', event_id) AS link
FROM arrow_rows

-- name: histories_targets
-- The users and events that these events name, where they are retractions or corrections.
SELECT event.user_hash, event.metadata[target.key] AS event_id
FROM arrow_rows AS event
JOIN target ON target.action_type = event.action_type
WHERE event_id IS NOT NULL

-- name: histories_rulings
-- The actions that retract or correct an event.
SELECT DISTINCT action_type
FROM target

-- name: histories_completing
-- The actions that make, retract or correct a completion.
SELECT unnest(CAST(getvariable('completing_actions') AS VARCHAR[])) AS action_type
UNION
SELECT action_type
FROM target
