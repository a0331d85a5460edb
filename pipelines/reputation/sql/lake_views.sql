-- The lake's tables as views over the files of one snapshot.

-- name: stored_rows
-- The rows of a list of Parquet files.
SELECT $columns
FROM read_parquet([$paths], hive_partitioning = false)

-- name: mixed_rows
-- The same of files that may lack columns or nested fields.
SELECT $columns
FROM (
    ($no_rows)
    UNION ALL BY NAME
    (FROM read_parquet([$paths], hive_partitioning = false, union_by_name = true))
)

-- name: no_rows
-- An empty list of files: no rows, with the same columns and types.
SELECT $columns
WHERE false

-- name: valid_bus_time
-- The bus time if it lies in 2000-01-01 to 9999-12-31, else null: lakes of earlier releases hold the producers' values
-- unchecked.
CASE WHEN epoch_us(bus_time) BETWEEN 946684800000000 AND 253402214400000000 THEN bus_time END AS bus_time

-- name: table_checkpoints
-- The durable next_offset of each topic partition.
CREATE OR REPLACE TABLE checkpoints AS
SELECT * FROM arrow_rows

-- name: view_events
-- Events, with the UTC day of their event time.
CREATE OR REPLACE VIEW events AS
SELECT stored.*, CAST(make_timestamp(epoch_us(stored.event_time)) AS DATE) AS event_day
FROM ($source) AS stored

-- name: view_commits
-- Commits up to the snapshot's version.
CREATE OR REPLACE VIEW commits AS
SELECT stored.*
FROM ($source) AS stored
WHERE stored.version <= $version

-- name: view_withdrawn
-- What withdrawals removed: the events of one topic of an earlier batch, with the batch of the withdrawal, when and why.
CREATE OR REPLACE VIEW withdrawn AS
SELECT removed.batch_id, removed.topic_id, removed.events, withdrawal_id, withdrawn_at, note
FROM (
    SELECT unnest(withdrawn) AS removed, batch_id AS withdrawal_id, committed AS withdrawn_at, note
    FROM commits
)

-- name: view_fates
-- Decisions about dead letters. A requeue counts once it is committed, and until it is withdrawn: before and after that,
-- its dead letters are open.
CREATE OR REPLACE VIEW fates AS
SELECT decided.*
FROM ($source) AS decided
WHERE
    requeue_id IS NULL
    OR (
        requeue_id IN (SELECT unnest(list_transform(ranges, lambda r : r.topic_id)) FROM commits)
        AND requeue_id NOT IN (SELECT topic_id FROM withdrawn)
    )

-- name: view_dead_letters
-- Dead letters of committed batches, with the latest decision about each. A crash before the commit can leave dead
-- letters of a batch that was never committed; the batch that reads their records again writes them again.
CREATE OR REPLACE VIEW dead_letters AS
SELECT
    written.*,
    coalesce(latest.fate, 'open') AS fate,
    latest.note,
    latest.decided
FROM ($source) AS written
SEMI JOIN commits ON commits.batch_id = written.batch_id
LEFT JOIN (
    SELECT
        batch_id,
        topic_id,
        topic_partition,
        "offset",
        arg_max(fate, decided) AS fate,
        arg_max(note, decided) AS note,
        max(decided) AS decided
    FROM fates
    GROUP BY ALL
) AS latest USING (batch_id, topic_id, topic_partition, "offset")

-- name: view_conflicts
-- Conflicts of committed batches, with the position of the event that came first and stands. After a crash, a record
-- can be classified differently, as with dead letters.
CREATE OR REPLACE VIEW conflicts AS
SELECT
    written.*,
    first.topic_id AS first_topic_id,
    first.topic AS first_topic,
    first.topic_partition AS first_topic_partition,
    first."offset" AS first_offset,
    first.event_time AS first_event_time
FROM ($source) AS written
SEMI JOIN commits ON commits.batch_id = written.batch_id
LEFT JOIN events AS first ON first.event_id = written.event_id

-- name: view_erased
-- Positions of the rows that an erasure removed, without repetitions and without rows that are still present: an
-- erasure that was killed may have recorded those. One record may have made several events: their digests tell them
-- apart.
CREATE OR REPLACE VIEW erased AS
SELECT DISTINCT noted.*
FROM ($source) AS noted
SEMI JOIN commits ON commits.batch_id = noted.batch_id
ANTI JOIN (
    SELECT 'events' AS table_name, topic_id, topic_partition, "offset", batch_id, event_id FROM events
    UNION ALL
    SELECT 'dead_letters', topic_id, topic_partition, "offset", batch_id, NULL FROM dead_letters
    UNION ALL
    SELECT 'conflicts', topic_id, topic_partition, "offset", batch_id, event_id FROM conflicts
) AS present
    ON
        present.table_name = noted.table_name
        AND present.topic_id = noted.topic_id
        AND present.topic_partition = noted.topic_partition
        AND present."offset" = noted."offset"
        AND present.batch_id = noted.batch_id
        AND (noted.event_digest IS NULL OR noted.event_digest = md5(present.batch_id || present.event_id))

-- name: view_policies
-- The policies by the time of their activation, and canaries; the newest one without a role is in force.
CREATE OR REPLACE VIEW policies AS
$source

-- name: view_merged_users
-- The accounts that were merged into another one, or renamed, as they were recorded.
CREATE OR REPLACE VIEW merged_users AS
$source

-- name: view_score_changes
-- The feed: what was published of each user, by number.
CREATE OR REPLACE VIEW score_changes AS
$source
